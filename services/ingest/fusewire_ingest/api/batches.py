"""Batches, as OpenAI's API has them, and what more there is to do with them."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from fusewire import ids, replies
from fusewire_ingest.admission.refusal import validated, wrong
from fusewire_ingest.api import bodies, schemas
from fusewire_ingest.api.dependencies import Dependencies, Who
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.api.files import paged
from fusewire_ingest.batches import output as batch_output
from fusewire_ingest.batches.changes import Reason
from fusewire_ingest.openai import batch_request as batch_shape
from fusewire_ingest.openai.batch_report import Form
from fusewire_ingest.repository.batches import OVER, Batch, BatchProgress
from fusewire_ingest.repository.files import File

BODY_BYTES = 8 * 1024 * 1024
MOST_KEY = 256
MOST_LISTED = 100
MOST_RESULTS = 10_000


def routes(of: Dependencies) -> APIRouter:
    """`/v1/batches`."""
    router = APIRouter(tags=["batches"])
    batching, batches, clock, new_id = of.batching, of.batches, of.clock, of.new_id

    @router.post(
        "/batches",
        summary="Make a batch of an uploaded file",
        openapi_extra=schemas.body("NewBatch"),
        responses=schemas.reply("Batch"),
    )
    async def create(request: Request, who: Who) -> Response:
        """The same `Idempotency-Key` gives the same batch. In place of a file it may hold up to 1,000 `requests`."""
        key = request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= MOST_KEY:
            raise wrong("Idempotency-Key", f"it must have 1 to {MOST_KEY} characters")
        key = f"key-{key}" if key else new_id()
        body = await bodies.json_object(request, BODY_BYTES)
        if "requests" in body:
            return await _shown(
                of,
                await _of_requests(of, who.tenant, batch_shape.requests(body), key),
                "",
                status=202,
            )
        batch = await batching.create(who.tenant, batch_shape.asked(body), key)
        return await _shown(of, batch, batch.batch_id)

    @router.get(
        "/batches", summary="Your batches, the newest first", responses=schemas.reply("BatchList")
    )
    async def listed(
        who: Who,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
        after: Annotated[str | None, Query(max_length=64)] = None,
    ) -> Response:
        page = await batches.page(
            who.tenant, after=after and after.replace("\x00", ""), limit=limit + 1
        )
        return JSONResponse(paged([_object(batch, None, clock()) for batch in page], limit))

    @router.get("/batches/{batch_id}", summary="One batch", responses=schemas.reply("Batch"))
    async def get(batch_id: str, who: Who) -> Response:
        return await _shown(of, await batches.get(who.tenant, _known(batch_id)), batch_id)

    @router.post(
        "/batches/{batch_id}/cancel", summary="Stop a batch", responses=schemas.reply("Batch")
    )
    async def cancel(
        batch_id: str, who: Who, drain: bool = False, reason: Reason = "request"
    ) -> Response:
        """Nothing more of it is submitted; with `drain`, what is in flight comes to its end. What settled stays."""
        found = await batching.cancel(who.tenant, _known(batch_id), drain=drain, reason=reason)
        return await _shown(of, found, batch_id)

    _more(router, of)
    return router


def _more(router: APIRouter, of: Dependencies) -> None:
    """What OpenAI's API has not."""
    batching, batches, lines = of.batching, of.batches, of.lines

    @router.post(
        "/batches/{batch_id}/resume",
        summary="Go on with a cancelled batch",
        openapi_extra=schemas.body("ResumedBatch"),
        responses=schemas.reply("Batch"),
    )
    async def resume(request: Request, batch_id: str, who: Who) -> Response:
        asked = validated(batch_shape.ResumeBatch, await bodies.json_object(request, BODY_BYTES))
        return await _shown(
            of, await batching.resume(who.tenant, _known(batch_id), asked.max_cost_usd), batch_id
        )

    @router.post(
        "/batches/{batch_id}/retry",
        summary="Make a batch of a batch's failed lines",
        openapi_extra=schemas.body("RetriedBatch"),
        responses=schemas.reply("Batch"),
    )
    async def retry(request: Request, batch_id: str, who: Who) -> Response:
        asked = validated(batch_shape.RetryBatch, await bodies.json_object(request, BODY_BYTES))
        return await _shown(
            of, await batching.retry(who.tenant, _known(batch_id), asked.only), batch_id
        )

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
        who: Who,
        order: Literal["line", "settled"] = "line",
        after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_RESULTS)] = MOST_RESULTS,
        form: Form = "openai",
    ) -> Response:
        """Lines behind line `after`, or with `order=settled` behind that `seq`."""
        batch = await batches.get(who.tenant, _known(batch_id))
        if batch is None:
            raise _none(batch_id)
        found = batch_output.results(
            lines, batch, form=form, after=after, limit=limit, by_settled=order == "settled"
        )
        return StreamingResponse(found, media_type="application/x-ndjson")


