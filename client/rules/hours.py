"""The hours of the day in which a site may be connected."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

__all__ = ["Hours", "Span", "is_open", "parse_hours", "spell_hours"]

_SPAN = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})", re.ASCII)
_DAY_MINUTES = 24 * 60


@dataclass(frozen=True)
class Span:
    """A part of the day, in minutes after midnight; one that ends before it begins goes over midnight."""

    begin: int
    end: int

    def holds(self, minute: int) -> bool:
        """Return whether this minute of the day is in it; its end is not."""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def spell(self) -> str:
        """Return e.g. `20:00-07:00`."""
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in (self.begin, self.end))


Hours = tuple[Span, ...]


def parse_hours(texts: Sequence[str]) -> Hours:
    """Return the parts of the day that `texts` name, each as `20:00-07:00`.

    Raises:
        ValueError: one is malformed, or has no length.
    """
    return tuple(_parse_span(text) for text in texts)


def is_open(hours: Hours, now: datetime) -> bool:
    """Return whether `now` is in one of `hours`; always, if there are none."""
    return not hours or any(span.holds(now.hour * 60 + now.minute) for span in hours)


def spell_hours(hours: Hours) -> str:
    """Return e.g. `20:00-07:00, 12:30-13:30`."""
    return ", ".join(span.spell() for span in hours)


def _parse_span(text: str) -> Span:
    found = _SPAN.fullmatch(text.strip())
    if not found:
        raise ValueError('must be hours and minutes such as "20:00-07:00"')
    begin_hour, begin_minute, end_hour, end_minute = map(int, found.groups())
    begin, end = begin_hour * 60 + begin_minute, end_hour * 60 + end_minute
    if begin_minute > 59 or end_minute > 59 or begin >= _DAY_MINUTES or end > _DAY_MINUTES:
        raise ValueError("must be times of the day, from 00:00 to 24:00")
    if begin == end:
        raise ValueError("has no length; leave the rule out to be connected all day")
    return Span(begin, end)
