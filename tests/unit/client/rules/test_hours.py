from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.rules.hours import is_open, parse_hours


@pytest.mark.parametrize(
    ("hours", "is_in", "is_out"),
    [
        (["08:00-12:00"], ["08:00", "11:59"], ["07:59", "12:00", "00:00"]),
        (["20:00-07:00"], ["20:00", "23:59", "00:00", "06:59"], ["07:00", "19:59", "12:00"]),
        (["20:00-24:00"], ["20:00", "23:59"], ["00:00", "19:59"]),
        (["8:00-9:00", "22:00-1:00"], ["08:30", "22:00", "00:59"], ["09:00", "01:00"]),
        ([], ["00:00", "12:00"], []),
    ],
)
def test_what_is_inside_the_hours(hours: list[str], is_in: list[str], is_out: list[str]) -> None:
    parsed = parse_hours(hours)
    for times, expected in ((is_in, True), (is_out, False)):
        assert [is_open(parsed, datetime.fromisoformat(f"2026-11-27 {time}")) for time in times] == [
            expected
        ] * len(times)


_TIME = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))


@given(begin=_TIME, end=_TIME, now=_TIME)
def test_a_span_and_its_rest_share_out_the_day(begin: str, end: str, now: str) -> None:
    moment = datetime.fromisoformat(f"2026-11-27 {now}")
    if begin == end:
        with pytest.raises(ValueError, match="has no length"):
            parse_hours([f"{begin}-{end}"])
        return
    own, rest = parse_hours([f"{begin}-{end}"]), parse_hours([f"{end}-{begin}"])
    assert is_open(own, moment) is not is_open(rest, moment)
    assert own[0].spell() == f"{begin}-{end}"
