"""Budgets in SQL: what tenants have spent and reserved. Written here and nowhere else."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Connection, and_, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fusewire.contracts import Prompt
from fusewire.store.engine import Store
from fusewire.store.tables import budgets, late_costs, outcomes, prompts, reservations
from fusewire_ingest.admission.estimate import Catalogue, estimate
from fusewire_ingest.admission.refusal import RefusedError

SETTLE_MOST = 500
"""The most reservations that one transaction settles."""
DIGITS = 9
"""Decimals to which dollars are rounded, so that errors of float sums do not count as money."""

_OPEN = {
    "sqlite": sqlite.insert(budgets).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(budgets).on_conflict_do_nothing(),
}
# Parameters must not be named like the columns: SQLAlchemy reserves those names in an UPDATE.
_IS_BUDGET = and_(budgets.c.account == bindparam("of"), budgets.c.period == bindparam("within"))
_BALANCE = select(budgets.c.reserved_usd, budgets.c.spent_usd).where(_IS_BUDGET).with_for_update()
_MOVE = (
    update(budgets)
    .where(_IS_BUDGET)
    .values(
        reserved_usd=budgets.c.reserved_usd + bindparam("reserved"),
        spent_usd=budgets.c.spent_usd + bindparam("spent"),
    )
)
_DUE = (
    select(reservations.c.fusion_id, outcomes.c.cost_usd)
    .join(outcomes, outcomes.c.fusion_id == reservations.c.fusion_id)
    .order_by(reservations.c.fusion_id)
    .limit(SETTLE_MOST)
    # Another replica is settling those that are locked.
    .with_for_update(skip_locked=True, of=reservations)
)
_TAKE = (
    delete(reservations)
    .where(reservations.c.fusion_id.in_(bindparam("keys", expanding=True)))
    .returning(
        reservations.c.fusion_id, reservations.c.tenant, reservations.c.period, reservations.c.usd
    )
)
_LATE = (
    select(late_costs.c.fusion_id, prompts.c.tenant, prompts.c.submitted_at)
    .join(prompts, prompts.c.fusion_id == late_costs.c.fusion_id)
    .limit(SETTLE_MOST)
)
_TAKE_LATE = (
    delete(late_costs)
    .where(late_costs.c.fusion_id.in_(bindparam("keys", expanding=True)))
    .returning(late_costs.c.fusion_id, late_costs.c.usd)
)

Period = Literal["day", "month", "total"]
_KEYS: dict[Period, str] = {"day": "%Y-%m-%d", "month": "%Y-%m", "total": "total"}


@dataclass(frozen=True)
class Budget:
    """The most that a tenant may spend in a period, USD."""

    usd: float
    period: Period


@dataclass(frozen=True)
class Balance:
    """What a tenant may spend in a period, and has spent and reserved of it, USD."""

    limit_usd: float
    spent_usd: float = 0.0
    reserved_usd: float = 0.0


def period_key(period: Period, at: datetime) -> str:
    """The name of the period that a time is in, UTC.

    >>> at = datetime(2026, 11, 24, 8, tzinfo=UTC)
    >>> period_key("day", at), period_key("month", at), period_key("total", at)
    ('2026-11-24', '2026-11', 'total')
    """
    return at.astimezone(UTC).strftime(_KEYS[period])


def period_start(period: Period, at: datetime) -> datetime | None:
    """The start of the period that a time is in, UTC; None for `total`."""
    if period == "total":
        return None
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day if period == "day" else day.replace(day=1)


class Budgets:
    """The `budgets` and `reservations` tables.

    A prompt reserves the most that it can cost, in the transaction that stores it. Once it has an
    outcome, the reservation is settled: replaced by what was spent. A budget's row is locked while
    it is checked, so that several ingest processes never reserve the same money twice
    (docs/decisions/0025).

    Args:
        store: the database.
        caps: the budgets, by tenant; other tenants may spend without limit.
        book: loads the prices.
    """

    def __init__(
        self, store: Store, caps: Mapping[str, Budget], book: Callable[[], Awaitable[Catalogue]]
    ) -> None:
        self._store = store
        self._caps = caps
        self._load = book
        self._book: Catalogue | None = None
        self._loading = asyncio.Lock()

    async def start(self) -> None:
        """Load the prices if there is a budget; it takes a second, and commits must not wait."""
        if not self._caps:
            return
        async with self._loading:
            if self._book is None:
                self._book = await self._load()

    def reserve_in(
        self, connection: Connection, prompts: Sequence[Prompt]
    ) -> dict[str, RefusedError]:
        """Reserve the highest cost of prompts that are stored in this transaction, after `start`.

        Returns:
            By fusion, why a prompt may not be accepted; nothing is reserved for it.
        """
        refusals: dict[str, RefusedError] = {}
        requests: dict[tuple[str, str], list[tuple[Prompt, float]]] = defaultdict(list)
        for prompt in prompts:
            cap = self._caps.get(prompt.tenant)
            if cap is None:
                continue
            assert self._book is not None
            cost = estimate(prompt, self._book)
            if cost.usd_max is None:
                refusals[prompt.fusion_id] = _unknown_price(prompt.tenant, cost.unpriced)
                continue
            period = period_key(cap.period, prompt.submitted_at)
            requests[prompt.tenant, period].append((prompt, round(cost.usd_max, DIGITS)))
        # Sorted: transactions that lock several budgets must lock them in the same order.
        for tenant, period in sorted(requests):
            refusals |= self._reserve(connection, tenant, period, requests[tenant, period])
        return refusals

    async def balances(self, at: datetime) -> dict[str, Balance]:
        """The budgets in the periods that a time is in, by tenant. Raises Transient."""
        if not self._caps:
            return {}
        keys = {tenant: period_key(cap.period, at) for tenant, cap in self._caps.items()}
        query = select(budgets).where(
            budgets.c.account.in_(keys), budgets.c.period.in_(set(keys.values()))
        )
        async with self._store.read() as connection:
            rows = {(row.account, row.period): row for row in await connection.execute(query)}
        balances = {tenant: Balance(cap.usd) for tenant, cap in self._caps.items()}
        for key in rows.keys() & keys.items():
            row = rows[key]
            balances[row.account] = replace(
                balances[row.account], spent_usd=row.spent_usd, reserved_usd=row.reserved_usd
            )
        return balances

    async def cost_since(self, tenant: str, since: datetime | None) -> float:
        """Sum the costs of a tenant's outcomes since a time, USD; unknown ones count as zero."""
        query = select(func.coalesce(func.sum(outcomes.c.cost_usd), 0.0)).where(
            outcomes.c.tenant == tenant
        )
        if since is not None:
            query = query.where(outcomes.c.submitted_at >= since)
        async with self._store.read() as connection:
            return float((await connection.execute(query)).scalar_one())

    def _reserve(
        self,
        connection: Connection,
        tenant: str,
        period: str,
        requests: Sequence[tuple[Prompt, float]],
    ) -> dict[str, RefusedError]:
        """Reserve costs in a tenant's period; returns, by fusion, why some do not fit."""
        cap_usd, key = self._caps[tenant].usd, {"of": tenant, "within": period}
        connection.execute(_OPEN[connection.dialect.name], _empty_budget(tenant, period))
        reserved_usd, spent_usd = connection.execute(_BALANCE, key).one()
        refusals: dict[str, RefusedError] = {}
        rows = []
        added_usd = 0.0
        for prompt, usd in requests:
            if round(spent_usd + reserved_usd + added_usd + usd, DIGITS) > cap_usd:
                balance = (spent_usd, reserved_usd + added_usd)
                refusals[prompt.fusion_id] = _budget_exceeded(tenant, period, usd, balance, cap_usd)
            else:
                added_usd += usd
                rows.append(
                    {"fusion_id": prompt.fusion_id, "tenant": tenant, "period": period, "usd": usd}
                )
        if rows:
            connection.execute(insert(reservations), rows)
            connection.execute(_MOVE, {**key, "reserved": added_usd, "spent": 0.0})
        return refusals

    async def settle(self) -> int:
        """Settle reservations of fusions that have an outcome; returns how many.

        At most SETTLE_MOST are settled. If the cost of an outcome is not known, the reserved amount
        counts as spent. Raises Transient.
        """
        async with self._store.read() as connection:
            # Read first: a write would queue for SQLite's lock, mostly for nothing.
            if (await connection.execute(_DUE.limit(1))).first() is None:
                return 0
        async with self._store.write() as connection:
            costs = {row.fusion_id: row.cost_usd for row in await connection.execute(_DUE)}
            # Only the transaction that deletes a reservation may count its cost.
            deleted_rows = (await connection.execute(_TAKE, {"keys": list(costs)})).all()
            reserved_usd: dict[tuple[str, str], float] = defaultdict(float)
            spent_usd: dict[tuple[str, str], float] = defaultdict(float)
            for row in deleted_rows:
                cost = costs[row.fusion_id]
                reserved_usd[row.tenant, row.period] += row.usd
                spent_usd[row.tenant, row.period] += row.usd if cost is None else cost
            for budget in sorted(reserved_usd):
                tenant, period = budget
                change = {"reserved": -reserved_usd[budget], "spent": spent_usd[budget]}
                await connection.execute(_MOVE, {"of": tenant, "within": period, **change})
            return len(deleted_rows)

    async def settle_late(self) -> int:
        """Count the costs of calls that ended after their outcome as spent.

        Returns how many calls, at most SETTLE_MOST. Raises Transient.
        """
        async with self._store.read() as connection:
            if (await connection.execute(_LATE.limit(1))).first() is None:
                return 0
        async with self._store.write() as connection:
            submissions = {
                row.fusion_id: (row.tenant, row.submitted_at)
                for row in await connection.execute(_LATE)
            }
            # Only the transaction that deletes a cost may count it.
            deleted_rows = (await connection.execute(_TAKE_LATE, {"keys": list(submissions)})).all()
            spent_usd: dict[tuple[str, str], float] = defaultdict(float)
            for row in deleted_rows:
                tenant, submitted_at = submissions[row.fusion_id]
                if cap := self._caps.get(tenant):
                    spent_usd[tenant, period_key(cap.period, submitted_at)] += row.usd
            for tenant, period in sorted(spent_usd):
                await connection.execute(
                    _OPEN[connection.dialect.name], _empty_budget(tenant, period)
                )
                change = {"reserved": 0.0, "spent": spent_usd[tenant, period]}
                await connection.execute(_MOVE, {"of": tenant, "within": period, **change})
            return len(deleted_rows)


