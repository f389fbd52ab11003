"""The report's HTML: tables, figures, and how sizes and durations are shown."""

import base64
import html
from collections.abc import Sequence
from typing import Any

__all__ = ["Text", "figure", "format_duration", "format_size", "table"]


class Text(str):
    """A table cell that is read, not compared: aligned to the left."""


def figure(svg: bytes, caption: str) -> str:
    """Return a picture with its caption."""
    source = base64.b64encode(svg).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], bold: frozenset[str] | set[str] = frozenset()
) -> str:
    """Return a table; rows whose first cell is in `bold` are bold."""
    text = [isinstance(cell, Text) for cell in rows[0]] if rows else [False] * len(header)
    head = "".join(
        f"<th{' class=text' if left else ''}>{html.escape(cell)}"
        for cell, left in zip(header, text, strict=True)
    )
    body = ""
    for row in rows:
        cells = "".join(
            f"<td class=text>{html.escape(cell)}"
            if isinstance(cell, Text)
            else f"<td>{html.escape(str(cell))}"
            for cell in row
        )
        body += f"<tr class=changed>{cells}" if row[0] in bold else f"<tr>{cells}"
    return f'<div class="wide"><table><thead><tr>{head}</thead><tbody>{body}</tbody></table></div>'


def format_size(count: float) -> str:
    """Return a number of bytes, e.g. `1.5 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def format_duration(seconds: float) -> str:
    """Return e.g. `2.0 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if hours < 1 else f"{hours:.1f} h"
