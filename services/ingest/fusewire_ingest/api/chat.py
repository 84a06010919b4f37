"""Chat completions: OpenAI's route, answered by a fusion."""

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
from fusewire_ingest.api.dependencies import Dependencies, Who
from fusewire_ingest.api.run import Run, answered, begin, streamed
from fusewire_ingest.api.stream import DONE, data
from fusewire_ingest.openai import chat_reply, chat_request


def routes(of: Dependencies) -> APIRouter:
    """`/chat/completions`."""
    router = APIRouter(tags=["chat"])

    @router.post(
        "/chat/completions",
        summary="Answer a conversation",
        openapi_extra=schemas.body("ChatCompletionRequest"),
        responses=schemas.reply("ChatCompletion", "text/event-stream"),
    )
    async def complete(request: Request, who: Who) -> Response:
        with telemetry.receiving("ingest", "http", request.headers):
            run = await _begin(of, who, request)
            if run.is_streamed:
                return await streamed(of, run, ChunkEncoder(request, run))
            outcome = await answered(of, run, request)
        reply = chat_reply.completion(
            outcome, model=run.model, created=run.created, warnings=run.warnings
        )
        return JSONResponse(
            _without_null_cost(reply) if errors.takes_no_null_cost(request) else reply,
            headers=run.headers,
        )

    return router


def _without_null_cost(
    reply: replies.chat.ChatCompletion | replies.chat.ChatChunk,
) -> Mapping[str, object]:
    used = reply.get("usage")
    return {**reply, "usage": chat_reply.without_null_cost(used)} if used else reply


async def _begin(of: Dependencies, who: Caller, request: Request) -> Run:
    """Read a request. Its body, which may be large, is held no longer than that."""
    async with bodies.room(request, of.settings.limits, of.body_memory) as room:
        body = await bodies.json_object(request, room.limit)
        asked = chat_request.read(body, of.pools, default_pool(of.pools, who.rule.pools))
        return await begin(of, who, request.headers, asked, body, is_large=room.is_large)


@dataclass
class ChunkEncoder:
    """Tells of a run in chunks; see `Telling`."""

    request: Request
    run: Run
    sent: str = ""

    def begin(self) -> Iterator[bytes]:
        """See `Telling.begin`."""
        return iter(())

    def text(self, piece: str) -> Iterator[bytes]:
        """See `Telling.text`."""
        told = self._piece(piece, is_first=not self.sent)
        self.sent += piece
        yield data(told)

    def end(self, outcome: Outcome) -> Iterator[bytes]:
        """See `Telling.end`."""
        run = self.run
        found = chat_reply.chunks(
            outcome,
            model=run.model,
            created=run.created,
            sent=self.sent,
            with_usage=run.with_usage or errors.is_openrouter(self.request),
            warnings=run.warnings,
        )
        shown = map(_without_null_cost, found) if errors.takes_no_null_cost(self.request) else found
        return iter((*map(data, shown), DONE))

    def fail(
        self, status: int, code: str, message: str, about: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """See `Telling.fail`. OpenAI's SDK raises it, OpenRouter's reads it as a chunk's."""
        frame = {**self._piece("", is_first=False), "choices": []}
        yield data({**frame, **errors.body(self.request, status, code, message, about=about)})

    def _piece(self, text: str, *, is_first: bool) -> replies.chat.ChatChunk:
        run = self.run
        return chat_reply.piece(
            run.fusion_id, model=run.model, created=run.created, text=text, is_first=is_first
        )
