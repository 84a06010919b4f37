"""How far to look back, as `--since` gives it to every command that has it."""

import re
from datetime import UTC, datetime, timedelta

HOURS = {"h": 1, "d": 24, "w": 168}
MOST_DAYS = 3660
FORMS = "12h, 7d, 2w, 2026-11-01 or 2026-11-01T08:00"


class FutureError(ValueError):
    """A period would begin in the future."""


def parse_time(text: str, now: datetime) -> datetime:
    """The time with which a period begins, in UTC: `12h`, `7d`, `2w`, an ISO 8601 date or time.

    A time that names no zone is in UTC.

    >>> parse_time("2d", datetime(2026, 1, 3, tzinfo=UTC)).isoformat()
    '2026-01-01T00:00:00+00:00'

    Args:
        text: as the user wrote it.
        now: from where lengths go back.

    Raises:
        FutureError: it is not in the past.
        ValueError: it is none of these, or too long ago. Says how to write it.
    """
    text = text.strip()
    if match := re.fullmatch(r"([1-9]\d{0,4})([hdw])", text.lower()):
        length = timedelta(hours=int(match[1]) * HOURS[match[2]])
        if length.days > MOST_DAYS:
            raise ValueError(f"'{text}' is more than {MOST_DAYS} days: give a later day")
        return now - length
    try:
        time = datetime.fromisoformat(text)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"'{text[:40]}' is no period: write {FORMS}") from None
    if time > now:
        raise FutureError(f"{text} is in the future: now is {now:%Y-%m-%d %H:%M} in UTC")
    return time
