"""What runs now: a tenant's fusions and batches, and the queues of the bus."""

from collections.abc import Set

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from fusewire import replies
from fusewire.errors import Transient
from fusewire.replies.console import QueueStatus
from fusewire.topology import task_stream
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.rules import usable_models
from fusewire_ingest.api import schemas
from fusewire_ingest.api.dependencies import Dependencies, ReadCaller
from fusewire_ingest.repository.running_counts import running_counts

TASK_STREAMS = (task_stream("edge"), task_stream("remote"))


def routes(dependencies: Dependencies) -> APIRouter:
    """`/status`."""
    router = APIRouter(tags=["console"])

    @router.get("/status", summary="What runs now", responses=schemas.reply("Status"))
    async def get(caller: ReadCaller) -> Response:
        """With the scope `admin`, also what waits in the queues, which all tenants share."""
        counts = await running_counts(dependencies.store, caller.tenant)
        oldest_s = None
        if counts.oldest_at is not None:
            oldest_s = (dependencies.clock() - counts.oldest_at).total_seconds()
        reply: replies.console.Status = {
            "object": "status",
            "tenant": caller.tenant,
            "running": counts.fusions,
            "oldest_running_s": oldest_s and max(round(oldest_s, 3), 0.0),
            "batches": counts.batches,
        }
        if "admin" in caller.scopes:
            await _add_queues(dependencies, caller, reply)
        return JSONResponse(reply)

    return router


async def _add_queues(
    dependencies: Dependencies, caller: Caller, reply: replies.console.Status
) -> None:
    """Add what waits in the queues, or why that is not known."""
    models = usable_models(dependencies.settings, caller.rule)
    own_queues = dependencies.pools(caller.tenant).keys() | models.keys()
    try:
        queues = await dependencies.queues.read()
    except Transient as exc:
        reply["queues"], reply["queues_error"] = None, str(exc)
        return
    reply["queues"] = [queue for queue in queues if _is_visible(queue, own_queues)]
    reply["queues_error"] = None


def _is_visible(queue: QueueStatus, own_queues: Set[str]) -> bool:
    """Whether a queue names no pool or model that is not the tenant's (docs/decisions/0057)."""
    # A durable of tasks is named by its pool or model, and its priority.
    return queue["stream"] not in TASK_STREAMS or queue["durable"].rpartition("-")[0] in own_queues
