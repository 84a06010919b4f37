"""Dependencies of the routes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

from fastapi import Depends, Request

from fusewire.settings import Settings
from fusewire.store.engine import Store
from fusewire_ingest.access import Access, Caller
from fusewire_ingest.admission.admit import PoolRule
from fusewire_ingest.admission.keys import Scope
from fusewire_ingest.batches.changes import BatchChanges
from fusewire_ingest.intake import Intake
from fusewire_ingest.large_parts import LargeParts
from fusewire_ingest.memory import ByteBudget
from fusewire_ingest.queues import QueueReader
from fusewire_ingest.rate_limits import RateLimits
from fusewire_ingest.repository.batches import Batches
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.files import Files
from fusewire_ingest.repository.lines import BatchLines
from fusewire_ingest.waiting import Outcomes
from fusewire_ingest.watching import Watcher


@dataclass(frozen=True)
class Dependencies:
    """Everything that the routes need."""

    settings: Settings
    store: Store
    intake: Intake
    large_parts: LargeParts
    body_memory: ByteBudget
    """Memory for bodies that exceed `limits.prompt_bytes`: those with large images or texts."""
    outcomes: Outcomes
    watcher: Watcher
    queues: QueueReader
    files: Files
    batches: Batches
    lines: BatchLines
    batching: BatchChanges
    access: Access
    rate_limits: RateLimits
    budgets: Budgets
    pools: Callable[[str], Mapping[str, PoolRule]]
    """By tenant, the pools that it may use."""
    new_id: Callable[[], str]
    clock: Callable[[], datetime]
    heartbeat_s: float
    """The longest silence of a stream, seconds."""


def _dependencies(request: Request) -> Dependencies:
    return cast("Dependencies", request.app.state.dependencies)


class ScopeCheck:
    """A dependency of a route: the caller, who has a scope; None if any valid key will do."""

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        """Identify the caller. Raises AccessError for a request without access."""
        caller = await _dependencies(request).access.caller(request.headers, self.scope)
        request.state.limits = caller.limits
        return caller


# Each route has a parameter of one of these types.
AnyCaller = Annotated[Caller, Depends(ScopeCheck(None))]
SubmitCaller = Annotated[Caller, Depends(ScopeCheck("submit"))]
ReadCaller = Annotated[Caller, Depends(ScopeCheck("read"))]
BatchCaller = Annotated[Caller, Depends(ScopeCheck("batch"))]
AdminCaller = Annotated[Caller, Depends(ScopeCheck("admin"))]
