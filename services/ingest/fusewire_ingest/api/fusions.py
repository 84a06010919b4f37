"""Fusewire's own routes: submit one prompt or many, and read outcomes."""

import contextlib
import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from fusewire import replies, telemetry
from fusewire.contracts import Prompt
from fusewire.errors import Transient
from fusewire.store.queries import FusionStatus, as_reply, standings
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.admit import BATCH_ID, MOST_BATCH_CHARS
from fusewire_ingest.admission.jsonl import lines
from fusewire_ingest.api import bodies, schemas
from fusewire_ingest.api.dependencies import Dependencies, ReadCaller, SubmitCaller
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.api.leaving import while_connected
from fusewire_ingest.intake import Intake, Line

JSONL_GROUP = 200
"""Lines that are committed together."""
JSONL_LINES = 50_000
"""The most lines of one body, as each has its result in the reply. More need a batch."""
MAX_WAIT_S = 600.0
MAX_IDS = 200


def routes(dependencies: Dependencies) -> APIRouter:
    """`/v1/fusions`."""
    router = APIRouter(tags=["fusions"])
    intake, outcomes, store, new_id = (
        dependencies.intake,
        dependencies.outcomes,
        dependencies.store,
        dependencies.new_id,
    )
    prompt_bytes = dependencies.settings.limits.prompt_bytes

    @router.post(
        "/fusions",
        summary="Submit one prompt (JSON) or many (JSONL)",
        openapi_extra=schemas.body("Submission", *bodies.JSONL_TYPES),
        responses={
            **schemas.reply("Fusion"),
            **schemas.reply("Fusion", status=202, alternative="SubmittedLines"),
        },
    )
    async def submit(
        request: Request,
        caller: SubmitCaller,
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
        batch_id: Annotated[
            str | None, Query(max_length=MOST_BATCH_CHARS, pattern=BATCH_ID)
        ] = None,
    ) -> Response:
        with telemetry.receiving("ingest", "http", request.headers):
            if bodies.media_type(request) in bodies.JSONL_TYPES:
                return await _submit_lines(
                    request, intake, prompt_bytes, batch_id or new_id(), caller
                )
            prompt = await _read_prompt(dependencies, request, caller, batch_id)
            acceptance = await intake.submit(prompt, source="http", limits=caller.limits)
        is_new = acceptance.is_new
        fusion = await _wait(dependencies, request, prompt, wait_s, just_begun=is_new)
        reply: replies.fusions.Fusion = {
            **as_reply(fusion),
            "is_repetition": not is_new,
        }
        return JSONResponse(reply, 200 if fusion.outcome else 202)

    @router.get(
        "/fusions/{fusion_id}",
        summary="One fusion: its outcome, or that it still runs",
        responses=schemas.reply("Fusion"),
    )
    async def get(
        request: Request,
        fusion_id: str,
        caller: ReadCaller,
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
    ) -> Response:
        fusion = await while_connected(
            request.receive, outcomes.get(caller.tenant, fusion_id, wait_s)
        )
        if fusion is None:
            raise not_found_error(fusion_id)
        return JSONResponse(as_reply(fusion))

    @router.get("/fusions", summary="Several fusions by id", responses=schemas.reply("FusionList"))
    async def get_many(
        caller: ReadCaller,
        id: Annotated[list[str], Query(max_length=MAX_IDS)],  # noqa: A002 - the query's name
    ) -> Response:
        fusions = await standings(store, caller.tenant, id)
        reply: replies.fusions.FusionList = {"data": [as_reply(fusion) for fusion in fusions]}
        return JSONResponse(reply)

    _add_cancel_and_erase(router, dependencies)
    return router


