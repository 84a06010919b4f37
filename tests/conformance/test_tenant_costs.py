"""What a tenant's outcomes have cost, on both databases."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import insert

from fusewire.store.engine import Store
from fusewire.store.tables import outcomes
from fusewire.testing.rows import make_row
from fusewire_ingest.repository.tenant_costs import TenantCost

NOW = datetime(2026, 12, 2, 10, tzinfo=UTC)
"""A Wednesday: its week began in the month before."""


async def add(
    store: Store, number: int, at: datetime, usd: float | None, tenant: str = "a"
) -> None:
    row = make_row(outcomes, fusion_id=f"f{number}", tenant=tenant, cost_usd=usd, finished_at=at)
    async with store.write() as connection:
        await connection.execute(insert(outcomes).values(row))


async def test_costs_are_counted_by_the_period_in_which_they_ended(store: Store) -> None:
    costs = TenantCost(store)
    assert await costs.by_period("a", NOW) == {"day": 0, "week": 0, "month": 0, "total": 0}
    days = (0, 1, 2, 3, 400)
    for number, day in enumerate(days):
        await add(store, number, NOW - timedelta(days=day), 10.0**number)
    await add(store, 10, NOW, None)
    await add(store, 11, NOW, 500_000.0, tenant="b")

    fresh_costs = TenantCost(store)
    expected = {"day": 1, "week": 111, "month": 11, "total": 11_111}
    assert await fresh_costs.by_period("a", NOW) == expected
    assert (await fresh_costs.by_period("b", NOW))["total"] == 500_000
    # Today's are counted at once; those of earlier days were added up before.
    assert await costs.by_period("a", NOW) == {"day": 1, "week": 1, "month": 1, "total": 1}
    tomorrow = await costs.by_period("a", NOW + timedelta(days=1))
    assert tomorrow == {"day": 0, "week": 111, "month": 11, "total": 11_111}
