"""Periods of UTC days, as `--since` and `--vs` give them."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from fusewire.analysis.period import FutureError, parse_time


@dataclass(frozen=True)
class Period:
    """UTC days from `first` to `last`, both included. None: from the beginning."""

    first: date | None
    last: date

    def __str__(self) -> str:
        """The period in words."""
        return f"{self.first or 'the beginning'} to {self.last}"


def parse_period(since: str | None, now: datetime) -> Period:
    """The UTC days since a time, which `parse_time` reads, until now; all days for None.

    The day of that time is in it, so that a period is never shorter than asked for.

    Raises:
        ValueError: it is no period. Says how to write it.
    """
    return Period(parse_time(since, now).date() if since is not None else None, now.date())


def parse_periods(since: str, vs: str, now: datetime) -> tuple[Period, Period]:
    """A recent period, and an earlier one that ends where the recent one begins.

    Args:
        since: the recent period, until now.
        vs: the earlier period. A length is its own length, so `7d` and `28d` make 35 days.
        now: in UTC.

    Raises:
        ValueError: either is no period, or the earlier one does not begin before the recent one.
    """
    recent = parse_period(since, now)
    assert recent.first is not None
    midnight = datetime.combine(recent.first, datetime.min.time(), now.tzinfo)
    try:
        first = parse_time(vs, midnight).date()
    except FutureError:
        first = recent.first
    if first >= recent.first:
        raise ValueError(
            f"the earlier period must begin before {recent.first}, with which the recent one begins"
        )
    return recent, Period(first, recent.first - timedelta(days=1))