def _add_cancel_and_erase(router: APIRouter, dependencies: Dependencies) -> None:
    @router.post(
        "/fusions/{fusion_id}/cancel",
        summary="Stop a fusion: no further call is made for it",
        responses=schemas.reply("Fusion"),
    )
    async def cancel(fusion_id: str, caller: SubmitCaller) -> Response:
        """Its outcome says `cancelled` soon after; a fusion that has its outcome keeps it."""
        cancelled_ids = await dependencies.intake.cancel(caller.tenant, [fusion_id])
        fusion = await dependencies.outcomes.get(caller.tenant, fusion_id)
        if fusion is None:
            raise not_found_error(fusion_id)
        reply: replies.fusions.Fusion = {
            **as_reply(fusion),
            "is_cancelled": fusion_id in cancelled_ids,
        }
        return JSONResponse(reply)

    @router.delete(
        "/fusions/{fusion_id}/images",
        summary="Erase the large images and texts of a fusion's prompt",
        responses=schemas.reply("ImageDeletion"),
    )
    async def erase_images(fusion_id: str, caller: SubmitCaller) -> Response:
        """Other prompts of the tenant with the same parts lose them too. Answers stay."""
        prompt = await dependencies.intake.prompt(caller.tenant, fusion_id)
        if prompt is None:
            raise not_found_error(fusion_id)
        reply: replies.fusions.ImageDeletion = {
            "id": fusion_id,
            "erased": await dependencies.large_parts.erase(prompt),
        }
        return JSONResponse(reply)


def not_found_error(fusion_id: str) -> HttpError:
    """The error about a fusion that the caller's tenant does not have."""
    return HttpError(404, "not_found", f"there is no fusion '{fusion_id[:64]}'")


async def _read_prompt(
    dependencies: Dependencies, request: Request, caller: Caller, batch_id: str | None
) -> Prompt:
    limits, memory = dependencies.settings.limits, dependencies.body_memory
    async with bodies.room(request, limits, memory) as room:
        body = await bodies.whole(request, room.limit)
        fallback_id = request.headers.get("idempotency-key") or dependencies.new_id()
        prompt = dependencies.intake.read(
            body,
            tenant=caller.tenant,
            fallback_id=fallback_id,
            key_id=caller.key_id,
            batch_id=batch_id,
            limit=room.limit,
        )
        # The prompt has its texts; a large body is not held twice while its parts are stored.
        del body
        return await dependencies.large_parts.put_aside(prompt, is_large=room.is_large)


async def _wait(
    dependencies: Dependencies,
    request: Request,
    prompt: Prompt,
    wait_s: float,
    *,
    just_begun: bool,
) -> FusionStatus:
    """Wait for an outcome, up to `wait_s` seconds. If that fails, the fusion counts as running."""
    fusion = None
    if wait_s:
        outcome = dependencies.outcomes.get(
            prompt.tenant, prompt.fusion_id, wait_s, just_begun=just_begun
        )
        # The prompt is accepted even if the wait fails.
        with contextlib.suppress(Transient):
            fusion = await while_connected(request.receive, outcome)
    return fusion or FusionStatus(
        prompt.fusion_id, prompt.batch_id, prompt.custom_id, prompt.submitted_at, None
    )


async def _submit_lines(
    request: Request, intake: Intake, limit: int, batch_id: str, caller: Caller
) -> Response:
    results: list[replies.fusions.SubmittedLine] = []
    group: list[tuple[int, bytes]] = []
    async for numbered_line in lines(bodies.pieces(request), limit, JSONL_LINES):
        group.append(numbered_line)
        if len(group) >= JSONL_GROUP:
            await _submit_group(intake, group, results, batch_id=batch_id, caller=caller)
            group.clear()
    if group:
        await _submit_group(intake, group, results, batch_id=batch_id, caller=caller)
    refused_count = sum("error" in result for result in results)
    body: replies.fusions.SubmittedLines = {
        "batch_id": batch_id,
        "accepted": len(results) - refused_count,
        "refused": refused_count,
        "lines": results,
    }
    return Response(json.dumps(body), 202, media_type="application/json")


async def _submit_group(
    intake: Intake,
    group: list[tuple[int, bytes]],
    results: list[replies.fusions.SubmittedLine],
    *,
    batch_id: str,
    caller: Caller,
) -> None:
    """Submit lines, and append their results. Raises Transient if nothing is accepted yet."""
    try:
        submitted_lines = await intake.submit_lines(
            group,
            tenant=caller.tenant,
            batch_id=batch_id,
            key_id=caller.key_id,
            limits=caller.limits,
        )
    except Transient as exc:
        if not any("id" in result for result in results):
            raise
        # Earlier groups are accepted, and the reply has to say so.
        results.extend(_unavailable(number, exc) for number, _ in group)
        return
    results.extend(_line(line) for line in submitted_lines)


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
