"""The time of a click as logs write it: ISO 8601, seconds since 1970 or parts of them, or as in mails."""

from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN_EPOCH = datetime(1970, 1, 1)
_MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
LATEST = 4_102_444_800 * 1_000_000  # 2100-01-01: whoever says a later time has another unit in mind


def microseconds(value: Any) -> int:
    """Since 1970, UTC; a time without a zone is taken as UTC. ValueError: no time between 1970 and 2100."""
    if isinstance(value, datetime):
        found = _since_epoch(value)
    elif isinstance(value, date):
        found = _since_epoch(datetime(value.year, value.month, value.day))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = _of_number(float(value))
    else:
        found = _of_text(str(value).strip())
    if not 0 < found < LATEST:
        raise ValueError("expected a time between 1970 and 2100")
    return found


def _of_text(text: str) -> int:
    try:
        return _since_epoch(datetime.fromisoformat(text))
    except ValueError:
        pass
    try:
        if text.endswith(" UTC"):
            return _since_epoch(datetime.fromisoformat(text[:-4]))
        number = float(text)
    except ValueError:
        try:
            return _since_epoch(parsedate_to_datetime(text))
        except (ValueError, TypeError, IndexError, OverflowError):
            raise ValueError("expected a time such as 2026-11-01T09:30:00+01:00, or seconds since 1970") from None
    return _of_number(number)


def _since_epoch(moment: datetime) -> int:
    passed = moment - (_EPOCH if moment.tzinfo else _PLAIN_EPOCH)
    return (passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds


def _of_number(number: float) -> int:
    """Seconds, milliseconds, microseconds or nanoseconds, whichever lies before 2100."""
    if not abs(number) < 1e20:
        raise ValueError("expected a time between 1970 and 2100")
    for factor in _MICROSECONDS.values():
        if number * factor < LATEST:
            return int(number * factor)
    return int(number / 1000)
