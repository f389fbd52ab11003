"""`MATRIX.md`: the table of faults, written by the runs themselves when `FAULT_MATRIX` names the file."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tests.integration.faults.cluster import Outcome

_HEADER = """# Faults and what became of them

Written by `make faults`: local processes over TLS, two sites, on two cores; one run for each kind of fault.
Where a reply or a line is at fault, it is that of one more site.

| fault | when | completed rounds lost | seconds to recover, from its return | what the operator sees |
|---|---|---|---|---|
"""


def write_table(outcomes: Sequence[Outcome]) -> None:
    """Print a row for each fault, and put it into the file, instead of the row it had."""
    rows = {(outcome.fault.name, outcome.fault.moment): _row(outcome) for outcome in outcomes}
    print(*rows.values(), sep="\n")
    if "FAULT_MATRIX" not in os.environ:
        return
    file = Path(os.environ["FAULT_MATRIX"])
    old = file.read_text(encoding="utf-8").removeprefix(_HEADER).splitlines() if file.exists() else []
    kept = [line for line in old if not any(line.startswith(f"| {name} | {when} |") for name, when in rows)]
    file.write_text(_HEADER + "\n".join(sorted([*kept, *rows.values()])) + "\n", encoding="utf-8")


def _row(outcome: Outcome) -> str:
    seconds = "-" if outcome.seconds_to_recover is None else f"{outcome.seconds_to_recover:.0f}"
    cells = (outcome.fault.name, outcome.fault.moment, outcome.completed_rounds_lost, seconds)
    sees = re.sub(r"\d{15,}", "...", outcome.operator_sees).replace("|", "/")  # Flower's run ids
    return f"| {' | '.join(map(str, cells))} | {sees} |"
