"""OpenAI's Responses, answered by a fusion."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fusewire import replies, telemetry
from fusewire.contracts import Message, Outcome
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.admission.rules import default_pool
from fusewire_ingest.api import bodies, schemas
from fusewire_ingest.api.dependencies import Dependencies, Who
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.api.run import Run, answered, begin, streamed
from fusewire_ingest.api.stream import data
from fusewire_ingest.openai import chat_request
from fusewire_ingest.openai import responses as responses_shape
from fusewire_ingest.openai.responses_stream import Event, ResponseEvents


def routes(of: Dependencies) -> APIRouter:
    """`/responses`."""
    router = APIRouter(tags=["responses"])

    @router.post(
        "/responses",
        summary="Answer a conversation, or go on with one",
        openapi_extra=schemas.body("ResponseRequest"),
        responses=schemas.reply("Response", "text/event-stream"),
    )
    async def respond(request: Request, who: Who) -> Response:
        with telemetry.receiving("ingest", "http", request.headers):
            run = await _begin(of, who, request)
            if run.is_streamed:
                return await streamed(of, run, EventEncoder(run))
            outcome = await answered(of, run, request)
        return JSONResponse(_response(run, outcome), headers=run.headers)

    @router.get(
        "/responses/{response_id}",
        summary="One that has been made",
        responses=schemas.reply("Response"),
    )
    async def get(response_id: str, who: Who) -> Response:
        standing = await of.outcomes.get(who.tenant, _fusion(response_id))
        if standing is None or standing.outcome is None:
            raise HttpError(
                404, "unknown_response", "there is no such response, or it has not ended yet"
            )
        body = standing.outcome.model_dump(mode="json")
        created = int(standing.submitted_at.timestamp())
        return JSONResponse(
            responses_shape.response_of(body, model=f"fusewire/{body['pool']}", created=created)
        )

    return router


async def _begin(of: Dependencies, who: Caller, request: Request) -> Run:
    """Read a request. Its body, which may be large, is held no longer than that."""
    async with bodies.room(request, of.settings.limits, of.body_memory) as room:
        body = await bodies.json_object(request, room.limit)
        before = await _before(of, who, body.get(responses_shape.PREVIOUS))
        written = responses_shape.chat_body(body, before)
        try:
            asked = chat_request.read(
                written.body, of.pools, default_pool(of.pools, who.rule.pools)
            )
        except RefusedError as exc:
            raise exc.moved(written.origin) from None
        return await begin(
            of, who, request.headers, asked, body, is_large=room.is_large or bool(before)
        )


def _fusion(response_id: str) -> str:
    return response_id.removeprefix(responses_shape.RESPONSE)


async def _before(of: Dependencies, who: Caller, previous: object) -> tuple[Message, ...]:
    """The conversation up to an earlier response. Raises RefusedError where there is none."""
    if previous is None:
        return ()
    fusion_id = _fusion(previous) if isinstance(previous, str) else ""
    standing = await of.outcomes.get(who.tenant, fusion_id) if fusion_id else None
    prompt = (
        await of.intake.prompt(who.tenant, fusion_id) if standing and standing.outcome else None
    )
    if standing is None or standing.outcome is None or prompt is None:
        path = responses_shape.PREVIOUS
        raise RefusedError(
            "unknown_response",
            f"'{path}': there is no such response, or it has not ended yet",
            path,
        )
    messages = await of.large_parts.put_back(who.tenant, prompt.messages)
    return responses_shape.conversation(
        prompt.model_copy(update={"messages": messages}), standing.outcome
    )


def _response(run: Run, outcome: Outcome) -> replies.responses.Response:
    body = outcome.model_dump(mode="json")
    return responses_shape.response_of(
        body, model=run.model, created=run.created, warnings=run.warnings
    )


class EventEncoder:
    """Tells of a run in the events of the Responses API; see `Telling`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        shell = responses_shape.shell(run.fusion_id, model=run.model, created=run.created)
        self._events = ResponseEvents(shell)

    def begin(self) -> Iterator[bytes]:
        """See `Telling.begin`."""
        return map(_data, self._events.begin())

    def text(self, piece: str) -> Iterator[bytes]:
        """See `Telling.text`."""
        return map(_data, self._events.text(piece))

    def end(self, outcome: Outcome) -> Iterator[bytes]:
        """See `Telling.end`."""
        return map(_data, self._events.end(_response(self._run, outcome)))

    def fail(
        self, _status: int, code: str, message: str, about: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """See `Telling.fail`."""
        return map(_data, self._events.fail(code, message, about))


def _data(event: Event) -> bytes:
    return data(event, event["type"])
