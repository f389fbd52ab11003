"""The table of all metrics as a document.

python -m server.monitoring.metrics_table > docker/prometheus/METRICS.md
"""

from federation.errors import RejectionCode
from server.monitoring.catalogue import GROUPS
from server.run.phases import PHASES

__all__ = ["markdown"]

_HEAD = """# Metrics

Made by `python -m server.monitoring.metrics_table`; a test keeps it current. The server's exporter
(`server/monitoring/exporter.py`) serves the newest run of its outputs folder, a site's own
(`client/supernode/exporter.py`) what that site is doing inside a round. Both also serve `process_*`.

Labels are bounded: `node` by the number of sites, all others by fixed lists. Rounds are values, never labels.

Phases of a round, in order: {phases}.
Those of a node (download, setup, train, upload) are the slowest node's that answered; `wait` is for nodes
that did not. Download and upload hold Flower's polling and the start of the ClientApp; how they divide their
sum depends on the clocks of server and node agreeing.

| reason of a rejection | meaning |
|---|---|
{reasons}"""


def markdown() -> str:
    """Return the document: the text, and a table for each group of metrics."""
    reasons = "".join(f"| `{code.label}` | {code.meaning} |\n" for code in RejectionCode)
    parts = [_HEAD.format(phases=", ".join(PHASES), reasons=reasons)]
    for title, group in GROUPS.items():
        parts.append(f"\n## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n")
        for spec in group:
            parts.append(f"| `{spec.name}` | {spec.kind} | {', '.join(spec.labels)} | {spec.help} |\n")
    return "".join(parts)


if __name__ == "__main__":
    print(markdown(), end="")
