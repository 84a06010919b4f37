"""OpenAI's routes for batches, and Fusewire's own."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fusewire import ids, replies
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.refusal import invalid_error, validate
from fusewire_ingest.api import bodies, schemas
from fusewire_ingest.api.dependencies import BatchCaller, Dependencies
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.api.files import paginate
from fusewire_ingest.batches import output as batch_output
from fusewire_ingest.batches.changes import Reason
from fusewire_ingest.openai import batch_request as batch_shape
from fusewire_ingest.openai.batch_report import Form
from fusewire_ingest.repository.batches import OVER, Batch, BatchProgress
from fusewire_ingest.repository.files import File

BODY_BYTES = 8 * 1024 * 1024
MOST_KEY_CHARS = 256
MOST_LISTED = 100
MOST_RESULTS = 10_000


def routes(dependencies: Dependencies) -> APIRouter:
    """`/v1/batches`."""
    router = APIRouter(tags=["batches"])
    batching, batches, clock = dependencies.batching, dependencies.batches, dependencies.clock

    @router.post(
        "/batches",
        summary="Make a batch of an uploaded file",
        openapi_extra=schemas.body("NewBatch"),
        responses=schemas.reply("Batch"),
    )
    async def create(request: Request, caller: BatchCaller) -> Response:
        """The same `Idempotency-Key` gives the same batch.

        In place of a file it may hold up to 1,000 `requests`.
        """
        key = _batch_key(request.headers.get("idempotency-key"), dependencies)
        body = await bodies.json_object(request, BODY_BYTES)
        if "requests" in body:
            requests = batch_shape.parse_requests(body)
            batch = await _create_from_requests(dependencies, caller, requests, key)
            return await _reply(dependencies, batch, "", status=202)
        new_batch = batch_shape.parse_create(body)
        batch = await batching.create(caller.tenant, new_batch, key, key_id=caller.key_id)
        return await _reply(dependencies, batch, batch.batch_id)

    @router.get(
        "/batches", summary="Your batches, the newest first", responses=schemas.reply("BatchList")
    )
    async def list_batches(
        caller: BatchCaller,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
        after: Annotated[str | None, Query(max_length=64)] = None,
    ) -> Response:
        page = await batches.page(
            caller.tenant, after=after and after.replace("\x00", ""), limit=limit + 1
        )
        return JSONResponse(paginate([_object(batch, None, clock()) for batch in page], limit))

    @router.get("/batches/{batch_id}", summary="One batch", responses=schemas.reply("Batch"))
    async def get(batch_id: str, caller: BatchCaller) -> Response:
        return await _reply(
            dependencies, await batches.get(caller.tenant, _check_id(batch_id)), batch_id
        )

    @router.post(
        "/batches/{batch_id}/cancel", summary="Stop a batch", responses=schemas.reply("Batch")
    )
    async def cancel(
        batch_id: str, caller: BatchCaller, drain: bool = False, reason: Reason = "request"
    ) -> Response:
        """Submit no further line. With `drain`, lines in flight finish. Settled lines stay."""
        batch = await batching.cancel(
            caller.tenant, _check_id(batch_id), drain=drain, reason=reason
        )
        return await _reply(dependencies, batch, batch_id)

    _add_own_routes(router, dependencies)
    return router


def _add_own_routes(router: APIRouter, dependencies: Dependencies) -> None:
    """Routes that OpenAI's API does not have."""
    batching, batches, lines = dependencies.batching, dependencies.batches, dependencies.lines

    @router.post(
        "/batches/{batch_id}/resume",
        summary="Go on with a cancelled batch",
        openapi_extra=schemas.body("ResumedBatch"),
        responses=schemas.reply("Batch"),
    )
    async def resume(request: Request, batch_id: str, caller: BatchCaller) -> Response:
        body = await bodies.json_object(request, BODY_BYTES)
        options = validate(batch_shape.ResumeBatch, body)
        batch = await batching.resume(caller.tenant, _check_id(batch_id), options.max_cost_usd)
        return await _reply(dependencies, batch, batch_id)

    @router.post(
        "/batches/{batch_id}/retry",
        summary="Make a batch of a batch's failed lines",
        openapi_extra=schemas.body("RetriedBatch"),
        responses=schemas.reply("Batch"),
    )
    async def retry(request: Request, batch_id: str, caller: BatchCaller) -> Response:
        body = await bodies.json_object(request, BODY_BYTES)
        options = validate(batch_shape.RetryBatch, body)
        batch = await batching.retry(
            caller.tenant, _check_id(batch_id), options.only, key_id=caller.key_id
        )
        return await _reply(dependencies, batch, batch_id)

    @router.get(
        "/batches/{batch_id}/results",
        summary="What has settled so far, as NDJSON, also while it runs",
        responses={
            200: {
                "description": "Done",
                "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            }
        },
    )
    async def results(  # noqa: PLR0917 - the query's fields, which FastAPI gives by name
        batch_id: str,
        caller: BatchCaller,
        order: Literal["line", "settled"] = "line",
        after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_RESULTS)] = MOST_RESULTS,
        form: Form = "openai",
    ) -> Response:
        """Lines after line `after`; with `order=settled`, after that `seq`."""
        batch = await batches.get(caller.tenant, _check_id(batch_id))
        if batch is None:
            raise _not_found_error(batch_id)
        pieces = batch_output.results(
            lines, batch, form=form, after=after, limit=limit, by_settled=order == "settled"
        )
        return StreamingResponse(pieces, media_type="application/x-ndjson")


def _batch_key(idempotency_key: str | None, dependencies: Dependencies) -> str:
    if idempotency_key is None:
        return dependencies.new_id()
    if not 0 < len(idempotency_key) <= MOST_KEY_CHARS:
        raise invalid_error("Idempotency-Key", f"it must have 1 to {MOST_KEY_CHARS} characters")
    return f"key-{idempotency_key}"


