from pathlib import Path

import pytest

from client.doctor.check import Check
from client.doctor.rules import check_owner_rules


@pytest.mark.parametrize(
    ("content", "round_bytes", "level", "text"),
    [
        ("", 10**9, "ok", "none"),
        ("gigabytes-a-day = 1", None, "ok", "gigabytes-a-day = 1"),
        ("gigabytes-a-day = 1", 10**9, "ok", "gigabytes-a-day = 1"),
        (
            "gigabytes-a-day = 1",
            2 * 10**9,
            "error",
            "gigabytes-a-day = 1: one round takes 2.00; raise it in ",
        ),
        ("hours = 1", None, "error", "must be hours such as"),
    ],
)
def test_rules_are_looked_at(
    content: str, round_bytes: int | None, level: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(content)
    (check,) = check_owner_rules(file, round_bytes)
    assert (check.level, check.what) == (level, "rules")
    assert text in check.text
    assert check_owner_rules(tmp_path / "none", None) == [Check("ok", "rules", "none")]
