"""What the routes work with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

from fastapi import Depends, Request

from fusewire.settings import Settings
from fusewire.store.engine import Store
from fusewire_ingest.access import Access, Caller
from fusewire_ingest.admission.admit import PoolRule
from fusewire_ingest.batches.changes import BatchChanges
from fusewire_ingest.intake import Intake
from fusewire_ingest.large_parts import LargeParts
from fusewire_ingest.memory import ByteBudget
from fusewire_ingest.repository.batches import Batches
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.files import Files
from fusewire_ingest.repository.lines import BatchLines
from fusewire_ingest.waiting import Outcomes
from fusewire_ingest.watching import Watcher


@dataclass(frozen=True)
class Dependencies:
    """Everything that the API stands on."""

    settings: Settings
    store: Store
    intake: Intake
    large_parts: LargeParts
    body_memory: ByteBudget
    """Of bodies that are larger than a prompt that has nothing large."""
    outcomes: Outcomes
    watcher: Watcher
    files: Files
    batches: Batches
    lines: BatchLines
    batching: BatchChanges
    access: Access
    budgets: Budgets
    pools: Mapping[str, PoolRule]
    new_id: Callable[[], str]
    clock: Callable[[], datetime]
    heartbeat_s: float
    """The longest that a stream is silent, seconds."""


def parts(request: Request) -> Dependencies:
    """The parts, as a dependency."""
    return cast("Dependencies", request.app.state.parts)


async def _who(request: Request) -> Caller:
    return await parts(request).access.caller(request.headers)


Who = Annotated[Caller, Depends(_who)]
"""The caller, as a dependency; a request that may not come in ends here."""