async def _create_from_requests(
    dependencies: Dependencies, caller: Caller, requests: batch_shape.Requests, key: str
) -> Batch:
    """Store the requests as a file, as if the client had uploaded it, and create a batch of it."""
    tenant, data, now = caller.tenant, requests.file(), dependencies.clock()
    file_id = f"file-{ids.digest('requests', tenant, key, data.decode()).hex()[:24]}"

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    if await dependencies.files.get(tenant, file_id, now) is None:
        file = File(file_id, tenant, "batch", "requests.jsonl", 0, now)
        await dependencies.files.keep(file, pieces(), dependencies.settings.limits.file_bytes)
    return await dependencies.batching.create(
        tenant, requests.batch(file_id), key, key_id=caller.key_id
    )


async def _reply(
    dependencies: Dependencies, batch: Batch | None, batch_id: str, status: int = 200
) -> Response:
    if batch is None:
        raise _not_found_error(batch_id)
    progress = None
    if batch.status not in OVER:
        progress = await dependencies.batches.progress(batch.batch_id)
    reply = _object(batch, progress, dependencies.clock())
    # A batch that came with its requests is OpenRouter's, whose clients expect its results.
    if batch.status in OVER and batch.parsed_options.get("model"):
        results = _all_results(dependencies, batch)
        reply["results"] = [_openrouter_result(json.loads(line)) async for line in results]
    return JSONResponse(reply, status)


def _all_results(dependencies: Dependencies, batch: Batch) -> AsyncIterator[bytes]:
    most = batch_shape.MOST_REQUESTS
    return batch_output.results(
        dependencies.lines, batch, form="openai", after=0, limit=most, by_settled=False
    )


def _openrouter_result(line: dict[str, Any]) -> dict[str, Any]:
    """A line of the output in OpenRouter's form: either a response or an error."""
    if line["error"] is None:
        return line
    return {**line, "response": None, "error": {**line["error"], "type": "server_error"}}


def _check_id(batch_id: str) -> str:
    """The id. Raises HttpError for one with a NUL, which PostgreSQL cannot look up."""
    if "\x00" in batch_id:
        raise _not_found_error(batch_id)
    return batch_id


def _not_found_error(batch_id: str) -> HttpError:
    return HttpError(404, "not_found", f"there is no batch '{batch_id[:64]}'")


def _object(batch: Batch, progress: BatchProgress | None, now: datetime) -> replies.batches.Batch:
    """OpenAI's object, with OpenRouter's fields. `progress` is None unless the batch runs."""
    is_over = batch.status in OVER
    errors = json.loads(batch.errors) if batch.errors else None
    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": _model_name(batch),
        "provider": None,
        "error": {"message": errors[0]["message"]} if errors else None,
        "results": None,
        "status": batch.status,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "output_file_id": _output_file_id(batch),
        "error_file_id": _error_file_id(batch),
        "created_at": int(batch.created_at.timestamp()),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": _seconds(batch.expires_at),
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": _seconds(batch.completed_at),
        "failed_at": _seconds(batch.failed_at),
        "expired_at": _seconds(batch.expired_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.cancelled_at),
        "finalized_at": int(batch.touched_at.timestamp()) if is_over else None,
        "request_counts": {
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
        },
        "usage": _usage(batch),
        "metadata": batch.parsed_options.get("metadata"),
        "x_fusewire": {
            "stop_reason": batch.stop_reason,
            "waiting_for": batch.waiting_for,
            "degraded": batch.degraded,
            "held": progress.held if progress else None,
            "in_flight": progress.in_flight if progress else None,
            "rate_per_s": progress.rate_per_s if progress else None,
            "eta_at": _eta(batch, progress, now),
            "cost_usd": batch.cost_usd,
            "n_unpriced": batch.n_unpriced,
            "max_cost_usd": batch.max_cost_usd,
            "priority": batch.priority,
        },
    }


def _model_name(batch: Batch) -> str:
    pool = batch.parsed_options.get("x_fusewire", {}).get("pool") or "default"
    return batch.parsed_options.get("model") or f"fusewire/{pool}"


def _output_file_id(batch: Batch) -> str | None:
    has_output = batch.status in OVER and batch.completed > 0
    return f"file-{batch.batch_id}-output" if has_output else None


def _error_file_id(batch: Batch) -> str | None:
    has_errors = batch.status in OVER and batch.status != "failed" and batch.completed < batch.total
    return f"file-{batch.batch_id}-error" if has_errors else None


def _usage(batch: Batch) -> replies.batches.BatchUsage:
    """Tokens and cost under OpenAI's names and OpenRouter's."""
    return {
        "prompt_tokens": batch.tokens_in,
        "completion_tokens": batch.tokens_out,
        "cost": batch.cost_usd if not batch.n_unpriced else None,
        "input_tokens": batch.tokens_in,
        "input_tokens_details": {"cached_tokens": batch.tokens_cached},
        "output_tokens": batch.tokens_out,
        "output_tokens_details": {"reasoning_tokens": batch.tokens_thought},
        "total_tokens": batch.tokens_in + batch.tokens_out,
    }


def _seconds(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at else None


def _eta(batch: Batch, progress: BatchProgress | None, now: datetime) -> int | None:
    """When the batch will be over at its current rate, seconds since 1970; None if unknown."""
    remaining = batch.total - batch.completed - batch.failed
    if batch.status != "in_progress" or progress is None or not progress.rate_per_s:
        return None
    if not remaining:
        return None
    return int(now.timestamp() + remaining / progress.rate_per_s)
