"""A chat completion as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
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

COMMENT = b": fusewire\n\n"
DONE = b"data: [DONE]\n\n"
_LINE_ENDS = {ord(one): f"\\u{ord(one):04x}" for one in "\u0085\u2028\u2029"}
"""What some clients take for the end of a line, as JSON may also write it."""
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
    tells_panel: bool = True
    """Whether comments tell how many members have answered."""

    def piece(self, text: str, *, is_first: bool) -> dict[str, Any]:
        """A chunk of text."""
        return chat_reply.piece(
            self.fusion_id, model=self.asked.model, created=self.created, text=text, is_first=is_first
        )

    def error(self, status: int, code: str, message: str, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An error where a chunk is expected: OpenAI's SDK raises it, OpenRouter's reads it as a chunk's."""
        frame = {**self.piece("", is_first=False), "choices": []}
        return {**frame, **errors.body(self.request, status, code, message, about=about)}


async def events(
    of: Telling, watch: Watch, outcome: Awaitable[Outcome], *, heartbeat_s: float
) -> AsyncGenerator[bytes, None]:
    """Tell of a fusion while it runs.

    A comment is sent at once, for clients that wait a few seconds for a first byte and then ask again. So whatever
    fails is told within the stream.

    Args:
        of: of what.
        watch: listening since before the prompt was submitted.
        outcome: its end.
        heartbeat_s: the longest silence.
    """
    ended = asyncio.ensure_future(outcome)
    ended.add_done_callback(lambda _: watch.end())
    sent, comment = "", COMMENT
    try:
        yield comment
        while not isinstance(event := await watch.next(heartbeat_s), Ended):
            if isinstance(event, str):
                yield _data(of.piece(event, is_first=not sent))
                sent += event
                continue
            if isinstance(event, Progress) and of.tells_panel:
                comment = _comment(event)
            elif isinstance(event, Progress):
                continue
            yield comment
        try:
            for chunk in _rest(of, await ended, sent):
                yield _data(chunk)
        except HttpError as exc:
            yield _data(of.error(exc.status, exc.code, exc.message, exc.about))
            return
        except Transient:
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
                with_usage=asked.with_usage or errors.is_openrouter(of.request),
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
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.translate(_LINE_ENDS).encode() + b"\n\n"


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
