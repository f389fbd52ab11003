import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from client.rules import traffic
from client.rules.owner import NO_RULES, OwnerRules, RuleError
from client.rules.traffic import (
    TRAFFIC_FILE,
    Traffic,
    check_traffic,
    count_traffic,
    is_used_up,
    read_traffic,
)

RULES = OwnerRules(gigabytes_a_day=0.001)


def test_bytes_are_counted_for_the_owners_day(tmp_path: Path) -> None:
    count_traffic(RULES, tmp_path, received=300_000)
    count_traffic(RULES, tmp_path, sent=200_000)
    today = read_traffic(RULES, tmp_path)
    assert (today.received, today.sent, today.used_up_at) == (300_000, 200_000, 0.0)
    (tmp_path / TRAFFIC_FILE).write_text(json.dumps(asdict(replace(today, day="2000-01-01"))))
    assert read_traffic(RULES, tmp_path).total() == 0


def test_what_does_not_fit_into_the_day_is_denied_and_not_counted(tmp_path: Path) -> None:
    count_traffic(RULES, tmp_path, received=800_000)
    check_traffic(RULES, tmp_path, 200_000)
    with pytest.raises(RuleError, match=r"rule gigabytes-a-day = 0.001: .* and 0.000 more do not fit; "):
        check_traffic(RULES, tmp_path, 200_001)
    with pytest.raises(RuleError, match="rule gigabytes-a-day"):
        count_traffic(RULES, tmp_path, sent=200_001)
    assert read_traffic(RULES, tmp_path).total() == 800_000
    check_traffic(NO_RULES, tmp_path, 10**12)


def test_what_came_counts_also_beyond_the_day(tmp_path: Path) -> None:
    count_traffic(RULES, tmp_path, received=2_000_000)
    assert read_traffic(RULES, tmp_path).received == 2_000_000
    with pytest.raises(RuleError, match=r"today 0.002 GB came and went; this site is back tomorrow"):
        check_traffic(RULES, tmp_path)


def test_the_site_stays_until_the_server_was_told_then_it_is_off_for_the_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_traffic(RULES, tmp_path, received=800_000)
    assert not is_used_up(RULES, tmp_path)
    with pytest.raises(RuleError):
        check_traffic(RULES, tmp_path, 10**6)
    assert not is_used_up(RULES, tmp_path)
    later = time.time() + 15
    monkeypatch.setattr(traffic.time, "time", lambda: later)
    assert is_used_up(RULES, tmp_path)
    assert not is_used_up(OwnerRules(gigabytes_a_day=5.0), tmp_path)  # the owner allows more since
    assert not is_used_up(NO_RULES, tmp_path)
    held = Traffic(**json.loads((tmp_path / TRAFFIC_FILE).read_text()))
    (tmp_path / TRAFFIC_FILE).write_text(json.dumps(asdict(replace(held, day="2000-01-01"))))
    assert not is_used_up(RULES, tmp_path)


def test_messages_that_go_on_coming_do_not_keep_the_site_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.time()
    for seconds in (0, 6, 12):
        monkeypatch.setattr(traffic.time, "time", lambda now=started + seconds: now)
        count_traffic(RULES, tmp_path, received=800_000)
        with pytest.raises(RuleError):
            check_traffic(RULES, tmp_path, 10**6)
    assert is_used_up(RULES, tmp_path)
    assert read_traffic(RULES, tmp_path).received == 2_400_000
    monkeypatch.setattr(traffic.time, "time", lambda: started - 3600)  # the clock was set back
    with pytest.raises(RuleError):
        check_traffic(RULES, tmp_path)
    monkeypatch.setattr(traffic.time, "time", lambda: started - 3580)
    assert is_used_up(RULES, tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[", "{}", '{"day": 1, "more": 2}', '{"day": "x", "sent": "1"}', '{"day": "x", "limit": []}'],
)
def test_a_count_that_cannot_be_read_is_none_only_where_nothing_depends_on_it(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / TRAFFIC_FILE).write_text(content)
    assert read_traffic(NO_RULES, tmp_path).total() == 0
    with pytest.raises(RuleError, match="cannot be read; remove it to count anew"):
        read_traffic(RULES, tmp_path)
    count_traffic(NO_RULES, tmp_path, received=1)
    assert read_traffic(RULES, tmp_path).received == 1


def test_without_room_for_the_count_a_rule_denies_and_no_rule_goes_on(tmp_path: Path) -> None:
    nowhere = tmp_path / "missing"
    count_traffic(NO_RULES, nowhere, received=1)
    with pytest.raises(RuleError, match="the count cannot be written to scratch"):
        count_traffic(RULES, nowhere, received=1)
