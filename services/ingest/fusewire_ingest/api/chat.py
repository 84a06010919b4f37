"""OpenAI's route for chat completions, answered by a fusion."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from fusewire import replies, telemetry
from fusewire.contracts import Outcome
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.rules import default_pool
from fusewire_ingest.api import bodies, errors, schemas
from fusewire_ingest.api.dependencies import Dependencies, SubmitCaller
from fusewire_ingest.api.run import Run, begin, stream_answer, wait_for_answer
from fusewire_ingest.api.stream import DONE, data
from fusewire_ingest.openai import chat_reply, chat_request


def routes(dependencies: Dependencies) -> APIRouter:
    """`/chat/completions`."""
    router = APIRouter(tags=["chat"])

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        openapi_extra=schemas.body("ChatCompletionRequest"),
        responses=schemas.reply("ChatCompletion", "text/event-stream"),
    )
    async def complete(request: Request, caller: SubmitCaller) -> Response:
        with telemetry.receiving("ingest", "http", request.headers):
            run = await _begin(dependencies, caller, request)
            if run.is_streamed:
                return await stream_answer(dependencies, run, ChunkEncoder(request, run))
            outcome = await wait_for_answer(dependencies, run, request)
        reply = chat_reply.completion(
            outcome, model=run.model, created=run.created, warnings=run.warnings
        )
        body = _without_null_cost(reply) if errors.rejects_null_cost(request) else reply
        return JSONResponse(body, headers=run.headers)

    return router


def _without_null_cost(
    reply: replies.chat.ChatCompletion | replies.chat.ChatChunk,
) -> Mapping[str, object]:
    usage = reply.get("usage")
    return {**reply, "usage": chat_reply.without_null_cost(usage)} if usage else reply


async def _begin(dependencies: Dependencies, caller: Caller, request: Request) -> Run:
    """Parse a request and begin its run. The memory of a large body is then given back."""
    async with bodies.room(request, dependencies.settings.limits, dependencies.body_memory) as room:
        body = await bodies.json_object(request, room.limit)
        pools = dependencies.pools(caller.tenant)
        pool = default_pool(pools)
        chat = chat_request.read(body, pools, pool)
        return await begin(
            dependencies, caller, request.headers, chat, body, is_large=room.is_large
        )


@dataclass
class ChunkEncoder:
    """Encodes a run as chunks of a chat completion; see `StreamEncoder`."""

    request: Request
    run: Run
    streamed_text: str = ""

    def begin(self) -> Iterator[bytes]:
        """See `StreamEncoder.begin`."""
        return iter(())

    def text(self, piece: str) -> Iterator[bytes]:
        """See `StreamEncoder.text`."""
        chunk = self._piece(piece, is_first=not self.streamed_text)
        self.streamed_text += piece
        yield data(chunk)

    def end(self, outcome: Outcome) -> Iterator[bytes]:
        """See `StreamEncoder.end`."""
        run = self.run
        chunks = chat_reply.chunks(
            outcome,
            model=run.model,
            created=run.created,
            streamed_text=self.streamed_text,
            with_usage=run.with_usage or errors.is_openrouter(self.request),
            warnings=run.warnings,
        )
        if errors.rejects_null_cost(self.request):
            return iter((*map(data, map(_without_null_cost, chunks)), DONE))
        return iter((*map(data, chunks), DONE))

    def fail(
        self, status: int, code: str, message: str, about: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """See `StreamEncoder.fail`. OpenAI's SDK raises it, OpenRouter's reads it in a chunk."""
        frame = {**self._piece("", is_first=False), "choices": []}
        yield data({**frame, **errors.body(self.request, status, code, message, about=about)})

    def _piece(self, text: str, *, is_first: bool) -> replies.chat.ChatChunk:
        run = self.run
        return chat_reply.piece(
            run.fusion_id, model=run.model, created=run.created, text=text, is_first=is_first
        )
