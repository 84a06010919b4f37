"""A chat completion as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fusewire.contracts import Outcome
from fusewire.errors import Transient
from fusewire_ingest import chat_reply
from fusewire_ingest.api import errors
from fusewire_ingest.api.errors import GoneError, HttpError
from fusewire_ingest.api.leaving import unless_gone
from fusewire_ingest.chat_request import ChatRequest
from fusewire_ingest.watching import Ended, Progress, Watch

DONE = b"data: [DONE]\n\n"
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # Proxies of nginx's kind would collect the pieces.
    "x-accel-buffering": "no",
}


@dataclass(frozen=True)
class Telling:
    """What a stream tells of."""

    request: Request
    fusion_id: str
    asked: ChatRequest
    created: int

    def piece(self, text: str, *, is_first: bool) -> dict[str, Any]:
        """A chunk of text."""
        return chat_reply.piece(
            self.fusion_id, model=self.asked.model, created=self.created, text=text, is_first=is_first
        )

    def error(self, status: int, code: str, message: str) -> dict[str, Any]:
        """An error where a chunk is expected: OpenAI's SDK raises it, OpenRouter's reads it as a chunk's."""
        frame = {**self.piece("", is_first=False), "choices": []}
        return {**frame, **errors.body(self.request, status, code, message)}


async def events(
    of: Telling, watch: Watch, outcome: Awaitable[Outcome], *, heartbeat_s: float
) -> AsyncGenerator[bytes, None]:
    """Tell of a fusion while it runs.

    The first event is sent when there is text, an answer of a member, or nothing for `heartbeat_s`: what fails
    before that is still an HTTP error.

    Args:
        of: of what.
        watch: listening since before the prompt was submitted.
        outcome: its end.
        heartbeat_s: the longest silence.

    Raises:
        HttpError: nothing has been told, and it failed.
    """
    ended = asyncio.ensure_future(outcome)
    ended.add_done_callback(lambda _: watch.end())
    sent, is_begun, comment = "", False, b": fusewire\n\n"
    try:
        while not isinstance(event := await watch.next(heartbeat_s), Ended):
            if isinstance(event, str):
                yield _data(of.piece(event, is_first=not sent))
                sent += event
            elif isinstance(event, Progress):
                comment = _comment(event)
                if not is_begun and not event.answered:
                    continue
                yield comment
            else:
                yield comment
            is_begun = True
        try:
            for chunk in _rest(of, await ended, sent):
                yield _data(chunk)
        except HttpError as exc:
            if not is_begun:
                raise
            yield _data(of.error(exc.status, exc.code, exc.message))
            return
        except Transient:
            if not is_begun:
                raise
            message = f"it goes on; read it with GET /v1/fusions/{of.fusion_id}"
            yield _data(of.error(503, "unavailable", message))
            return
        yield DONE
    finally:
        ended.cancel()
        # Whoever asks next whether somebody still waits shall not find this one.
        await asyncio.gather(ended, return_exceptions=True)


def _rest(of: Telling, outcome: Outcome, sent: str) -> list[dict[str, Any]]:
    asked = of.asked
    try:
        return list(
            chat_reply.chunks(
                outcome,
                model=asked.model,
                created=of.created,
                sent=sent,
                with_usage=asked.with_usage,
                warnings=asked.warnings,
            )
        )
    except chat_reply.SupersededError:
        raise HttpError(
            409,
            "stream_superseded",
            "another answer was chosen than the one that was streamed; read it with "
            f"GET /v1/fusions/{of.fusion_id}, it costs nothing",
        ) from None


def _comment(progress: Progress) -> bytes:
    answered = progress.answered
    # A second wave may answer beyond those asked at first.
    told = f"{answered}" if progress.asked is None else f"{answered}/{max(progress.asked, answered)}"
    return f": fusewire panel {told}\n\n".encode()


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they come; its status goes out with the first of them.

    Args:
        pieces: the events.
        listening: what they are made of; closed at the end.
        headers: of the response.
        on_gone: called when the client leaves before the end.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        listening: contextlib.AsyncExitStack,
        headers: dict[str, str],
        on_gone: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        # A length would be that of an empty body.
        del self.headers["content-length"]
        self._pieces = pieces
        self._listening = listening
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """ASGI."""
        try:
            await unless_gone(receive, self._send(send))
        except GoneError:
            await self._on_gone()

    async def _send(self, send: Send) -> None:
        is_begun = False
        async with self._listening, contextlib.aclosing(self._pieces) as pieces:
            async for piece in pieces:
                if not is_begun:
                    is_begun = True
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