async def _of_requests(
    of: Dependencies, tenant: str, asked: batch_shape.Requests, key: str
) -> Batch:
    """A batch that came with its requests is one of a file that nobody uploaded."""
    data, now = asked.file(), of.clock()
    file_id = f"file-{ids.digest('requests', tenant, key, data.decode()).hex()[:24]}"

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    if await of.files.get(tenant, file_id, now) is None:
        file = File(file_id, tenant, "batch", "requests.jsonl", 0, now)
        await of.files.keep(file, pieces(), of.settings.limits.file_bytes)
    return await of.batching.create(tenant, asked.asked(file_id), key)


async def _shown(
    of: Dependencies, batch: Batch | None, batch_id: str, status: int = 200
) -> Response:
    if batch is None:
        raise _none(batch_id)
    motion = None if batch.status in OVER else await of.batches.progress(batch.batch_id)
    found = _object(batch, motion, of.clock())
    if batch.status in OVER and batch.parsed_options.get("model"):
        found["results"] = [_result(json.loads(one)) async for one in _all_results(of, batch)]
    return JSONResponse(found, status)


def _all_results(of: Dependencies, batch: Batch) -> AsyncIterator[bytes]:
    most = batch_shape.MOST_REQUESTS
    return batch_output.results(
        of.lines, batch, form="openai", after=0, limit=most, by_settled=False
    )


def _result(line: dict[str, Any]) -> dict[str, Any]:
    """As OpenRouter shows it: either a response or an error."""
    if line["error"] is None:
        return line
    return {**line, "response": None, "error": {**line["error"], "type": "server_error"}}


def _known(batch_id: str) -> str:
    """An id that one can look for."""
    if "\x00" in batch_id:
        raise _none(batch_id)
    return batch_id


def _none(batch_id: str) -> HttpError:
    return HttpError(404, "not_found", f"there is no batch '{batch_id[:64]}'")


def _object(batch: Batch, motion: BatchProgress | None, now: datetime) -> replies.batches.Batch:
    """OpenAI's object; `motion` is only measured for one that runs."""
    asked = batch.parsed_options
    is_over = batch.status in OVER
    has_output = is_over and batch.completed > 0
    has_errors = is_over and batch.status != "failed" and batch.completed < batch.total
    errors = json.loads(batch.errors) if batch.errors else None
    # OpenAI's names and OpenRouter's.
    tokens: replies.batches.BatchUsage = {
        "prompt_tokens": batch.tokens_in,
        "completion_tokens": batch.tokens_out,
        "cost": batch.cost_usd if not batch.n_unpriced else None,
        "input_tokens": batch.tokens_in,
        "input_tokens_details": {"cached_tokens": batch.tokens_cached},
        "output_tokens": batch.tokens_out,
        "output_tokens_details": {"reasoning_tokens": batch.tokens_thought},
        "total_tokens": batch.tokens_in + batch.tokens_out,
    }
    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": asked.get("model")
        or f"fusewire/{asked.get('x_fusewire', {}).get('pool') or 'default'}",
        "provider": None,
        "error": {"message": errors[0]["message"]} if errors else None,
        "results": None,
        "status": batch.status,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "output_file_id": f"file-{batch.batch_id}-output" if has_output else None,
        "error_file_id": f"file-{batch.batch_id}-error" if has_errors else None,
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
        "usage": tokens,
        "metadata": asked.get("metadata"),
        "x_fusewire": {
            "stop_reason": batch.stop_reason,
            "waiting_for": batch.waiting_for,
            "degraded": batch.degraded,
            "held": motion.held if motion else None,
            "in_flight": motion.in_flight if motion else None,
            "rate_per_s": motion.rate_per_s if motion else None,
            "eta_at": _eta(batch, motion, now),
            "cost_usd": batch.cost_usd,
            "n_unpriced": batch.n_unpriced,
            "max_cost_usd": batch.max_cost_usd,
            "priority": batch.priority,
        },
    }


def _seconds(at: datetime | None) -> int | None:
    return int(at.timestamp()) if at else None


def _eta(batch: Batch, motion: BatchProgress | None, now: datetime) -> int | None:
    """When it will be over if it goes on as it does, Unix time, s."""
    left = batch.total - batch.completed - batch.failed
    if batch.status != "in_progress" or motion is None or not motion.rate_per_s or not left:
        return None
    return int(now.timestamp() + left / motion.rate_per_s)
