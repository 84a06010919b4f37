"""Budgets: what tenants have spent and reserved. Changed here and nowhere else."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
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
DIGITS = 9
"""Of a dollar: what sums of floats differ by beyond them is no money."""

_OPEN = {
    "sqlite": sqlite.insert(budgets).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(budgets).on_conflict_do_nothing(),
}
_IT = and_(budgets.c.tenant == bindparam("of"), budgets.c.period == bindparam("within"))
_STANDING = select(budgets.c.reserved_usd, budgets.c.spent_usd).where(_IT).with_for_update()
_MOVE = (
    update(budgets)
    .where(_IT)
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
    """What a tenant may spend in a period."""

    usd: float
    period: Period


def period_key(period: Period, at: datetime) -> str:
    """The name of the period that a time is in, UTC: `2026-11-24`, `2026-11`, `total`."""
    return at.astimezone(UTC).strftime(_KEYS[period])


def period_start(period: Period, at: datetime) -> datetime | None:
    """When the period began that a time is in; None of the one that never began."""
    day = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return {"day": day, "month": day.replace(day=1), "total": None}[period]


class Budgets:
    """The `budgets` and `reservations` tables.

    A prompt reserves the most that it can cost in the transaction that stores it, and its outcome turns the
    reservation into what was spent. A budget's row is locked while it is decided on, so that several ingests
    never promise the same money twice.
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
        """Load the prices, if there is a budget: it takes a second, and a commit shall not wait for it."""
        if self._caps:
            await self._known()

    def reserve_in(
        self, connection: Connection, prompts: Sequence[Prompt]
    ) -> dict[str, RefusedError]:
        """Reserve for prompts that are stored in this transaction. Returns, by fusion, why some may not be.

        Only after `start`.
        """
        refused: dict[str, RefusedError] = {}
        asked: dict[tuple[str, str], list[tuple[Prompt, float]]] = defaultdict(list)
        for prompt in prompts:
            cap = self._caps.get(prompt.tenant)
            if cap is None:
                continue
            assert self._book is not None
            found = estimate(prompt, self._book)
            if found.usd_max is None:
                refused[prompt.fusion_id] = _unpriced(prompt.tenant, found.unpriced)
            else:
                usd = round(found.usd_max, DIGITS)
                asked[prompt.tenant, period_key(cap.period, prompt.submitted_at)].append(
                    (prompt, usd)
                )
        # Whoever locks several budgets locks them in one order.
        for tenant, period in sorted(asked):
            refused |= self._reserve(connection, tenant, period, asked[tenant, period])
        return refused

    async def spent(self, tenant: str, since: datetime | None) -> float:
        """What a tenant's outcomes since a time have cost, USD; unknown prices count as nothing."""
        asked = select(func.coalesce(func.sum(outcomes.c.cost_usd), 0.0)).where(
            outcomes.c.tenant == tenant
        )
        if since is not None:
            asked = asked.where(outcomes.c.submitted_at >= since)
        async with self._store.read() as connection:
            return float((await connection.execute(asked)).scalar_one())

    async def _known(self) -> Catalogue:
        async with self._loading:
            if self._book is None:
                self._book = await self._load()
        return self._book

    def _reserve(
        self,
        connection: Connection,
        tenant: str,
        period: str,
        asked: Sequence[tuple[Prompt, float]],
    ) -> dict[str, RefusedError]:
        cap, name = self._caps[tenant].usd, {"of": tenant, "within": period}
        connection.execute(_OPEN[connection.dialect.name], _opened(tenant, period))
        reserved, spent = connection.execute(_STANDING, name).one()
        refused: dict[str, RefusedError] = {}
        rows = []
        more = 0.0
        for prompt, usd in asked:
            if round(spent + reserved + more + usd, DIGITS) > cap:
                refused[prompt.fusion_id] = _over(
                    tenant, period, usd, (spent, reserved + more), cap
                )
            else:
                more += usd
                rows.append(
                    {"fusion_id": prompt.fusion_id, "tenant": tenant, "period": period, "usd": usd}
                )
        if rows:
            connection.execute(insert(reservations), rows)
            connection.execute(_MOVE, {**name, "reserved": more, "spent": 0.0})
        return refused

    async def settle(self) -> int:
        """Turn reservations whose outcome exists into what was spent; returns how many, at most SETTLE_MOST.

        An outcome whose cost is not known has cost what was reserved. Raises Transient.
        """
        async with self._store.read() as connection:
            if (await connection.execute(_DUE.limit(1))).first() is None:
                return 0
        async with self._store.write() as connection:
            costs = {row.fusion_id: row.cost_usd for row in await connection.execute(_DUE)}
            # Only who removes a reservation may count it.
            taken = (await connection.execute(_TAKE, {"keys": list(costs)})).all()
            moved: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
            for row in taken:
                cost = costs[row.fusion_id]
                moved[row.tenant, row.period].append((row.usd, row.usd if cost is None else cost))
            for tenant, period in sorted(moved):
                freed = sum(usd for usd, _ in moved[tenant, period])
                spent = sum(cost for _, cost in moved[tenant, period])
                await connection.execute(
                    _MOVE, {"of": tenant, "within": period, "reserved": -freed, "spent": spent}
                )
            return len(taken)

    async def settle_late(self) -> int:
        """Count what came after its outcome as spent; returns of how many calls. Raises Transient."""
        async with self._store.read() as connection:
            if (await connection.execute(_LATE.limit(1))).first() is None:
                return 0
        async with self._store.write() as connection:
            of = {
                row.fusion_id: (row.tenant, row.submitted_at)
                for row in await connection.execute(_LATE)
            }
            # As above.
            taken = (await connection.execute(_TAKE_LATE, {"keys": list(of)})).all()
            spent: dict[tuple[str, str], float] = defaultdict(float)
            for row in taken:
                tenant, submitted_at = of[row.fusion_id]
                if cap := self._caps.get(tenant):
                    spent[tenant, period_key(cap.period, submitted_at)] += row.usd
            for tenant, period in sorted(spent):
                await connection.execute(_OPEN[connection.dialect.name], _opened(tenant, period))
                more = {"reserved": 0.0, "spent": spent[tenant, period]}
                await connection.execute(_MOVE, {"of": tenant, "within": period, **more})
            return len(taken)


def _opened(tenant: str, period: str) -> dict[str, str | float]:
    """The row of a period in which nothing has been spent yet."""
    return {"tenant": tenant, "period": period, "reserved_usd": 0.0, "spent_usd": 0.0}


def _unpriced(tenant: str, models: Sequence[str]) -> RefusedError:
    named = ", ".join(f"'{model}'" for model in models)
    return RefusedError(
        "price_unknown",
        f"tenant '{tenant}' has a budget, and the price of {named} is not known; the operator can set "
        "input_usd_per_mtok and output_usd_per_mtok for it (0 where it costs nothing)",
    )


def _over(
    tenant: str, period: str, usd: float, standing: tuple[float, float], cap: float
) -> RefusedError:
    spent, reserved = standing
    return RefusedError(
        "budget_exceeded",
        f"this may cost up to {usd:.6f} USD, and tenant '{tenant}' has {max(cap - spent - reserved, 0.0):.6f} left in "
        f"{period}: {spent:.6f} spent and {max(reserved, 0.0):.6f} reserved of {cap:.6f}; what is reserved is settled "
        "when it ends; lower max_tokens, or ask the operator for a higher budget_usd",
    )
