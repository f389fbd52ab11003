"""The dashboards as files; tests/integration/test_monitoring.py asks their queries of a real Prometheus."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from server.monitoring.catalogue import CATALOGUE
from tests import REPOSITORY

FOLDER = REPOSITORY / "docker" / "grafana" / "dashboards"
DASHBOARDS = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['id']}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
]
UNITS = {"seconds": "s", "bytes": "decbytes", "ratio": "percentunit"}


def _units(panel: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Query and unit of each series of `panel`, which an override may give a unit of its own."""
    own = {
        override["matcher"]["options"]: field["value"]
        for override in panel["fieldConfig"]["overrides"]
        for field in override["properties"]
        if field["id"] == "unit"
    }
    for target in panel["targets"]:
        yield target["expr"], own.get(target["legendFormat"], panel["fieldConfig"]["defaults"]["unit"])


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafana_finds_each_dashboard_and_each_panel_by_one_name(name: str) -> None:
    dashboard = DASHBOARDS[name]
    assert dashboard["uid"] == name
    assert (dashboard["tags"], dashboard["editable"], dashboard["annotations"]) == (
        ["so100"],
        False,
        {"list": []},
    )
    for key in ("id", "title"):
        values = [panel[key] for panel in dashboard["panels"]]
        assert len(set(values)) == len(values), values


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap_and_fill_their_rows(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[name]["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + i, grid["y"] + j) for i in range(grid["w"]) for j in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert len(taken) >= 0.95 * 24 * height


@pytest.mark.parametrize("panel", PANELS)
def test_every_query_asks_the_source_that_is_there_for_metrics_that_exist(panel: dict[str, Any]) -> None:
    recorded = {
        rule["record"]
        for group in yaml.safe_load((REPOSITORY / "docker/prometheus/recording.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    provisioned = yaml.safe_load((FOLDER.parent / "provisioning/datasources/prometheus.yml").read_text())
    source = {"type": "prometheus", "uid": provisioned["datasources"][0]["uid"]}
    served = {spec.name for spec in CATALOGUE}
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
    for target in [panel, *panel["targets"]]:
        assert target["datasource"] == source
        for metric in re.findall(r"\bfederation[_:][a-z_:]+", target.get("expr", "")):
            assert metric in served | recorded, target["expr"]


def test_every_rule_names_only_metrics_that_exist() -> None:
    served = {spec.name for spec in CATALOGUE}
    for file in ("recording.yml", "alerts.yml"):
        for metric in re.findall(
            r"\bfederation_[a-z_]+", (REPOSITORY / "docker/prometheus" / file).read_text()
        ):
            assert metric in served, metric


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_the_unit_of_its_metric(panel: dict[str, Any]) -> None:
    for expression, unit in _units(panel) if panel["type"] != "table" else []:
        suffixes = re.findall(r"federation[_:][a-z_:]*?_?(seconds|bytes|ratio)(?:_total)?\b", expression)
        assert {UNITS[suffix] for suffix in suffixes} <= {unit}, (expression, unit)


@pytest.mark.parametrize("panel", PANELS)
def test_series_beside_each_other_have_a_legend_each(panel: dict[str, Any]) -> None:
    legends = [target["legendFormat"] for target in panel["targets"]]
    if panel["type"] == "table":  # its columns have titles
        assert set(legends) == {""}
    elif panel["type"] != "stat" or len(legends) > 1:
        assert all(legends), legends
        assert len(set(legends)) == len(legends)


@pytest.mark.parametrize("panel", PANELS)
def test_a_value_is_of_this_moment_and_a_line_holds_until_the_next_round(panel: dict[str, Any]) -> None:
    """The last value of an hour would show a run as running long after its exporter died."""
    lines = panel["type"] == "timeseries"
    assert {target["instant"] for target in panel["targets"]} == {not lines}
    assert {target["range"] for target in panel["targets"]} == {lines}
    if lines:
        style = panel["fieldConfig"]["defaults"]["custom"]
        # Drawn through a restart of the exporter, not through an outage.
        assert (style["lineInterpolation"], style["spanNulls"]) == ("stepAfter", 300_000)


# A table scrolls.
_BOUNDED = re.compile(r"(top|bottom)k\(")


@pytest.mark.parametrize("panel", PANELS)
def test_lines_and_bars_of_fifty_sites_are_the_few_that_ask_for_a_look(panel: dict[str, Any]) -> None:
    for target in panel["targets"] if panel["type"] != "table" else []:
        if "{{node}}" in target["legendFormat"] or "{{instance}}" in target["legendFormat"]:
            assert _BOUNDED.search(target["expr"]), (panel["title"], target["expr"])
