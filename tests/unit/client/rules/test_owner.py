"""rules.toml: what is written is read as it is meant; nothing else is taken for a rule, or for none."""

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.rules.hours import Span
from client.rules.owner import NO_RULES, RULES_VARIABLE, TEMPLATE, OwnerRules, read_rules, rules_file
from federation.errors import ConfigError

DIGEST = "ab" * 32
WHOLE = f"""
min-noise = 1
max-epsilon = 8.5
hours = ["20:00-07:00", "12:30 - 13:30"]
time-zone = "Europe/Berlin"
gigabytes-a-day = 0.5
allow-app = ["{DIGEST.upper()}"]
"""
RULES = OwnerRules(
    1.0, 8.5, (Span(1200, 420), Span(750, 810)), ZoneInfo("Europe/Berlin"), 0.5, allow_app=(DIGEST,)
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rules.toml"


def test_rules_are_read_and_spelled(file: Path) -> None:
    file.write_text(WHOLE)
    assert read_rules(file) == RULES
    assert RULES.spell() == (
        "min-noise = 1; max-epsilon = 8.5; hours = 20:00-07:00, 12:30-13:30; time-zone = Europe/Berlin; "
        f"gigabytes-a-day = 0.5; allow-app = {DIGEST}"
    )


def test_each_rule_of_the_template_is_read_once_its_mark_is_taken_away(file: Path) -> None:
    file.write_text(TEMPLATE)
    assert read_rules(file) == NO_RULES
    named = [line.removeprefix("#") for line in TEMPLATE.splitlines() if line[:1] == "#" and line[1:2] != " "]
    file.write_text("\n".join(named))
    rules = read_rules(file)
    assert [line.split(" = ")[0] for line in named] == [
        *("min-noise", "max-epsilon", "hours", "time-zone", "gigabytes-a-day", "allow-app")
    ]
    assert (rules.min_noise, rules.max_epsilon, rules.gigabytes_a_day) == (1.0, 8.0, 5.0)
    assert rules.hours == (Span(1200, 420), Span(750, 810))


def test_a_file_of_a_windows_editor_is_read(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf# rules\r\nmin-noise = 1.0\r\n")
    assert read_rules(file).min_noise == 1.0


@pytest.mark.parametrize("content", [None, "", "# nothing\n"])
def test_no_file_and_an_empty_one_are_no_rules(content: str | None, file: Path) -> None:
    if content is not None:
        file.write_text(content)
    assert read_rules(file) == NO_RULES
    assert read_rules(None) == NO_RULES
    assert NO_RULES.spell() == "none"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("min-noise = 0", "min-noise = 0: must be a number above 0"),
        ("min-noise = nan", "min-noise = nan: must be a number above 0"),
        ("min-noise = true", "min-noise = True: must be a number above 0"),
        ('max-epsilon = "8"', "max-epsilon = '8': must be a number above 0"),
        ("gigabytes-a-day = -1", "gigabytes-a-day = -1: must be a number above 0"),
        ("gigabytes-a-day = inf", "gigabytes-a-day = inf: must be a number above 0"),
        ("min_noise = 1", "unknown rule 'min_noise': did you mean min-noise?"),
        ("MAX-EPSILON = 1", "unknown rule 'MAX-EPSILON': did you mean max-epsilon?"),
        ("hour = '20:00-07:00'", "unknown rule 'hour': did you mean hours?"),
        ("colour = 1", "unknown rule 'colour': must be one of min-noise, "),
        ("hours = '20-7'", "hours = '20-7': must be hours and minutes"),
        ("hours = '20:60-07:00'", "must be times of the day"),
        ("hours = '24:00-07:00'", "must be times of the day"),
        ("hours = '07:00-07:00'", "has no length"),
        ("hours = []", "must be hours such as"),
        ("hours = [7]", "must be hours such as"),
        ("time-zone = 'Berlin'", "must be a place of the time zone database"),
        ("time-zone = '../../etc/passwd'", "must be a place of the time zone database"),
        ("time-zone = 1", "must be a place of the time zone database"),
        ("allow-app = 'all'", "'all' is no SHA-256"),
        ("allow-app = [1]", "must be a list of SHA-256 digests"),
        ("hours", "the rules cannot be read"),
        ("hours = 1\nhours = 2", "the rules cannot be read"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_line_that_names_file_and_fix(
    line: str, message: str, file: Path
) -> None:
    file.write_text(line)
    with pytest.raises(ConfigError) as error:
        read_rules(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(
    st.one_of(
        st.text(max_size=60),
        st.builds(
            "{} = {}".format,
            st.sampled_from(["min-noise", "hours", "time-zone", "gigabytes-a-day", "allow-app"]),
            st.text(max_size=20) | st.integers().map(str) | st.text(max_size=9).map(repr),
        ),
    )
)
def test_any_content_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    file = tmp_path_factory.mktemp("rules") / "rules.toml"
    file.write_text(content, encoding="utf-8", errors="surrogatepass")
    try:
        assert isinstance(read_rules(file), OwnerRules)
    except ConfigError as error:
        assert "\n" not in str(error)


def test_a_file_that_may_not_be_read_is_not_taken_for_no_rules(file: Path) -> None:
    file.mkdir()
    with pytest.raises(ConfigError, match="the rules cannot be read"):
        read_rules(file)


def test_the_environment_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RULES_VARIABLE, "/site/rules.toml")
    assert rules_file() == Path("/site/rules.toml")
    monkeypatch.setenv(RULES_VARIABLE, "")
    assert rules_file() is None
