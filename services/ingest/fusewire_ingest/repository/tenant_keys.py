"""API keys of a tenant with what they may spend, for those who manage them over HTTP."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.audit import insert_action
from fusewire.store.engine import Store
from fusewire.store.tables import api_keys, budget_limits, budgets
from fusewire_ingest.admission.budgets import BudgetLimit, Period
from fusewire_ingest.admission.key_limits import KeyLimit, excess
from fusewire_ingest.repository.budget_limits import store_limit
from fusewire_ingest.repository.keys import (
    Change,
    Key,
    KeyStateError,
    find_key,
    insert_key,
    set_key,
)

_TOTAL: Final[Period] = "total"


@dataclass(frozen=True)
class KeySpending:
    """What a key has spent and reserved, USD, as far as it is counted: for keys with a limit."""

    total_usd: float = 0.0
    spent_usd: Mapping[str, float] = field(default_factory=dict)
    """By the name of a period: `total`, a month, or a day of this week or this month."""
    reserved_usd: Mapping[str, float] = field(default_factory=dict)
    """Likewise."""


@dataclass(frozen=True)
class TenantKey:
    """A key, its hard limits and what it has spent."""

    key: Key
    limits: Sequence[KeyLimit] = ()
    spending: KeySpending = KeySpending()


@dataclass(frozen=True)
class KeyChange:
    """What of a key is changed; None leaves it as it is."""

    name: str | None = None
    is_revoked: bool | None = None
    limit_usd: float | None = None
    has_limit_usd: bool = False
    """Whether `limit_usd` holds; None then takes the limit away."""
    period: Period | None = None


class KeyAccessError(Exception):
    """The key that would change another is no longer valid."""


class KeyLimitError(Exception):
    """A limit above that of the key which sets it."""


class TenantKeys:
    """Keys of one tenant at a time, and `budget_limits` of their accounts.

    Every method raises Transient when the database does not answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(
        self, tenant: str, now: datetime, *, offset: int, limit: int, states: Collection[str]
    ) -> list[TenantKey]:
        """List keys, the newest first.

        Args:
            tenant: whose.
            now: the time.
            offset: how many to skip.
            limit: the most keys.
            states: `revoked` and `expired` list such keys too.
        """
        query = select(api_keys).where(api_keys.c.tenant == tenant)
        if "revoked" not in states:
            query = query.where(api_keys.c.revoked_at.is_(None))
        if "expired" not in states:
            query = query.where(or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > now))
        query = query.order_by(api_keys.c.created_at.desc(), api_keys.c.key_id)
        async with self._store.read() as connection:
            rows = (await connection.execute(query.offset(offset).limit(limit))).mappings()
            return await _with_budgets(connection, [Key(**row) for row in rows], now)

    async def get(self, tenant: str, key_id: str, now: datetime) -> TenantKey | None:
        """Read a key; None if the tenant has none of that id."""
        async with self._store.read() as connection:
            key = await find_key(connection, key_id)
            if key is None or key.tenant != tenant:
                return None
            return (await _with_budgets(connection, [key], now))[0]

    async def add(self, key: Key, limit: KeyLimit | None, manager_id: str, change: Change) -> None:
        """Store a key and its limit. It has the rate limits of the key that makes it.

        Raises:
            KeyAccessError: the manager's key is no longer valid.
            KeyLimitError: the limit is above the manager's own.
        """
        async with self._store.write() as connection:
            manager = await _find_manager(connection, manager_id, change.at)
            await _check_limit(connection, limit, manager)
            key = replace(
                key,
                requests_per_minute=manager.requests_per_minute,
                tokens_per_minute=manager.tokens_per_minute,
                prompts_in_flight=manager.prompts_in_flight,
            )
            await insert_key(connection, key, change, _limit_detail(limit) if limit else {})
            if limit:
                await _set_limit(connection, key.account, limit, change.at)

    async def update(
        self, tenant: str, key_id: str, key_change: KeyChange, manager_id: str, change: Change
    ) -> bool:
        """Change a key; returns whether the tenant has it.

        Raises:
            KeyAccessError: the manager's key is no longer valid.
            KeyStateError: it is revoked, and would have to be valid again.
            KeyLimitError: the limit would be above the manager's own.
        """
        async with self._store.write() as connection:
            manager = await _find_manager(connection, manager_id, change.at)
            key = await find_key(connection, key_id, for_update=True)
            if key is None or key.tenant != tenant:
                return False
            if key_change.is_revoked is False and key.revoked_at:
                raise KeyStateError(f"key '{key_id}' is revoked for ever; create another")
            detail: dict[str, Any] = {}
            if key_change.name is not None and key_change.name != key.name:
                detail["name"] = key_change.name
                await set_key(connection, key_id, name=key_change.name)
            detail |= await _update_limit(connection, key, key_change, manager, change.at)
            if detail:
                await connection.execute(insert_action(change.action("changed", key, detail)))
            if key_change.is_revoked and not key.revoked_at:
                await set_key(connection, key_id, revoked_at=change.at)
                await connection.execute(insert_action(change.action("revoked", key)))
            return True


