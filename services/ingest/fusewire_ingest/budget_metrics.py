"""What tenants have spent of their budgets, as metrics."""

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from fusewire import metrics
from fusewire.errors import Transient
from fusewire.tasks import BackgroundTasks
from fusewire_ingest.repository.budgets import Budgets

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 15.0


class BudgetMetrics:
    """Reads the budgets from SQL every `LOOK_EVERY_S`."""

    def __init__(self, budgets: Budgets, clock: Callable[[], datetime]) -> None:
        self._budgets = budgets
        self._clock = clock
        self._background = BackgroundTasks()

    def start(self) -> None:
        """Start to read."""
        self._background.start("ingest-budget-metrics", self._run())

    async def stop(self) -> None:
        """Stop reading."""
        await self._background.stop()

    def faults(self) -> list[str]:
        """Name the loop if it has ended."""
        return self._background.faults()

    async def look(self) -> None:
        """Read once. Raises Transient."""
        for tenant, balance in (await self._budgets.balances(self._clock())).items():
            metrics.BUDGET_LIMIT.labels(tenant).set(balance.limit_usd)
            metrics.BUDGET_SPENT.labels(tenant).set(balance.spent_usd)
            metrics.BUDGET_RESERVED.labels(tenant).set(balance.reserved_usd)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Transient as exc:
                log.warning("ingest.budgets_not_read", fault=str(exc))
            await asyncio.sleep(LOOK_EVERY_S)
