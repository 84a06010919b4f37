"""OpenAI's routes for responses, answered by a fusion."""

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
from fusewire_ingest.api.dependencies import Dependencies, ReadCaller, SubmitCaller
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.api.run import Run, begin, stream_answer, wait_for_answer
from fusewire_ingest.api.stream import data
from fusewire_ingest.openai import chat_request
from fusewire_ingest.openai import responses as responses_shape
from fusewire_ingest.openai.responses_stream import Event, ResponseEvents


def routes(dependencies: Dependencies) -> APIRouter:
    """`/responses`."""
    router = APIRouter(tags=["responses"])

    @router.post(
        "/responses",
        summary="Answer a conversation, or go on with one",
        openapi_extra=schemas.body("ResponseRequest"),
        responses=schemas.reply("Response", "text/event-stream"),
    )
    async def respond(request: Request, caller: SubmitCaller) -> Response:
        with telemetry.receiving("ingest", "http", request.headers):
            run = await _begin(dependencies, caller, request)
            if run.is_streamed:
                return await stream_answer(dependencies, run, EventEncoder(run))
            outcome = await wait_for_answer(dependencies, run, request)
        return JSONResponse(_response(run, outcome), headers=run.headers)

    @router.get(
        "/responses/{response_id}",
        summary="One response",
        responses=schemas.reply("Response"),
    )
    async def get(response_id: str, caller: ReadCaller) -> Response:
        fusion = await dependencies.outcomes.get(caller.tenant, _fusion_id(response_id))
        if fusion is None or fusion.outcome is None:
            raise HttpError(
                404, "unknown_response", "there is no such response, or it has not ended yet"
            )
        body = fusion.outcome.model_dump(mode="json")
        created = int(fusion.submitted_at.timestamp())
        return JSONResponse(
            responses_shape.response_of(body, model=f"fusewire/{body['pool']}", created=created)
        )

    return router


async def _begin(dependencies: Dependencies, caller: Caller, request: Request) -> Run:
    """Parse a request and begin its run. The memory of a large body is then given back."""
    async with bodies.room(request, dependencies.settings.limits, dependencies.body_memory) as room:
        body = await bodies.json_object(request, room.limit)
        previous_id = body.get(responses_shape.PREVIOUS)
        earlier_messages = await _earlier_messages(dependencies, caller, previous_id)
        rewritten = responses_shape.chat_body(body, earlier_messages)
        pools = dependencies.pools(caller.tenant)
        pool = default_pool(pools)
        try:
            chat = chat_request.read(rewritten.body, pools, pool)
        except RefusedError as exc:
            raise exc.relocate(rewritten.origin) from None
        is_large = room.is_large or bool(earlier_messages)
        return await begin(dependencies, caller, request.headers, chat, body, is_large=is_large)


def _fusion_id(response_id: str) -> str:
    return response_id.removeprefix(responses_shape.RESPONSE)


async def _earlier_messages(
    dependencies: Dependencies, caller: Caller, previous_id: object
) -> tuple[Message, ...]:
    """The conversation up to an earlier response. Raises RefusedError if there is no such one."""
    if previous_id is None:
        return ()
    fusion_id = _fusion_id(previous_id) if isinstance(previous_id, str) else ""
    if not fusion_id:
        raise _unknown_response_error()
    fusion = await dependencies.outcomes.get(caller.tenant, fusion_id)
    if fusion is None or fusion.outcome is None:
        raise _unknown_response_error()
    prompt = await dependencies.intake.prompt(caller.tenant, fusion_id)
    if prompt is None:
        raise _unknown_response_error()
    messages = await dependencies.large_parts.put_back(caller.tenant, prompt.messages)
    prompt = prompt.model_copy(update={"messages": messages})
    return responses_shape.conversation(prompt, fusion.outcome)


def _unknown_response_error() -> RefusedError:
    path = responses_shape.PREVIOUS
    return RefusedError(
        "unknown_response", f"'{path}': there is no such response, or it has not ended yet", path
    )


def _response(run: Run, outcome: Outcome) -> replies.responses.Response:
    body = outcome.model_dump(mode="json")
    return responses_shape.response_of(
        body, model=run.model, created=run.created, warnings=run.warnings
    )


class EventEncoder:
    """Encodes a run as events of the Responses API; see `StreamEncoder`."""

    def __init__(self, run: Run) -> None:
        self._run = run
        shell = responses_shape.shell(run.fusion_id, model=run.model, created=run.created)
        self._events = ResponseEvents(shell)

    def begin(self) -> Iterator[bytes]:
        """See `StreamEncoder.begin`."""
        return map(_data, self._events.begin())

    def text(self, piece: str) -> Iterator[bytes]:
        """See `StreamEncoder.text`."""
        return map(_data, self._events.text(piece))

    def end(self, outcome: Outcome) -> Iterator[bytes]:
        """See `StreamEncoder.end`."""
        return map(_data, self._events.end(_response(self._run, outcome)))

    def fail(
        self, _status: int, code: str, message: str, about: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """See `StreamEncoder.fail`."""
        return map(_data, self._events.fail(code, message, about))


def _data(event: Event) -> bytes:
    return data(event, event["type"])
