"""A fusion as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fusewire.contracts import Outcome
from fusewire.errors import Transient
from fusewire_ingest.api.errors import ClientDisconnectedError, HttpError
from fusewire_ingest.api.leaving import while_connected
from fusewire_ingest.openai import chat_reply
from fusewire_ingest.watching import Ended, Progress, Watch

COMMENT = b": fusewire\n\n"
DONE = b"data: [DONE]\n\n"
_LINE_ENDS = {ord(char): f"\\u{ord(char):04x}" for char in "\u0085\u2028\u2029"}
"""JSON escapes of characters that some clients take for the end of a line."""
HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # Else nginx, and proxies like it, would buffer the pieces.
    "x-accel-buffering": "no",
}


class StreamEncoder(Protocol):
    """Encodes a run for one API. Each method returns the bytes to send."""

    def begin(self) -> Iterator[bytes]:
        """The beginning."""
        ...

    def text(self, piece: str) -> Iterator[bytes]:
        """More of the answer."""
        ...

    def end(self, outcome: Outcome) -> Iterator[bytes]:
        """The end, with everything that was not streamed.

        Raises:
            SupersededError: the answer does not begin with the streamed text. Raised by the call
                itself, before the first piece.
        """
        ...

    def fail(
        self, status: int, code: str, message: str, about: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """The end of a run without an answer."""
        ...


async def events(
    encoder: StreamEncoder,
    watch: Watch,
    outcome: Awaitable[Outcome],
    *,
    heartbeat_s: float,
    tells_panel: bool,
) -> AsyncGenerator[bytes, None]:
    """Stream a fusion while it runs.

    A comment is sent at once, for clients that repeat a request after a few seconds without a first
    byte. Failures can therefore only be reported within the stream (docs/decisions/0018).

    Args:
        encoder: encodes the run.
        watch: the fusion's events, since before the prompt was submitted.
        outcome: the end of the run.
        heartbeat_s: the longest silence, seconds.
        tells_panel: whether comments tell how many members have answered.
    """
    waiting = asyncio.ensure_future(outcome)
    waiting.add_done_callback(lambda _: watch.end())
    progress: Progress | None = None
    try:
        yield COMMENT
        for piece in encoder.begin():
            yield piece
        while not isinstance(event := await watch.next(heartbeat_s), Ended):
            if isinstance(event, Progress):
                progress = event
            for piece in _pieces(encoder, event, progress, tells_panel=tells_panel):
                yield piece
        for piece in await _last_pieces(encoder, waiting):
            yield piece
    finally:
        waiting.cancel()
        # Wait until it has ended: a later check for open requests must not count this one.
        await asyncio.gather(waiting, return_exceptions=True)


def _pieces(
    encoder: StreamEncoder,
    event: Progress | str | None,
    progress: Progress | None,
    *,
    tells_panel: bool,
) -> Iterable[bytes]:
    """What is sent after a piece of the answer, a member's answer, or a silence (None)."""
    if isinstance(event, str):
        return encoder.text(event)
    if tells_panel:
        return (_comment(progress),)
    return () if isinstance(event, Progress) else (COMMENT,)


async def _last_pieces(encoder: StreamEncoder, waiting: Awaitable[Outcome]) -> Iterator[bytes]:
    try:
        outcome = await waiting
    except HttpError as exc:
        return encoder.fail(exc.status, exc.code, exc.message, exc.about)
    except Transient:
        return encoder.fail(
            503, "unavailable", "it goes on; send the request again, it costs nothing", None
        )
    try:
        return encoder.end(outcome)
    except chat_reply.SupersededError:
        message = (
            "another answer was chosen than the one that was streamed; read it with "
            f"GET /v1/fusions/{outcome.fusion_id}, it costs nothing"
        )
        return encoder.fail(409, "stream_superseded", message, None)


def _comment(progress: Progress | None) -> bytes:
    """A comment that tells how many members have answered, if that is known."""
    if progress is None:
        return COMMENT
    count = str(progress.answered)
    if progress.asked is not None:
        # A second wave may answer beyond those asked at first.
        count = f"{count}/{max(progress.asked, progress.answered)}"
    return f": fusewire panel {count}\n\n".encode()


def data(value: Mapping[str, object], event: str | None = None) -> bytes:
    """Encode a value as a server-sent event, named `event` if that is given."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {text.translate(_LINE_ENDS)}\n\n".encode()


class EventStream(Response):
    """Sends events as they come, and its status with the first of them.

    Args:
        pieces: the events.
        listening: the contexts that the events need; closed at the end.
        headers: of the response.
        on_disconnect: called if the client disconnects before the end.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        listening: contextlib.AsyncExitStack,
        headers: dict[str, str],
        on_disconnect: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        # Starlette set it, for an empty body.
        del self.headers["content-length"]
        self._pieces = pieces
        self._listening = listening
        self._on_disconnect = on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """ASGI."""
        try:
            await while_connected(receive, self._send(send))
        except ClientDisconnectedError:
            await self._on_disconnect()

    async def _send(self, send: Send) -> None:
        has_begun = False
        async with self._listening, contextlib.aclosing(self._pieces) as pieces:
            async for piece in pieces:
                if not has_begun:
                    has_begun = True
                    await send(
                        {
                            "type": "http.response.start",
                            "status": self.status_code,
                            "headers": self.raw_headers,
                        }
                    )
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
