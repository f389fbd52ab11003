from datetime import UTC, datetime, tzinfo

import pytest

from client.doctor import connection as connection_checks


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """The time at which the doctor's clock stands: a busy machine takes seconds for an exchange."""
    moment = datetime.now(UTC)

    class StandingClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return moment

    monkeypatch.setattr(connection_checks, "datetime", StandingClock)
    return moment
