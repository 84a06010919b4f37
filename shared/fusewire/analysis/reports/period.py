"""Periods of UTC days, as `--since` and `--vs` give them."""

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta

HOURS = {"h": 1, "d": 24, "w": 168}
MOST_DAYS = 3660


@dataclass(frozen=True)
class Period:
    """UTC days from `first` to `last`, both included. None: from the beginning."""

    first: date | None
    last: date

    def __str__(self) -> str:
        """The period in words."""
        return f"{self.first or 'the beginning'} to {self.last}"


def parse_first_day(text: str, now: datetime) -> date:
    """The UTC day with which a period begins: `7d`, `24h`, `2w` or `2026-11-01`.

    A length goes back from now, and on to the beginning of that UTC day, so that a period is never
    shorter than asked for.

    Args:
        text: as the user wrote it.
        now: in UTC.

    Raises:
        ValueError: it is none of these, or not in the past. Says how to write it.
    """
    text = text.strip().lower()
    if match := re.fullmatch(r"([1-9]\d{0,4})([hdw])", text):
        length = timedelta(hours=int(match[1]) * HOURS[match[2]])
        if length.days > MOST_DAYS:
            raise ValueError(f"'{text}' is more than {MOST_DAYS} days: give a later day")
        return (now - length).date()
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"'{text[:40]}' is no period: write 7d, 24h, 2w or 2026-11-01") from None
    if day > now.date():
        raise ValueError(f"{day} is in the future: today is {now.date()} in UTC")
    return day


def parse_periods(since: str, vs: str, now: datetime) -> tuple[Period, Period]:
    """A recent period, and an earlier one that ends where the recent one begins.

    Args:
        since: the recent period, until now.
        vs: the earlier period. A length is its own length, so `7d` and `28d` make 35 days.
        now: in UTC.

    Raises:
        ValueError: either is no period, or the earlier one does not begin before the recent one.
    """
    recent = Period(parse_first_day(since, now), now.date())
    assert recent.first is not None
    midnight = datetime.combine(recent.first, datetime.min.time(), now.tzinfo)
    try:
        first = parse_first_day(vs, midnight)
    except ValueError as exc:
        if "future" not in str(exc):
            raise
        first = recent.first
    if first >= recent.first:
        raise ValueError(
            f"the earlier period must begin before {recent.first}, with which the recent one begins"
        )
    return recent, Period(first, recent.first - timedelta(days=1))
