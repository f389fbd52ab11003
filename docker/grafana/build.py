"""Writes the dashboards of this folder: `python docker/grafana/build.py`. A test compares them.

Three dashboards. Federation: is it learning, who takes part, where does the time go? Site: how does one node
do? Infrastructure: what does it all run on? The answer stands in the top row, the reasons below. With fifty
sites they stay readable: where each site has a line or a bar, only those are drawn that ask for a look.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from federation.privacy_budget import NOT_COVERED

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_WIDTH = 24  # columns of Grafana's grid
_GAP_MILLISECONDS = 300_000  # lines are drawn through a restart of the exporter, not through an outage

_MAX_LINES = 8  # of sites in a panel; colours and the legend tell no more apart
_MAX_BARS = 10
_NARROW = {"minWidth": 60}  # Grafana's 150 pixels a column push the last ones out of sight

Query = tuple[str, str]  # PromQL, legend
Panel = dict[str, Any]

_GOOD, _WARN, _BAD = "green", "orange", "red"


def _most(metric: str, choose: str = "topk") -> str:
    """The series of the sites that are highest now (`bottomk`: lowest), over all of the time shown."""
    return f"{metric} and {choose}({_MAX_LINES}, {metric} @ end())"


def _steps(*levels: tuple[float | None, str]) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in levels]}


def _panel(
    kind: str,
    title: str,
    queries: Sequence[Query],
    *,
    description: str = "",
    unit: str = "none",
    decimals: int | None = None,
    thresholds: dict[str, Any] | None = None,
    mappings: Sequence[dict[str, Any]] = (),
    limits: tuple[float, float | None] | None = None,
    custom: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    overrides: Sequence[dict[str, Any]] = (),
    instant: bool = False,
) -> Panel:
    defaults: dict[str, Any] = {"unit": unit, "mappings": list(mappings)}
    if decimals is not None:
        defaults["decimals"] = decimals
    if limits is not None:
        defaults |= {"min": limits[0]} | ({} if limits[1] is None else {"max": limits[1]})
    defaults["thresholds"] = thresholds or _steps((None, "blue"))
    defaults["color"] = {"mode": "thresholds" if kind in ("stat", "bargauge") else "palette-classic"}
    if custom:
        defaults["custom"] = custom
    return {
        "title": title,
        "description": description,
        "type": kind,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": options or {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
                **({"format": "table"} if kind == "table" else {}),
            }
            for index, (expression, legend) in enumerate(queries)
        ],
    }


def _stat(title: str, expression: str, legend: str = "", **rest: Any) -> Panel:
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
        "justifyMode": "center",
    }
    # Of this moment: the last value of an hour would show a run as running long after its exporter died.
    return _panel("stat", title, [(expression, legend)], options=options, instant=True, **rest)


def _lines(title: str, queries: Sequence[Query], *, stacked: bool = False, **rest: Any) -> Panel:
    custom = {
        "lineWidth": 2,
        "fillOpacity": 70 if stacked else 0,
        "showPoints": "never",
        "spanNulls": _GAP_MILLISECONDS,
        "lineInterpolation": "stepAfter",  # a round's figure holds until the next round's
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, queries, custom=custom, options=options, **rest)


def _bars(title: str, expression: str, legend: str, **rest: Any) -> Panel:
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "orientation": "horizontal",
        "displayMode": "basic",
        "showUnfilled": True,
    }
    return _panel("bargauge", title, [(expression, legend)], options=options, instant=True, **rest)


def _map(values: dict[str, tuple[str, str]]) -> list[dict[str, Any]]:
    """Value -> text and colour."""
    entries = {
        value: {"text": text, "color": color, "index": index}
        for index, (value, (text, color)) in enumerate(values.items())
    }
    return [{"type": "value", "options": entries}]


def _override(name: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def _dashed(name: str, dash: Sequence[int] = (6, 6)) -> dict[str, Any]:
    """A line told apart without its colour; it is drawn over a stack, not into it."""
    return _override(
        name,
        {
            "custom.lineStyle": {"fill": "dash", "dash": list(dash)},
            "custom.stacking": {"mode": "none", "group": "A"},
            "custom.fillOpacity": 0,
        },
    )


def _table(
    title: str,
    columns: Sequence[tuple[str, str, dict[str, Any]]],
    label: str,
    texts: Sequence[str] = (),
    **rest: Any,
) -> Panel:
    """One row a value of `label`, one column a query: (title, PromQL, field properties).

    Args:
        texts: labels that are shown as columns too; one query only has them.
    """
    queries = [(query, "") for _, query, _ in columns]
    panel = _panel("table", title, queries, instant=True, custom=_NARROW, **rest)
    # A query without a title is there for its labels only.
    names = {f"Value #{chr(ord('A') + i)}": title for i, (title, _, _) in enumerate(columns) if title}
    panel["transformations"] = [
        {"id": "joinByField", "options": {"byField": label, "mode": "outer"}},
        {
            "id": "filterFieldsByName",
            "options": {"include": {"names": [label, *texts, *names]}},
        },
        {"id": "organize", "options": {"renameByName": names}},
    ]
    panel["fieldConfig"]["overrides"] = [
        _override(title, properties) for title, _, properties in columns if properties
    ]
    panel["options"] = {"showHeader": True, "cellHeight": "sm"}
    return panel


def _dashboard(
    uid: str,
    title: str,
    rows: Sequence[tuple[int, Sequence[Panel]]],
    *,
    variables: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Rows of equally wide panels; a panel may ask for its width with `_w`."""
    panels, y = [], 0
    for height, row in rows:
        x = 0
        free = _WIDTH - sum(panel.get("_w", 0) for panel in row)
        share = free // max(1, sum("_w" not in panel for panel in row))
        for panel in row:
            width = panel.pop("_w", share)
            panel = {"id": len(panels) + 1, **panel}
            panel["gridPos"] = {"x": x, "y": y, "w": width, "h": height}
            panels.append(panel)
            x += width
        y += height
    return {
        "uid": uid,
        "title": title,
        "tags": ["so100"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "templating": {"list": list(variables)},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "SO-100",
                "tags": ["so100"],
                "asDropdown": False,
                "icon": "external link",
                "includeVars": False,
                "keepTime": True,
                "targetBlank": False,
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": panels,
    }


def _wide(panel: Panel, width: int) -> Panel:
    return {**panel, "_w": width}


# 1, 2 or 3: a stat panel colours a number.
_STATE = " + on() ".join(
    f'{number} * federation_run_state{{state="{state}"}}'
    for number, state in enumerate(("running", "finished", "failed"), start=1)
)
_STATES = _map({"1": ("running", "blue"), "2": ("finished", _GOOD), "3": ("failed", _BAD)})
_ONLINE = _map({"0": ("offline", _BAD), "1": ("online", _GOOD)})
_COLOURED_TEXT = {"custom.cellOptions": {"type": "color-text"}}
_PRESENCES = _map({"0": ("offline", _BAD), "1": ("online", _GOOD), "2": ("suspended", _WARN)})
# "text" is the colour of ordinary text: no promise is neither good nor bad.
_EPSILON = [
    {
        "type": "range",
        "options": {"from": 1e6, "to": None, "result": {"text": "no bound", "color": "text", "index": 0}},
    }
]
_UP = _map({"0": ("down", _BAD), "1": ("up", _GOOD)})


def _alerts() -> Panel:
    return _stat(
        "Alerts",
        'count(ALERTS{alertstate="firing"}) or vector(0)',
        thresholds=_steps((None, _GOOD), (1, _BAD)),
        description="Firing now: see /alerts of Prometheus; RUNBOOK.md says what to do.",
    )


def _pair(panel: Panel, expression: str, legend: str) -> Panel:
    """A second value beside a stat's first."""
    second = {**panel["targets"][0], "refId": "B", "expr": expression, "legendFormat": legend}
    panel["targets"].append(second)
    panel["options"]["textMode"] = "value_and_name"
    return panel


def _presence(selector: str = "") -> str:
    """0, 1 or 2: offline, online, or suspended, which is mostly online and trains nothing."""
    return f"2 * (federation_node_suspended{selector} == 1) or federation_node_online{selector}"


def _labels(title: str, metric: str, labels: Sequence[str], **rest: Any) -> Panel:
    """The labels of one series as a table of one row."""
    panel = _panel("table", title, [(metric, "")], instant=True, custom=_NARROW, **rest)
    panel["transformations"] = [{"id": "filterFieldsByName", "options": {"include": {"names": list(labels)}}}]
    return panel


def _loss() -> Panel:
    panel = _stat(
        "Held-out policy loss",
        'federation_policy_loss{dataset="all"}',
        "newest",
        decimals=3,
        overrides=[
            _override(
                "since the start",
                {
                    "unit": "percentunit",
                    "decimals": 1,
                    "thresholds": _steps((None, _GOOD), (0, _WARN), (0.1, _BAD)),
                },
            )
        ],
        description="Its change since before training stands beside it. Below zero: it learns.",
    )
    return _pair(panel, "federation:loss_change:ratio", "since the start")


def _updates() -> Panel:
    panel = _stat(
        "Updates in the newest round",
        "federation_participants",
        "good",
        thresholds=_steps((None, _BAD), (1, _GOOD)),
        overrides=[_override("asked", {"thresholds": _steps((None, "blue"))})],
        description="Nodes whose update went into the global weights, of those that were asked.",
    )
    return _pair(panel, "federation_sampled_nodes", "asked")


def _rounds() -> Panel:
    return _pair(
        _stat("Rounds", "federation_round", "done", decimals=0), "federation_rounds_planned", "planned"
    )


def _round_time() -> Panel:
    panel = _stat(
        "Time of a round",
        "federation:round_age:seconds or on() vector(0)",
        "this one, so far",
        unit="s",
        decimals=1,
        description="Under way, against the newest complete one: whether a long round is late.",
    )
    return _pair(panel, "federation_round_duration_seconds", "the last")


def federation() -> dict[str, Any]:
    """Is it learning, who takes part, where does the time go?"""
    return _dashboard(
        "federation",
        "Federation",
        [
            (
                4,
                [
                    _stat("Run", _STATE, mappings=_STATES, description="What the newest run is doing."),
                    _rounds(),
                    _loss(),
                    _updates(),
                    _round_time(),
                    _alerts(),
                ],
            ),
            (
                9,
                [
                    _lines(
                        "Is it learning? Held-out policy loss",
                        [
                            ("federation_policy_loss_baseline", "before training"),
                            ("federation_policy_loss_best", "best"),
                            ("federation_policy_loss", "{{dataset}}"),
                        ],
                        decimals=2,
                        overrides=[
                            _dashed("best", (2, 6)),
                            _dashed("before training"),
                            _override("all", {"custom.lineWidth": 4}),  # a single dataset lies on it
                        ],
                        description="Flow-matching loss on data no node has seen.",
                    ),
                    _lines(
                        "Held-out action error",
                        [("federation_action_mse", "{{dataset}}")],
                        decimals=0,
                        overrides=[_override("all", {"custom.lineWidth": 4})],
                        description="Mean squared error, in squared degrees; percent for the gripper.",
                    ),
                    _lines(
                        "Policy loss in training",
                        [
                            (_most("federation_node_policy_loss"), "{{node}}"),
                            ("federation_client_policy_loss_mean", "mean"),
                        ],
                        decimals=2,
                        overrides=[_dashed("mean")],
                        description="Each node's own data, the eight highest: one far off wants a look.",
                    ),
                    _lines(
                        "Size of the updates",
                        [
                            (_most("federation_node_update_norm"), "{{node}}"),
                            ("federation_update_norm", "global"),
                        ],
                        overrides=[_dashed("global")],
                        description="L2 norm, the eight largest; the global one shrinks where they disagree.",
                    ),
                ],
            ),
            (
                8,
                [
                    _wide(
                        _table(
                            "Who takes part?",
                            [
                                ("now", _presence(), {"mappings": _PRESENCES, **_COLOURED_TEXT}),
                                ("newest round", "federation_node_round", {"decimals": 0}),
                                ("absent rounds", "federation_node_absent_rounds", {"decimals": 0}),
                                (
                                    "rejected",
                                    "sum by (node) (federation_node_rejected_updates_total)",
                                    {"decimals": 0},
                                ),
                                ("frames trained on", "federation_node_examples_total", {"decimals": 0}),
                                ("steps/s", "federation_node_steps_per_second", {"decimals": 2}),
                                (
                                    "last seen",
                                    "federation:node_silence:seconds",
                                    {"unit": "s", "decimals": 0},
                                ),
                                (
                                    "privacy spent",
                                    "federation_node_privacy_epsilon",
                                    {"decimals": 2, "mappings": _EPSILON},
                                ),
                            ],
                            "node",
                            description=f"One row a site. Privacy: epsilon over all releases. {NOT_COVERED}",
                        ),
                        15,
                    ),
                    _lines(
                        "Nodes in each round",
                        [
                            ("federation_participants", "good updates"),
                            ("federation_timed_out_replies", "timed out"),
                            ("federation_rejected_updates", "rejected"),
                            ("federation_denied_nodes", "denied"),
                            ("federation_min_nodes", "needed"),
                        ],
                        stacked=True,
                        decimals=0,
                        overrides=[_dashed("needed"), _dashed("denied", (2, 6))],
                        description="Below `needed` no round starts.",
                    ),
                ],
            ),
            (
                8,
                [
                    _bars(
                        "Where does the time go? All rounds",
                        "sort_desc(federation:phase_share:ratio)",
                        "{{phase}}",
                        unit="percentunit",
                        decimals=0,
                        limits=(0, 1),
                        description="Critical path: the server's own work and the slowest node's.",
                    ),
                    _lines(
                        "Where does the time go? Round by round",
                        [("federation_round_phase_seconds", "{{phase}}")],
                        stacked=True,
                        unit="s",
                    ),
                    _bars(
                        "How far is each site inside the round?",
                        f"sort(bottomk({_MAX_BARS}, federation:site_progress:ratio))",
                        "{{node}}",
                        unit="percentunit",
                        decimals=0,
                        limits=(0, 1),
                        description="Local steps, of the ten slowest whose exporter is scraped here.",
                    ),
                    _lines(
                        "Bytes moved",
                        [("federation_transferred_bytes_total", "{{direction}}")],
                        unit="decbytes",
                        decimals=1,
                        description="Encoded weights (down) and updates (up), since the run began.",
                    ),
                ],
            ),
            (
                4,
                [
                    _labels(
                        "How is the run set up?",
                        "federation_run_info",
                        ["run", "policy", "aggregation", "download", "upload", "privacy"],
                        description="Download and upload: how weights and updates are coded on the wire.",
                    )
                ],
            ),
        ],
    )


def site() -> dict[str, Any]:
    """One node."""
    variable = {
        "name": "node",
        "label": "Site",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": "label_values(federation_node_frames, node)", "refId": "node"},
        "refresh": 2,
        "sort": 1,
        "includeAll": False,
        "multi": False,
    }
    return _dashboard(
        "site",
        "Site",
        [
            (
                4,
                [
                    _stat("SuperNode", _presence('{node="$node"}'), mappings=_PRESENCES),
                    _stat(
                        "Last sign of life",
                        'federation:node_silence:seconds{node="$node"}',
                        unit="s",
                        decimals=0,
                        thresholds=_steps((None, _GOOD), (90, _WARN), (300, _BAD)),
                    ),
                    _stat(
                        "Steps of this round",
                        'federation:site_progress:ratio{node="$node"}',
                        unit="percentunit",
                        decimals=0,
                        description="Only if the site's own exporter is scraped here.",
                    ),
                    _stat("Steps a second", 'federation_node_steps_per_second{node="$node"}', decimals=2),
                    _stat(
                        "Device busy",
                        'federation_node_device_busy_ratio{node="$node"}',
                        unit="percentunit",
                        decimals=0,
                        thresholds=_steps((None, _BAD), (0.5, _WARN), (0.8, _GOOD)),
                        description="Share of training time not waiting for data. Low: more num_workers.",
                    ),
                    _stat(
                        "Absent rounds",
                        'federation_node_absent_rounds{node="$node"}',
                        decimals=0,
                        thresholds=_steps((None, _GOOD), (1, _WARN), (2, _BAD)),
                    ),
                ],
            ),
            (
                9,
                [
                    _lines(
                        "Policy loss in training",
                        [
                            ('federation_node_policy_loss{node="$node"}', "$node"),
                            ("federation_client_policy_loss_mean", "mean of all"),
                            (
                                "federation_client_policy_loss_mean + federation_client_policy_loss_std",
                                "mean + std",
                            ),
                        ],
                        decimals=2,
                        overrides=[_dashed("mean of all"), _dashed("mean + std", (2, 6))],
                    ),
                    _lines(
                        "Inside the round: loss of the newest step",
                        [('federation_site_policy_loss{node="$node"}', "$node")],
                        decimals=2,
                        description="From the site's own exporter.",
                    ),
                    _lines(
                        "Gradient, update and proximal term",
                        [
                            ('federation_node_grad_norm{node="$node"}', "gradient norm"),
                            ('federation_node_update_norm{node="$node"}', "update norm"),
                            ('federation_node_proximal_loss{node="$node"}', "proximal loss"),
                        ],
                    ),
                ],
            ),
            (
                8,
                [
                    _lines(
                        "Where does its time go?",
                        [('federation_node_phase_seconds{node="$node"}', "{{phase}}")],
                        stacked=True,
                        unit="s",
                    ),
                    _lines(
                        "Peak memory of the device",
                        [('federation_node_device_memory_bytes{node="$node"}', "peak")],
                        unit="decbytes",
                        limits=(0, None),
                        decimals=1,
                    ),
                    _lines(
                        "Bytes moved",
                        [('federation_node_transferred_bytes_total{node="$node"}', "{{direction}}")],
                        unit="decbytes",
                        decimals=1,
                    ),
                ],
            ),
            (
                6,
                [
                    _wide(
                        _lines(
                            "Frames",
                            [
                                ('federation_node_examples_total{node="$node"}', "trained on"),
                                (
                                    'federation_node_skipped_frames_total{node="$node"}',
                                    "could not be decoded",
                                ),
                            ],
                            decimals=0,
                        ),
                        8,
                    ),
                    _bars(
                        "Refused updates",
                        'federation_node_rejected_updates_total{node="$node"}',
                        "{{reason}}",
                        decimals=0,
                        description="METRICS.md says what the reasons mean.",
                    ),
                    _pair(
                        _stat("Episodes", 'federation_node_episodes{node="$node"}', "used", decimals=0),
                        'federation_node_excluded_episodes{node="$node"}',
                        "excluded",
                    ),
                    _stat(
                        "Timed-out replies",
                        'federation_node_timed_out_replies_total{node="$node"}',
                        decimals=0,
                    ),
                    _stat(
                        "Privacy spent",
                        'federation_node_privacy_epsilon{node="$node"}',
                        decimals=2,
                        mappings=_EPSILON,
                        description=f"Epsilon over all releases of the run. {NOT_COVERED}",
                    ),
                ],
            ),
            (
                4,
                [
                    _labels(
                        "What does it run on?",
                        'federation_node_info{node="$node"}',
                        ["node", "device", "cameras", "python", "flwr", "lerobot", "torch"],
                        description="As the site said when it joined.",
                    )
                ],
            ),
        ],
        variables=[variable],
    )


_EXPORTERS_CPU = 'rate(process_cpu_seconds_total{job=~"federation|sites"}[1m])'


def infrastructure() -> dict[str, Any]:
    """What it all runs on."""
    return _dashboard(
        "infrastructure",
        "Infrastructure",
        [
            (
                4,
                [
                    _stat("SuperLink", "federation_superlink_up", mappings=_UP),
                    _stat(
                        "Nodes online",
                        "sum(federation_node_online)",
                        decimals=0,
                        thresholds=_steps((None, _BAD), (1, _GOOD)),
                    ),
                    _stat(
                        "Certificates: days left",
                        "min(federation:certificate_left:days)",
                        decimals=0,
                        thresholds=_steps((None, _BAD), (14, _WARN), (30, _GOOD)),
                    ),
                    _stat(
                        "Disk used",
                        "federation:disk_used:ratio",
                        unit="percentunit",
                        decimals=0,
                        thresholds=_steps((None, _GOOD), (0.8, _WARN), (0.9, _BAD)),
                    ),
                    _stat(
                        "Scrape targets down",
                        "count(up == 0) or vector(0)",
                        decimals=0,
                        thresholds=_steps((None, _GOOD), (1, _BAD)),
                    ),
                    _alerts(),
                ],
            ),
            (
                8,
                [
                    _lines(
                        "SuperLink's answer", [("federation_superlink_response_seconds", "seconds")], unit="s"
                    ),
                    _lines(
                        "SuperNodes by status", [("federation_superlink_nodes", "{{status}}")], decimals=0
                    ),
                    _lines("Runs by status", [("federation_superlink_runs", "{{status}}")], decimals=0),
                ],
            ),
            (
                8,
                [
                    _lines(
                        "Silence of each node",
                        [(_most("federation:node_silence:seconds"), "{{node}}")],
                        unit="s",
                        decimals=0,
                        description="The eight longest. A heartbeat comes every 30 s.",
                    ),
                    _bars(
                        "Days left of each certificate",
                        "federation:certificate_left:days",
                        "{{certificate}}",
                        decimals=0,
                        thresholds=_steps((None, _BAD), (14, _WARN), (30, _GOOD)),
                        limits=(0, 400),
                    ),
                    _lines(
                        "Free disk",
                        [
                            ("federation_disk_free_bytes", "runs"),
                            (_most("federation_site_scratch_free_bytes", "bottomk"), "scratch of {{node}}"),
                        ],
                        unit="decbytes",
                        decimals=1,
                    ),
                ],
            ),
            (
                7,
                [
                    _lines(
                        "Memory of the exporters",
                        [(_most('process_resident_memory_bytes{job=~"federation|sites"}'), "{{instance}}")],
                        unit="decbytes",
                        decimals=0,
                    ),
                    _lines(
                        "CPU of the exporters",
                        [(f"topk({_MAX_LINES}, {_EXPORTERS_CPU})", "{{instance}}")],
                        unit="percentunit",
                        decimals=1,
                    ),
                    _lines("Series in Prometheus", [("prometheus_tsdb_head_series", "series")], decimals=0),
                    _labels(
                        "Versions of the server",
                        "federation_build_info",
                        ["python", "flwr", "lerobot", "torch"],
                    ),
                ],
            ),
            (
                7,
                [
                    _table(
                        "What does each site bring?",
                        [
                            ("", "federation_node_info", {}),
                            ("episodes", "federation_node_episodes", {"decimals": 0}),
                            ("excluded", "federation_node_excluded_episodes", {"decimals": 0}),
                            ("frames", "federation_node_frames", {"decimals": 0}),
                            ("frames/s", "federation_node_fps", {"decimals": 0}),
                            ("memory", "federation_node_device_memory_bytes", {"unit": "decbytes"}),
                        ],
                        "node",
                        ["device", "cameras", "python", "flwr", "lerobot", "torch"],
                        description="As it said when it joined; excluded: episodes not fit for training.",
                    ),
                ],
            ),
        ],
    )


DASHBOARDS = {"federation": federation, "site": site, "infrastructure": infrastructure}


def render(name: str) -> str:
    """The dashboard's file."""
    return json.dumps(DASHBOARDS[name](), indent=2) + "\n"


if __name__ == "__main__":
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(render(name), encoding="utf-8")
