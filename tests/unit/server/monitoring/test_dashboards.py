"""The dashboards as files; tests/integration/test_monitoring.py asks their queries of a real Prometheus."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from server.monitoring.catalogue import CATALOGUE
from tests import REPOSITORY

_SPEC = importlib.util.spec_from_file_location("build", REPOSITORY / "docker" / "grafana" / "build.py")
assert _SPEC
assert _SPEC.loader
build = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(build)


def _expressions(dashboard: dict) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("name", build.DASHBOARDS)
def test_the_files_are_what_the_code_builds(name: str) -> None:
    written = (build.FOLDER / f"{name}.json").read_text()
    assert written == build.render(name), "run: python docker/grafana/build.py"


@pytest.mark.parametrize("name", build.DASHBOARDS)
def test_panels_do_not_overlap_and_fill_their_rows(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(build.render(name))["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + i, grid["y"] + j) for i in range(grid["w"]) for j in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert len(taken) >= 0.95 * 24 * height


@pytest.mark.parametrize("name", build.DASHBOARDS)
def test_every_query_names_only_metrics_that_exist(name: str) -> None:
    recorded = {
        rule["record"]
        for group in yaml.safe_load((REPOSITORY / "docker/prometheus/recording.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    served = {spec.name for spec in CATALOGUE}
    for expression in _expressions(json.loads(build.render(name))):
        for metric in re.findall(r"\bfederation[_:][a-z_:]+", expression):
            assert metric in served | recorded, expression


def test_every_rule_names_only_metrics_that_exist() -> None:
    served = {spec.name for spec in CATALOGUE}
    for file in ("recording.yml", "alerts.yml"):
        for metric in re.findall(
            r"\bfederation_[a-z_]+", (REPOSITORY / "docker/prometheus" / file).read_text()
        ):
            assert metric in served, metric


# A table scrolls.
_BOUNDED = re.compile(r"(top|bottom)k\(")


@pytest.mark.parametrize("name", build.DASHBOARDS)
def test_lines_and_bars_of_fifty_sites_are_the_few_that_ask_for_a_look(name: str) -> None:
    for panel in json.loads(build.render(name))["panels"]:
        for target in panel["targets"] if panel["type"] != "table" else []:
            if "{{node}}" in target["legendFormat"] or "{{instance}}" in target["legendFormat"]:
                assert _BOUNDED.search(target["expr"]), (panel["title"], target["expr"])


def test_the_dashboards_are_built_from_any_folder(tmp_path: Path) -> None:
    script = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='build')"
    command = [sys.executable, "-c", script, str(REPOSITORY / "docker" / "grafana" / "build.py")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
