"""How much of a tenant runs now."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Column, ColumnElement, Connection, bindparam, false, func, select

from fusewire.store.engine import Store
from fusewire.store.tables import batches, fusions, prompts
from fusewire_ingest.repository.batches import OPEN


@dataclass(frozen=True)
class RunningCounts:
    """What of a tenant has begun and not ended.

    Attributes:
        fusions: how many have no outcome.
        oldest_at: when the first of these was submitted; None if there is none.
        batches: how many are not over.
    """

    fusions: int
    oldest_at: datetime | None
    batches: int


def _is_tenant(column: Column[str]) -> ColumnElement[bool]:
    """The condition on the tenant, with which no index is looked up.

    Few fusions and batches are open, but a tenant may have millions: SQLite, which has no
    statistics, would look the tenant up.
    """
    return column.concat("") == bindparam("tenant")


_FUSIONS = (
    select(func.count(), func.min(prompts.c.submitted_at))
    .select_from(fusions.join(prompts, prompts.c.fusion_id == fusions.c.fusion_id))
    .where(fusions.c.is_done == false(), _is_tenant(prompts.c.tenant))
)
_BATCHES = select(func.count()).where(batches.c.status.in_(OPEN), _is_tenant(batches.c.tenant))


async def running_counts(store: Store, tenant: str) -> RunningCounts:
    """Count what of a tenant runs now. Raises Transient."""

    def query(connection: Connection) -> RunningCounts:
        values = {"tenant": tenant}
        n_fusions, oldest_at = connection.execute(_FUSIONS, values).one()
        return RunningCounts(
            n_fusions, oldest_at, connection.execute(_BATCHES, values).scalar_one()
        )

    return await store.run(query, write=False)
