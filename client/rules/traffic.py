"""What a site received and sent in a day: `<scratch>/traffic.json`, for its owner and for `gigabytes-a-day`.

Counted is all that the SuperNode pulls (`client/supernode/received.py`), and the tensors of what is sent. The
day is the owner's. Once a message does not fit any more, the file says so, and `so100-site join` keeps the
site off until midnight.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from client.rules.owner import OwnerRules, RuleError
from federation.files import read_json_object, write_json

__all__ = ["TRAFFIC_FILE", "Traffic", "check_traffic", "count_traffic", "is_used_up", "read_traffic"]

TRAFFIC_FILE = "traffic.json"
_FAREWELL_SECONDS = 10.0  # in which the server is still told why this site takes no part


@dataclass(frozen=True)
class Traffic:
    """The bytes of one day."""

    day: str
    received: int = 0
    sent: int = 0
    used_up_at: float = 0.0  # by `time.time`: when a message was first denied for `limit`; 0: none was
    limit: float = 0.0  # gigabytes

    def total(self) -> int:
        """Return all bytes."""
        return sum((self.received, self.sent))


def read_traffic(rules: OwnerRules, scratch: Path) -> Traffic:
    """Return the count of today.

    Raises:
        RuleError: there is a rule, and a count that cannot be read.
    """
    today = f"{rules.now():%Y-%m-%d}"
    file = scratch / TRAFFIC_FILE
    content = read_json_object(file)
    try:
        traffic = Traffic(**content) if content else Traffic(today)
        sum((traffic.total(), traffic.used_up_at, traffic.limit))  # raises if one is no number
    except TypeError:
        content, traffic = {}, Traffic(today)
    if not content and rules.gigabytes_a_day and file.exists():
        raise RuleError(f"rule gigabytes-a-day: {file} cannot be read; remove it to count anew")
    return traffic if traffic.day == today else Traffic(today)


def count_traffic(rules: OwnerRules, scratch: Path, *, received: int = 0, sent: int = 0) -> None:
    """Count what has come, or what is about to be sent.

    Without a rule a full disk costs the owner the count, and the round nothing.

    Raises:
        RuleError: what is to be sent does not fit into the day, or with a rule the count cannot be written.
    """
    if sent:
        check_traffic(rules, scratch, sent)
    before = read_traffic(rules, scratch)
    _write(rules, scratch, replace(before, received=before.received + received, sent=before.sent + sent))


def check_traffic(rules: OwnerRules, scratch: Path, coming: int = 0) -> None:
    """Raise a `RuleError` if `coming` more bytes do not fit into the owner's gigabytes of today."""
    limit = rules.gigabytes_a_day
    if limit is None:
        return
    today = read_traffic(rules, scratch)
    if today.total() + max(coming, 1) <= limit * 1e9:
        return
    now = time.time()
    is_denied_again = today.limit == limit and 0 < today.used_up_at < now
    since = today.used_up_at if is_denied_again else now
    _write(rules, scratch, replace(today, used_up_at=since, limit=limit))
    raise RuleError(
        f"rule gigabytes-a-day = {limit:g}: today {today.total() / 1e9:.3f} GB came and went"
        f"{f', and {coming / 1e9:.3f} more do not fit' if coming else ''}; this site is back tomorrow"
    )


def is_used_up(rules: OwnerRules, scratch: Path) -> bool:
    """Return whether today's gigabytes are used up, and the server has had the time to be told."""
    today = read_traffic(rules, scratch)
    return (
        today.limit == rules.gigabytes_a_day
        and 0 < today.used_up_at < time.time() - _FAREWELL_SECONDS  # of an owner who changed no rule since
    )


def _write(rules: OwnerRules, scratch: Path, traffic: Traffic) -> None:
    try:
        write_json(scratch / TRAFFIC_FILE, asdict(traffic), durable=False)
    except OSError as error:
        if rules.gigabytes_a_day:
            text = (
                f"rule gigabytes-a-day: the count cannot be written to scratch ({error.strerror}); make room"
            )
            raise RuleError(text) from None
