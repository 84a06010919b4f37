"""What tenants' outcomes have cost so far, by day, week, month and in total."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, case, func, select

from fusewire.store.engine import Store
from fusewire.store.tables import outcomes
from fusewire_ingest.admission.budgets import period_start


def period_starts(now: datetime) -> dict[str, datetime | None]:
    """The starts of the day, week (from Monday) and month that a time is in, UTC; None for all."""
    day = period_start("day", now)
    assert day is not None
    return {
        "day": day,
        "week": day - timedelta(days=day.weekday()),
        "month": period_start("month", now),
        "total": None,
    }


class TenantCost:
    """Sums of the costs of outcomes, USD; unknown ones count as zero.

    A tenant may have millions of outcomes, and their costs do not change. So those of the days
    before are added up once a day, by each process. What was deleted since is still counted then.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._earlier: dict[str, tuple[datetime, Mapping[str, float]]] = {}
        """By tenant: the beginning of the day before which these are the sums, by period."""

    async def by_period(self, tenant: str, now: datetime) -> dict[str, float]:
        """The costs of the periods of `period_starts` so far. Raises Transient."""
        starts = period_starts(now)
        today = starts["day"]
        assert today is not None
        day, earlier = self._earlier.get(tenant, (None, {}))
        if day != today:
            earlier = await self._sums(tenant, starts, outcomes.c.finished_at < today)
            self._earlier[tenant] = today, earlier
        sums = await self._sums(tenant, {"day": today}, outcomes.c.finished_at >= today)
        return {name: earlier[name] + sums["day"] for name in starts}

    async def _sums(
        self, tenant: str, starts: Mapping[str, datetime | None], is_included: ColumnElement[bool]
    ) -> dict[str, float]:
        """Sums since each start, in one pass."""
        query = select(
            *(
                func.coalesce(func.sum(_cost_since(start)), 0.0).label(name)
                for name, start in starts.items()
            )
        ).where(outcomes.c.tenant == tenant, is_included)
        async with self._store.read() as connection:
            row = (await connection.execute(query)).mappings().one()
        return {name: float(usd) for name, usd in row.items()}


def _cost_since(start: datetime | None) -> ColumnElement[float]:
    cost: ColumnElement[float] = outcomes.c.cost_usd
    return cost if start is None else case((outcomes.c.finished_at >= start, cost), else_=0.0)
