"""A fusion as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fusewire.contracts import Outcome
from fusewire.errors import Transient
from fusewire_ingest.api.errors import ClientDisconnectedError, HttpError
from fusewire_ingest.api.leaving import unless_gone
from fusewire_ingest.openai import chat_reply
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


class StreamEncoder(Protocol):
    """How a run is told of, in the words of one API. Each method gives what is sent."""

    def begin(self) -> Iterator[bytes]:
        """It has begun."""
        ...

    def text(self, piece: str) -> Iterator[bytes]:
        """More of its answer."""
        ...

    def end(self, outcome: Outcome) -> Iterator[bytes]:
        """Whatever is still to be told of it.

        Raises:
            SupersededError: at once, where its answer does not begin with what was told.
        """
        ...

    def fail(
        self, status: int, code: str, message: str, about: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """It has no answer."""
        ...


async def events(
    of: StreamEncoder,
    watch: Watch,
    outcome: Awaitable[Outcome],
    *,
    heartbeat_s: float,
    tells_panel: bool,
) -> AsyncGenerator[bytes, None]:
    """Tell of a fusion while it runs.

    A comment is sent at once, for clients that wait a few seconds for a first byte and then ask again. So whatever
    fails is told within the stream.

    Args:
        of: how.
        watch: listening since before the prompt was submitted.
        outcome: its end.
        heartbeat_s: the longest silence.
        tells_panel: whether comments tell how many members have answered.
    """
    ended = asyncio.ensure_future(outcome)
    ended.add_done_callback(lambda _: watch.end())
    comment = COMMENT
    try:
        yield comment
        for told in of.begin():
            yield told
        while not isinstance(event := await watch.next(heartbeat_s), Ended):
            if isinstance(event, str):
                for told in of.text(event):
                    yield told
                continue
            if isinstance(event, Progress):
                if not tells_panel:
                    continue
                comment = _comment(event)
            yield comment
        for told in await _rest(of, ended):
            yield told
    finally:
        ended.cancel()
        # Whoever asks next whether somebody still waits shall not find this one.
        await asyncio.gather(ended, return_exceptions=True)


async def _rest(of: StreamEncoder, ended: Awaitable[Outcome]) -> Iterator[bytes]:
    try:
        outcome = await ended
    except HttpError as exc:
        return of.fail(exc.status, exc.code, exc.message, exc.about)
    except Transient:
        return of.fail(
            503, "unavailable", "it goes on; send the request again, it costs nothing", None
        )
    try:
        return of.end(outcome)
    except chat_reply.SupersededError:
        message = (
            "another answer was chosen than the one that was streamed; read it with "
            f"GET /v1/fusions/{outcome.fusion_id}, it costs nothing"
        )
        return of.fail(409, "stream_superseded", message, None)


def _comment(progress: Progress) -> bytes:
    answered = progress.answered
    # A second wave may answer beyond those asked at first.
    told = (
        f"{answered}" if progress.asked is None else f"{answered}/{max(progress.asked, answered)}"
    )
    return f": fusewire panel {told}\n\n".encode()


def data(value: Mapping[str, object], event: str | None = None) -> bytes:
    """A value as an event, of this name if it has one."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    named = f"event: {event}\n" if event else ""
    return f"{named}data: {text.translate(_LINE_ENDS)}\n\n".encode()


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
        except ClientDisconnectedError:
            await self._on_gone()

    async def _send(self, send: Send) -> None:
        is_begun = False
        async with self._listening, contextlib.aclosing(self._pieces) as pieces:
            async for piece in pieces:
                if not is_begun:
                    is_begun = True
                    await send(
                        {
                            "type": "http.response.start",
                            "status": self.status_code,
                            "headers": self.raw_headers,
                        }
                    )
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
