"""Fusions as Fusewire itself tells of them: one or many in, outcomes out."""

import contextlib
import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from fusewire import replies, telemetry
from fusewire.errors import Transient
from fusewire.store.queries import FusionStatus, as_reply, standings
from fusewire_ingest.admission.admit import BATCH_ID, MOST_BATCH_CHARS
from fusewire_ingest.admission.jsonl import lines
from fusewire_ingest.api import bodies, schemas
from fusewire_ingest.api.dependencies import Dependencies, Who
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.api.leaving import unless_gone
from fusewire_ingest.intake import Intake, Line

JSONL_GROUP = 200
JSONL_LINES = 50_000
"""The most lines of one body: each has its result in the reply. More of them are a batch."""
MAX_WAIT_S = 600.0
MAX_IDS = 200


def routes(of: Dependencies) -> APIRouter:
    """`/v1/fusions`."""
    router = APIRouter(tags=["fusions"])
    intake, outcomes, store, new_id = of.intake, of.outcomes, of.store, of.new_id
    prompt_bytes = of.settings.limits.prompt_bytes

    @router.post(
        "/fusions",
        summary="Submit one prompt (JSON) or many (JSONL)",
        openapi_extra=schemas.body("Submission", *bodies.JSONL_TYPES),
        responses={
            **schemas.reply("Fusion"),
            **schemas.reply("Fusion", status=202, instead="SubmittedLines"),
        },
    )
    async def submit(
        request: Request,
        who: Who,
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
        batch_id: Annotated[
            str | None, Query(max_length=MOST_BATCH_CHARS, pattern=BATCH_ID)
        ] = None,
    ) -> Response:
        with telemetry.receiving("ingest", "http", request.headers):
            if bodies.kind(request) in bodies.JSONL_TYPES:
                return await _submit_lines(
                    request, intake, prompt_bytes, batch_id or new_id(), who.tenant
                )
            async with bodies.room(request, of.settings.limits, of.body_memory) as room:
                body = await bodies.whole(request, room.limit)
                fallback = request.headers.get("idempotency-key") or new_id()
                prompt = intake.read(
                    body,
                    tenant=who.tenant,
                    fallback_id=fallback,
                    batch_id=batch_id,
                    limit=room.limit,
                )
                del body
                prompt = await of.large_parts.put_aside(prompt, is_large=room.is_large)
            accepted = await intake.submit(prompt, source="http")
        standing = None
        if wait_s:
            waiting = outcomes.get(who.tenant, prompt.fusion_id, wait_s, just_begun=accepted.is_new)
            # It is accepted, whatever becomes of the wait.
            with contextlib.suppress(Transient):
                standing = await unless_gone(request.receive, waiting)
        if standing is None:
            standing = FusionStatus(
                prompt.fusion_id, prompt.batch_id, prompt.custom_id, prompt.submitted_at, None
            )
        status = 200 if standing.outcome else 202
        told: replies.fusions.Fusion = {**as_reply(standing), "is_repetition": not accepted.is_new}
        return JSONResponse(told, status)

    @router.get(
        "/fusions/{fusion_id}",
        summary="One fusion: its outcome, or that it still runs",
        responses=schemas.reply("Fusion"),
    )
    async def get(
        request: Request,
        fusion_id: str,
        who: Who,
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
    ) -> Response:
        standing = await unless_gone(request.receive, outcomes.get(who.tenant, fusion_id, wait_s))
        if standing is None:
            raise _none(fusion_id)
        return JSONResponse(as_reply(standing))

    @router.get("/fusions", summary="Several fusions by id", responses=schemas.reply("FusionList"))
    async def get_many(who: Who, id: Annotated[list[str], Query(max_length=MAX_IDS)]) -> Response:  # noqa: A002 - the query's name
        found = await standings(store, who.tenant, id)
        told: replies.fusions.FusionList = {"data": [as_reply(s) for s in found]}
        return JSONResponse(told)

    @router.post(
        "/fusions/{fusion_id}/cancel",
        summary="Stop a fusion: no further call is made for it",
        responses=schemas.reply("Fusion"),
    )
    async def cancel(fusion_id: str, who: Who) -> Response:
        """Its outcome says `cancelled` soon after; one that had its outcome keeps it."""
        was_running = await intake.cancel(who.tenant, [fusion_id])
        standing = await outcomes.get(who.tenant, fusion_id)
        if standing is None:
            raise _none(fusion_id)
        told: replies.fusions.Fusion = {
            **as_reply(standing),
            "is_cancelled": fusion_id in was_running,
        }
        return JSONResponse(told)

    @router.delete(
        "/fusions/{fusion_id}/images",
        summary="Erase the large images and texts of a fusion's prompt",
        responses=schemas.reply("ImageDeletion"),
    )
    async def erase_images(fusion_id: str, who: Who) -> Response:
        """Other prompts of the tenant with the same ones lose them too. What was answered stays."""
        prompt = await intake.prompt(who.tenant, fusion_id)
        if prompt is None:
            raise _none(fusion_id)
        told: replies.fusions.ImageDeletion = {
            "id": fusion_id,
            "erased": await of.large_parts.erase(prompt),
        }
        return JSONResponse(told)

    return router


def _none(fusion_id: str) -> HttpError:
    return HttpError(404, "not_found", f"there is no fusion '{fusion_id[:64]}'")


async def _submit_lines(
    request: Request, intake: Intake, limit: int, batch_id: str, tenant: str
) -> Response:
    results: list[replies.fusions.SubmittedLine] = []
    group: list[tuple[int, bytes]] = []

    async def flush() -> None:
        try:
            results.extend(
                _line(line)
                for line in await intake.submit_lines(group, tenant=tenant, batch_id=batch_id)
            )
        except Transient as exc:
            if not any("id" in result for result in results):
                raise
            # Those before are accepted, and must be told.
            results.extend(_unavailable(number, exc) for number, _ in group)
        group.clear()

    async for numbered in lines(bodies.pieces(request), limit, JSONL_LINES):
        group.append(numbered)
        if len(group) >= JSONL_GROUP:
            await flush()
    if group:
        await flush()
    refused = sum("error" in r for r in results)
    body: replies.fusions.SubmittedLines = {
        "batch_id": batch_id,
        "accepted": len(results) - refused,
        "refused": refused,
        "lines": results,
    }
    return Response(json.dumps(body), 202, media_type="application/json")


def _unavailable(number: int, exc: Transient) -> replies.fusions.SubmittedLine:
    return {
        "line": number,
        "error": {"code": "unavailable", "message": f"{exc}; send this line again", "param": None},
    }


def _line(line: Line) -> replies.fusions.SubmittedLine:
    if line.refused:
        fault = {
            "code": line.refused.code,
            "message": line.refused.message,
            "param": line.refused.param,
        }
        return {"line": line.number, "error": fault}
    assert line.accepted is not None
    prompt = line.accepted.prompt
    return {
        "line": line.number,
        "id": prompt.fusion_id,
        "custom_id": prompt.custom_id,
        "is_repetition": not line.accepted.is_new,
    }
