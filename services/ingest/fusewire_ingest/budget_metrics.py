"""What tenants and pools have spent of their budgets, as metrics."""

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from fusewire import metrics
from fusewire.errors import Transient
from fusewire.tasks import BackgroundTasks
from fusewire_ingest.admission.budgets import split_account
from fusewire_ingest.repository.budgets import Budgets

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 15.0
GAUGES = (
    metrics.BUDGET_LIMIT,
    metrics.BUDGET_SPENT,
    metrics.BUDGET_RESERVED,
)


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
        balances = await self._budgets.balances(self._clock())
        # A limit that was removed leaves no figures behind.
        for gauge in GAUGES:
            gauge.clear()
        for balance in balances:
            kind, name = split_account(balance.limit.account)
            # No label holds an id.
            if kind == "key":
                continue
            tenant, pool = (name, "") if kind == "tenant" else ("", name)
            labels = (tenant, pool, balance.limit.period)
            metrics.BUDGET_SPENT.labels(*labels).set(balance.spending.spent_usd)
            metrics.BUDGET_RESERVED.labels(*labels).set(balance.spending.reserved_usd)
            if balance.limit.hard_usd is not None:
                metrics.BUDGET_LIMIT.labels(*labels).set(balance.limit.hard_usd)

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Transient as exc:
                log.warning("ingest.budgets_not_read", fault=str(exc))
            await asyncio.sleep(LOOK_EVERY_S)
