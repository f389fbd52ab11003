"""The rules and alerts as promtool sees them. It comes with Debian's package `prometheus`."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests import REPOSITORY

FOLDER = REPOSITORY / "docker" / "prometheus"


def _promtool(*arguments: str) -> None:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.fail("promtool is not installed: apt-get install prometheus")
    result = subprocess.run([binary, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def _alerts() -> list[dict]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_configuration_and_the_rules_are_valid() -> None:
    _promtool("check", "config", str(FOLDER / "prometheus.yml"))


def test_every_alert_fires_when_it_must_and_only_then() -> None:
    _promtool("test", "rules", "tests/prometheus/rules.test.yml")


def test_every_alert_has_cases_that_fire_and_a_runbook_line() -> None:
    cases = yaml.safe_load((REPOSITORY / "tests" / "prometheus" / "rules.test.yml").read_text())["tests"]
    firing = {
        case["alertname"]
        for group in cases
        for case in group.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    names = [alert["alert"] for alert in _alerts()]
    assert sorted(firing) == sorted(names)
    headings = re.findall(r"^## (\w+)$", (FOLDER / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert headings == names
    for alert in _alerts():
        assert alert["annotations"]["runbook"] == f"RUNBOOK.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("page", "ticket")
