"""Limits of budgets: those of the configuration, and the table `budget_limits`, which wins."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import chain

from sqlalchemy import Connection, Delete, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.audit import Action, insert_action
from fusewire.store.engine import Store
from fusewire.store.tables import api_keys, budget_limits, budgets
from fusewire_ingest.admission.budgets import (
    BudgetLimit,
    Period,
    key_account,
    pool_account,
    split_account,
)

READ_EVERY_S = 3.0
"""How old limits may be that a commit goes by: a change holds everywhere within 5 s."""

_FIRST_KEY = select(api_keys.c.first_key_id).where(api_keys.c.key_id == bindparam("id"))


class BudgetLimits:
    """The limits of all accounts, as they were read last.

    Args:
        store: the database.
        limits: those of the configuration.
        monotonic: a clock, s.
    """

    def __init__(
        self,
        store: Store,
        limits: Sequence[BudgetLimit],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._file_limits = limits
        self._monotonic = monotonic
        self._read_at: float | None = None
        self._by_account: Mapping[str, Sequence[BudgetLimit]] = {}
        self._has_keys = False
        self._first_keys: dict[str, str] = {}
        """By key: the first of the keys that replaced each other up to it."""

    async def read(self) -> None:
        """Read the limits, unless they were within `READ_EVERY_S`. Raises Transient."""
        now = self._monotonic()
        if self._read_at is not None and now - self._read_at < READ_EVERY_S:
            return
        async with self._store.read() as connection:
            rows = (await connection.execute(select(budget_limits))).all()
        sql_limits = [
            BudgetLimit(row.account, row.period, row.hard_usd, row.soft_usd) for row in rows
        ]
        all_limits = (*self._file_limits, *sql_limits)
        limits = {(limit.account, limit.period): limit for limit in all_limits}
        self._by_account = _group(_with_days_of_keys(limits))
        self._has_keys = any(split_account(account)[0] == "key" for account in self._by_account)
        self._read_at = now

    @property
    def is_empty(self) -> bool:
        """Whether no account has a limit."""
        return not self._by_account

    def all(self) -> list[BudgetLimit]:
        """List all limits, sorted by account."""
        return list(chain.from_iterable(self._by_account[key] for key in sorted(self._by_account)))

    def of(self, account: str) -> Sequence[BudgetLimit]:
        """The limits of an account."""
        return self._by_account.get(account, ())

    def of_prompt_in(
        self, connection: Connection, tenant: str, pool: str, key_id: str | None
    ) -> list[BudgetLimit]:
        """The limits that a prompt has to fit: those of its tenant, its pool and its key."""
        accounts = [tenant, pool_account(pool)]
        if key_id is not None and self._has_keys:
            accounts.append(self.account_of_key_in(connection, key_id))
        return list(chain.from_iterable(self.of(account) for account in accounts))

    def account_of_key_in(self, connection: Connection, key_id: str) -> str:
        """The account of a key: that of the first key of those that replaced each other."""
        if key_id not in self._first_keys:
            self._first_keys[key_id] = _first_key_in(connection, key_id)
        return key_account(self._first_keys[key_id])

    async def change(self, limit: BudgetLimit, at: datetime, actor: str) -> None:
        """Store a limit, and enter it in the audit log. Raises Transient.

        What was reported of this account's period is reported again when it happens again.
        """
        detail = {"period": limit.period, "usd": limit.hard_usd, "soft_usd": limit.soft_usd}
        async with self._store.write() as connection:
            await store_limit(connection, limit, at)
            await connection.execute(insert_action(_set_action(limit.account, at, actor, detail)))

    async def remove(self, account: str, period: Period, at: datetime, actor: str) -> bool:
        """Remove a stored limit, and enter that in the audit log. Raises Transient.

        Returns:
            Whether there was one.
        """
        async with self._store.write() as connection:
            if not (await connection.execute(_deletion(account, period))).rowcount:
                return False
            detail = {"period": period, "usd": None, "soft_usd": None}
            await connection.execute(insert_action(_set_action(account, at, actor, detail)))
            return True


async def store_limit(connection: AsyncConnection, limit: BudgetLimit, at: datetime) -> None:
    """Store a limit in place of the one of its account and period.

    What was reported of this period is reported again when it happens again.
    """
    await connection.execute(_deletion(limit.account, limit.period))
    await connection.execute(
        insert(budget_limits).values(
            account=limit.account,
            period=limit.period,
            soft_usd=limit.soft_usd,
            hard_usd=limit.hard_usd,
            changed_at=at,
        )
    )
    account, period = limit.key(at)
    reset = update(budgets).where(budgets.c.account == account, budgets.c.period == period)
    await connection.execute(reset.values(soft_passed_at=None, hard_reached_at=None))


def _deletion(account: str, period: Period) -> Delete:
    return delete(budget_limits).where(
        budget_limits.c.account == account, budget_limits.c.period == period
    )


def _set_action(account: str, at: datetime, actor: str, detail: Mapping[str, object]) -> Action:
    kind, name = split_account(account)
    tenant = name if kind == "tenant" else None
    return Action(at, actor, "budget.set", tenant=tenant, target=account, detail=detail)


def _with_days_of_keys(
    limits: Mapping[tuple[str, Period], BudgetLimit],
) -> dict[tuple[str, Period], BudgetLimit]:
    """The limits, and a count by day for each key that has one.

    Outcomes do not tell by which key they came, so `GET /key` has a key's usage from these days.
    """
    counts: dict[tuple[str, Period], BudgetLimit] = {
        (account, "day"): BudgetLimit(account, "day")
        for account, _ in limits
        if split_account(account)[0] == "key"
    }
    return {**counts, **limits}


def _group(limits: Mapping[tuple[str, Period], BudgetLimit]) -> dict[str, list[BudgetLimit]]:
    by_account: dict[str, list[BudgetLimit]] = defaultdict(list)
    for key in sorted(limits):
        by_account[key[0]].append(limits[key])
    return by_account


def _first_key_in(connection: Connection, key_id: str) -> str:
    return connection.execute(_FIRST_KEY, {"id": key_id}).scalar() or key_id
