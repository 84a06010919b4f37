"""Deletes texts, fusions and batches whose retention time is over, in the background."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import structlog

from fusewire.bus import fault
from fusewire.errors import Transient
from fusewire.tasks import BackgroundTasks
from fusewire_ingest.repository.retention import Retention

log = structlog.get_logger(__name__)

EVERY_S = 600.0
PAUSE_S = 0.1
"""Pause between two transactions, so that other writers have their turn."""

KeepDays = Callable[[str], float | None]
"""How many days a tenant's fusions are kept after their end; None is for ever."""


class Cleaner:
    """Runs the background task that deletes.

    Args:
        retention: the repository.
        keep_days: how long a tenant's fusions are kept.
        keep_bodies_days: how long their texts are kept.
        clock: the time now.
    """

    def __init__(
        self,
        retention: Retention,
        keep_days: KeepDays,
        keep_bodies_days: KeepDays,
        clock: Callable[[], datetime],
    ) -> None:
        self._retention = retention
        self._keep_days = keep_days
        self._keep_bodies_days = keep_bodies_days
        self._clock = clock
        self._background = BackgroundTasks()

    def start(self) -> None:
        """Start to delete every `EVERY_S`."""
        self._background.start("ingest-retention", self._run())

    async def stop(self) -> None:
        """Stop deleting."""
        await self._background.stop()

    def faults(self) -> list[str]:
        """Explain why nothing is deleted any more; empty while it is."""
        return self._background.faults()

    async def clean(self) -> int:
        """Delete what is due, of all tenants; returns how many fusions. Raises Transient."""
        total = 0
        for tenant in await self._retention.tenants():
            # Whole fusions first: their texts need no step of their own.
            if (days := self._keep_days(tenant)) is not None:
                total += await self._delete(tenant, self._clock() - timedelta(days=days))
            if (days := self._keep_bodies_days(tenant)) is not None:
                await self._delete_texts(tenant, self._clock() - timedelta(days=days))
        return total

    async def _delete(self, tenant: str, before: datetime) -> int:
        batches = await self._retention.delete_batches(tenant, before)
        fusions = await _exhaust(lambda: self._retention.delete_fusions(tenant, before))
        if batches or fusions:
            log.info("ingest.retention_deleted", tenant=tenant, fusions=fusions, batches=batches)
        return fusions

    async def _delete_texts(self, tenant: str, before: datetime) -> None:
        now = self._clock()
        files = await _exhaust(lambda: self._retention.delete_inputs(tenant, before))
        fusions = await _exhaust(lambda: self._retention.delete_texts(tenant, before, now))
        if files or fusions:
            log.info("ingest.texts_deleted", tenant=tenant, fusions=fusions, files=files)

    async def _run(self) -> None:
        while True:
            try:
                await self.clean()
            except Transient as exc:
                log.warning("ingest.retention_failed", fault=str(exc))
            except Exception as exc:  # noqa: BLE001 - it is tried again, and nothing is lost meanwhile
                log.error("ingest.retention_broken", fault=fault(exc))  # noqa: TRY400 - no text of its
            await asyncio.sleep(EVERY_S)


async def _exhaust(delete: Callable[[], Awaitable[int]]) -> int:
    """Run a deletion until it finds nothing more; returns how much it has deleted."""
    total = 0
    while count := await delete():
        total += count
        await asyncio.sleep(PAUSE_S)
    return total
