"""Accounts of spending, their limits, and the periods that those hold in. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Period = Literal["day", "month", "total"]
PERIODS: tuple[Period, ...] = ("day", "month", "total")
"""From the shortest to the longest."""

BudgetKey = tuple[str, str]
"""An account, and the name of a period (`period_name`)."""

TOKENS_PER_MTOK = 1_000_000
DIGITS = 9
"""Decimals to which dollars are rounded, so that errors of float sums do not count as money."""

_KEY = "key:"
_POOL = "pool:"
_NAMES: dict[Period, str] = {"day": "%Y-%m-%d", "month": "%Y-%m", "total": "total"}


def key_account(key_id: str) -> str:
    """The account of an API key, by the id of the first key of those that replaced each other."""
    return _KEY + key_id


def pool_account(pool: str) -> str:
    """The account of a pool, which all tenants share."""
    return _POOL + pool


def split_account(account: str) -> tuple[Literal["tenant", "key", "pool"], str]:
    """The kind of an account, and the name or id of whose it is.

    >>> split_account("acme"), split_account("key:4f"), split_account("pool:default")
    (('tenant', 'acme'), ('key', '4f'), ('pool', 'default'))
    """
    if account.startswith(_KEY):
        return "key", account.removeprefix(_KEY)
    if account.startswith(_POOL):
        return "pool", account.removeprefix(_POOL)
    return "tenant", account


def describe(account: str) -> str:
    """An account as messages name it.

    >>> describe("pool:default")
    "pool 'default'"
    """
    kind, name = split_account(account)
    return f"{kind} '{name}'"


@dataclass(frozen=True)
class BudgetLimit:
    """What an account may spend in each period, USD.

    Attributes:
        account: a tenant's name, or as `key_account` and `pool_account` make it.
        period: when spending begins anew.
        hard_usd: prompts that may cost more than is left are refused; None refuses none.
        soft_usd: spending beyond it is reported once a period; None reports nothing.
        is_configured: whether it comes from the configuration, and not from SQL.
    """

    account: str
    period: Period
    hard_usd: float | None = None
    soft_usd: float | None = None
    is_configured: bool = False

    def key(self, at: datetime) -> BudgetKey:
        """The account and the period that a time is in."""
        return self.account, period_name(self.period, at)


def period_name(period: Period, at: datetime) -> str:
    """The name of the period that a time is in, UTC.

    >>> at = datetime(2026, 11, 24, 8, tzinfo=UTC)
    >>> period_name("day", at), period_name("month", at), period_name("total", at)
    ('2026-11-24', '2026-11', 'total')
    """
    return at.astimezone(UTC).strftime(_NAMES[period])


def period_of(name: str) -> Period:
    """The kind of a period, by its name.

    >>> period_of("2026-11-24"), period_of("2026-11"), period_of("total")
    ('day', 'month', 'total')
    """
    if name == "total":
        return "total"
    return "month" if len(name) == len("2026-11") else "day"


def period_start(period: Period, at: datetime) -> datetime | None:
    """The start of the period that a time is in, UTC; None for `total`."""
    if period == "total":
        return None
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day if period == "day" else day.replace(day=1)
