"""The HTTP door."""

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fusewire import telemetry
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.store.queries import Standing, shown, standings
from fusewire_ingest.admission import BATCH_ID, MOST_BATCH_CHARS, RefusedError
from fusewire_ingest.door import Door, Line
from fusewire_ingest.jsonl import lines
from fusewire_ingest.waiting import Outcomes

TENANT = "default"
"""The one tenant there is while there are no API keys."""
JSONL_TYPES = ("application/x-ndjson", "application/jsonl", "application/jsonlines")
JSONL_GROUP = 200
MAX_WAIT_S = 600.0
MAX_IDS = 200

STATUS = {"prompt_too_large": 413, "custom_id_conflict": 409, "unknown_pool": 404}


def error(status: int, code: str, message: str, param: str | None = None, **headers: str) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, {k.replace("_", "-"): v for k, v in headers.items()})


def build(door: Door, outcomes: Outcomes, store: Store, *, prompt_bytes: int, new_id: Callable[[], str]) -> FastAPI:
    """The application."""
    # FastAPI's own documentation pages load scripts from another host, which an air-gapped site has not.
    app = FastAPI(title="Fusewire", docs_url=None, redoc_url=None)

    @app.exception_handler(RefusedError)
    async def _refused(_request: Request, exc: RefusedError) -> JSONResponse:
        return error(STATUS.get(exc.code, 400), exc.code, exc.message, exc.param)

    @app.exception_handler(Transient)
    async def _unavailable(_request: Request, exc: Transient) -> JSONResponse:
        return error(503, "unavailable", f"nothing was accepted: {exc}; try again", retry_after="2")

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, exc: RequestValidationError) -> JSONResponse:
        first = exc.errors()[0]
        name = str(first["loc"][-1])
        return error(400, "invalid_request", f"'{name}': {first['msg']}", name)

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, exc: HTTPException) -> JSONResponse:
        return error(exc.status_code, "not_found" if exc.status_code == 404 else "http_error", str(exc.detail))

    @app.post("/v1/fusions", summary="Submit one prompt (JSON) or many (JSONL)")
    async def submit(
        request: Request,
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0,
        batch_id: Annotated[str | None, Query(max_length=MOST_BATCH_CHARS, pattern=BATCH_ID)] = None,
    ) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        with telemetry.receiving("ingest", "http", request.headers):
            if kind in JSONL_TYPES:
                return await _submit_lines(request, door, prompt_bytes, batch_id or new_id())
            body = await _body(request, prompt_bytes)
            fallback = request.headers.get("idempotency-key") or new_id()
            prompt = door.read(body, tenant=TENANT, fallback_id=fallback, batch_id=batch_id)
            accepted = await door.submit(prompt, door="http")
        standing = None
        if wait_s:
            standing = await outcomes.get(TENANT, prompt.fusion_id, wait_s, just_begun=accepted.is_new)
        if standing is None:
            standing = Standing(prompt.fusion_id, prompt.batch_id, prompt.custom_id, prompt.submitted_at, None)
        status = 200 if standing.outcome else 202
        return JSONResponse({**shown(standing), "is_repetition": not accepted.is_new}, status)

    @app.get("/v1/fusions/{fusion_id}", summary="One fusion: its outcome, or that it still runs")
    async def get(fusion_id: str, wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0) -> Response:
        standing = await outcomes.get(TENANT, fusion_id, wait_s)
        if standing is None:
            return error(404, "not_found", f"there is no fusion '{fusion_id[:64]}'", "fusion_id")
        return JSONResponse(shown(standing))

    @app.get("/v1/fusions", summary="Several fusions by id")
    async def get_many(id: Annotated[list[str], Query(max_length=MAX_IDS)]) -> Response:  # noqa: A002 - the query's name
        found = await standings(store, TENANT, id)
        return JSONResponse({"data": [shown(s) for s in found]})

    return app


async def _body(request: Request, limit: int) -> bytes:
    """Read a body, but never more than is allowed."""
    held = bytearray()
    async for chunk in request.stream():
        held += chunk
        if len(held) > limit:
            raise RefusedError(
                "prompt_too_large", f"the body has more than {limit} bytes; shorten it or raise limits.prompt_bytes"
            )
    return bytes(held)


async def _submit_lines(request: Request, door: Door, limit: int, batch_id: str) -> Response:
    results: list[dict[str, Any]] = []
    group: list[tuple[int, bytes]] = []

    async def flush() -> None:
        results.extend(_line(line) for line in await door.submit_lines(group, tenant=TENANT, batch_id=batch_id))
        group.clear()

    async for numbered in lines(request.stream(), limit):
        group.append(numbered)
        if len(group) >= JSONL_GROUP:
            await flush()
    if group:
        await flush()
    refused = sum("error" in r for r in results)
    body = {"batch_id": batch_id, "accepted": len(results) - refused, "refused": refused, "lines": results}
    return Response(json.dumps(body), 202, media_type="application/json")


def _line(line: Line) -> dict[str, Any]:
    if line.refused:
        fault = {"code": line.refused.code, "message": line.refused.message, "param": line.refused.param}
        return {"line": line.number, "error": fault}
    assert line.accepted is not None
    prompt = line.accepted.prompt
    return {
        "line": line.number,
        "id": prompt.fusion_id,
        "custom_id": prompt.custom_id,
        "is_repetition": not line.accepted.is_new,
    }