async def _update_limit(
    connection: AsyncConnection, key: Key, key_change: KeyChange, manager: Key, at: datetime
) -> dict[str, Any]:
    """Change a key's limit; returns what the audit log tells of it."""
    if not key_change.has_limit_usd and key_change.period is None:
        return {}
    limits = (await _limits(connection, [key.account])).get(key.account, [])
    current = limits[0] if limits else None
    usd = current.usd if current else None
    if key_change.has_limit_usd:
        usd = key_change.limit_usd
    period = key_change.period or (current.period if current else _TOTAL)
    limit = None if usd is None else KeyLimit(usd, period)
    if limits == ([limit] if limit else []):
        return {}
    await _check_limit(connection, limit, manager)
    await _set_limit(connection, key.account, limit, at)
    return _limit_detail(limit)


def _limit_detail(limit: KeyLimit | None) -> dict[str, Any]:
    return {"limit_usd": limit and limit.usd, "limit_period": limit and limit.period}


async def _find_manager(connection: AsyncConnection, manager_id: str, at: datetime) -> Key:
    """Read the key of the manager, who was let in by what is remembered of it for seconds.

    Raises:
        KeyAccessError: it was revoked meanwhile: no other key must come of it.
    """
    manager = await find_key(connection, manager_id)
    if manager is None or not manager.is_valid(at):
        raise KeyAccessError
    return manager


async def _check_limit(connection: AsyncConnection, limit: KeyLimit | None, manager: Key) -> None:
    """Raise KeyLimitError if a limit is above the manager's own."""
    own_limits = (await _limits(connection, [manager.account])).get(manager.account, [])
    if own := excess(limit, own_limits):
        raise KeyLimitError(f"the key that sets it may itself spend {own}; set a limit within that")


async def _limits(
    connection: AsyncConnection, accounts: Collection[str]
) -> dict[str, list[KeyLimit]]:
    """The hard limits of accounts, from the shortest period to the longest."""
    query = (
        select(budget_limits)
        .where(budget_limits.c.account.in_(accounts), budget_limits.c.hard_usd.is_not(None))
        # As it happens, the order of the alphabet is that of their length.
        .order_by(budget_limits.c.period)
    )
    limits: dict[str, list[KeyLimit]] = {}
    for row in await connection.execute(query):
        limits.setdefault(row.account, []).append(KeyLimit(row.hard_usd, row.period))
    return limits


async def _set_limit(
    connection: AsyncConnection, account: str, limit: KeyLimit | None, at: datetime
) -> None:
    """Make this the only hard limit of an account; soft limits stay."""
    rows = select(budget_limits).where(budget_limits.c.account == account)
    soft_usd = {row.period: row.soft_usd for row in await connection.execute(rows)}
    period = limit.period if limit else None
    for other in soft_usd.keys() - {period}:
        await store_limit(connection, BudgetLimit(account, other, None, soft_usd[other]), at)
    if limit:
        own = BudgetLimit(account, limit.period, limit.usd, soft_usd.get(limit.period))
        await store_limit(connection, own, at)
    is_account = budget_limits.c.account == account
    is_empty = (budget_limits.c.hard_usd.is_(None), budget_limits.c.soft_usd.is_(None))
    await connection.execute(delete(budget_limits).where(is_account, *is_empty))


async def _with_budgets(
    connection: AsyncConnection, keys: Sequence[Key], now: datetime
) -> list[TenantKey]:
    accounts = {key.account for key in keys}
    if not accounts:
        return []
    limits = await _limits(connection, accounts)
    rows = select(budgets).where(
        budgets.c.account.in_(accounts), budgets.c.period.in_(_period_names(now))
    )
    spent_usd: dict[str, dict[str, float]] = {}
    reserved_usd: dict[str, dict[str, float]] = {}
    for row in await connection.execute(rows):
        spent_usd.setdefault(row.account, {})[row.period] = row.spent_usd
        reserved_usd.setdefault(row.account, {})[row.period] = row.reserved_usd
    # Days, months and the total are each counted where there is a limit of that period.
    kind = func.length(budgets.c.period)
    sums = (
        select(budgets.c.account, func.sum(budgets.c.spent_usd))
        .where(budgets.c.account.in_(accounts))
        .group_by(budgets.c.account, kind)
    )
    totals_usd: dict[str, float] = {}
    for account, usd in await connection.execute(sums):
        totals_usd[account] = max(usd, totals_usd.get(account, 0.0))
    return [
        TenantKey(
            key,
            limits.get(key.account, []),
            KeySpending(
                totals_usd.get(key.account, 0.0),
                spent_usd.get(key.account, {}),
                reserved_usd.get(key.account, {}),
            ),
        )
        for key in keys
    ]


def _period_names(now: datetime) -> list[str]:
    """The names of this month, of the total, and of the days of this week and this month."""
    today = now.astimezone(UTC).date()
    first_day = min(today.replace(day=1), today - timedelta(days=today.weekday()))
    days = (first_day + timedelta(days=n) for n in range((today - first_day).days + 1))
    return [_TOTAL, f"{today:%Y-%m}", *(day.isoformat() for day in days)]
