"""Limits of what API keys may spend, as their managers set them. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from fusewire_ingest.admission.budgets import PERIODS, Period


@dataclass(frozen=True)
class KeyLimit:
    """The most that a key may spend in each period, USD."""

    usd: float
    period: Period

    def __str__(self) -> str:
        every = "in total" if self.period == "total" else f"a {self.period}"
        return f"{self.usd:g} USD {every}"


def excess(limit: KeyLimit | None, own_limits: Iterable[KeyLimit]) -> KeyLimit | None:
    """Which of a manager's own limits a key's limit does not keep, if there is one.

    The same amount for a longer period is less.

    >>> own = [KeyLimit(10, "day")]
    >>> excess(KeyLimit(10, "month"), own), excess(KeyLimit(11, "month"), own)
    (None, KeyLimit(usd=10, period='day'))
    >>> excess(None, own)
    KeyLimit(usd=10, period='day')
    """
    for own in own_limits:
        is_shorter = limit and PERIODS.index(limit.period) < PERIODS.index(own.period)
        if limit is None or limit.usd > own.usd or is_shorter:
            return own
    return None