def _empty_budget(tenant: str, period: str) -> dict[str, str | float]:
    """The row of a period in which nothing has been spent yet."""
    return {"account": tenant, "period": period, "reserved_usd": 0.0, "spent_usd": 0.0}


def _unknown_price(tenant: str, models: Sequence[str]) -> RefusedError:
    names = ", ".join(f"'{model}'" for model in models)
    return RefusedError(
        "price_unknown",
        f"tenant '{tenant}' has a budget, and the price of {names} is not known; the operator can "
        "set input_usd_per_mtok and output_usd_per_mtok for it (0 where it costs nothing)",
    )


def _budget_exceeded(
    tenant: str, period: str, usd: float, balance: tuple[float, float], cap_usd: float
) -> RefusedError:
    spent_usd, reserved_usd = balance
    free_usd = max(cap_usd - spent_usd - reserved_usd, 0.0)
    return RefusedError(
        "budget_exceeded",
        f"this may cost up to {usd:.6f} USD, and tenant '{tenant}' has {free_usd:.6f} left in "
        f"{period}: {spent_usd:.6f} spent and {max(reserved_usd, 0.0):.6f} reserved of "
        f"{cap_usd:.6f}; what is reserved is settled when it ends; lower max_tokens, or ask the "
        "operator for a higher budget_usd",
    )
