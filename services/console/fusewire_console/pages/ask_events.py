"""The events of one fusion, from the API to the browser of who has asked."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from urllib.parse import quote

from starlette.responses import StreamingResponse
from starlette.types import Send

from fusewire import sse
from fusewire_console.access import Visitor
from fusewire_console.api import ApiError
from fusewire_console.figures.fusion_progress import FusionProgress
from fusewire_console.site import Site

FIRST_S = 5.0
"""How long the API may take until its stream begins."""
QUIET_S = 0.1
"""What comes closer together than this is shown together."""
MOST_S = 0.5
"""The longest that an event waits for others."""
HEARTBEAT_S = 15.0
"""The longest silence: proxies end connections that are silent for a minute."""
RETRY_MS = 2000

Events = asyncio.Queue[list[sse.Event] | ApiError | None]
"""What comes together: no event tells that the sender lives, and None is the end of the stream."""


@contextlib.asynccontextmanager
async def follow(site: Site, visitor: Visitor, fusion_id: str) -> AsyncIterator[Events]:
    """Read the events of a fusion until the block ends, or the console stops."""
    events: Events = asyncio.Queue()

    async def read() -> None:
        reader = sse.EventReader()
        path = f"/v1/fusions/{quote(fusion_id, safe='')}/events"
        try:
            async with contextlib.aclosing(site.api.stream(visitor.key, path)) as pieces:
                async for piece in pieces:
                    events.put_nowait(reader.feed(piece))
        except ApiError as exc:
            events.put_nowait(exc)
        events.put_nowait(None)

    async def end_with_site() -> None:
        await site.closing.wait()
        events.put_nowait(None)

    tasks = [
        asyncio.create_task(read(), name="ask-events"),
        asyncio.create_task(end_with_site(), name="ask-closing"),
    ]
    try:
        yield events
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def take(events: Events, progress: FusionProgress, first_s: float) -> bool:
    """Take in events that come together.

    Args:
        events: the events.
        progress: what they change.
        first_s: how long to wait for the first.

    Returns:
        Whether more may follow.

    Raises:
        ApiError: the API refused to stream, or has gone.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + first_s
    last_at: float | None = None
    while True:
        try:
            async with asyncio.timeout_at(ends_at):
                batch = await events.get()
        except TimeoutError:
            return True
        if batch is None:
            return False
        _apply(batch, progress)
        last_at = last_at or loop.time() + MOST_S
        ends_at = min(loop.time() + QUIET_S, last_at)


def _apply(batch: list[sse.Event] | ApiError, progress: FusionProgress) -> None:
    if isinstance(batch, ApiError):
        raise batch
    for event in batch:
        progress.apply(event.name, json.loads(event.data))


async def read_progress(
    site: Site, visitor: Visitor, fusion_id: str, progress: FusionProgress
) -> None:
    """Take in what has happened so far.

    Raises:
        ApiError: there is no such fusion, or the API does not answer.
    """
    async with follow(site, visitor, fusion_id) as events:
        await take(events, progress, FIRST_S)


class PartWriter:
    """Writes what has differences on the page as events for htmx.

    Args:
        site: the parts.
        fusion_id: the fusion.
    """

    def __init__(self, site: Site, fusion_id: str) -> None:
        self._site = site
        self._fusion_id = fusion_id
        self._layout: tuple[str, ...] | None = None
        self._parts: dict[str, str] = {}

    def changes(self, progress: FusionProgress) -> str:
        """The parts of the page that differ from the last time; at first, all of them."""
        cards = [f"card-{number}" for number in range(len(progress.cards))]
        parts = {
            name: self._part(name, progress) for name in ("status", "answer", *cards, "rounds")
        }
        differences = {name: html for name, html in parts.items() if self._parts.get(name) != html}
        if progress.layout != self._layout:
            for name in cards:
                differences.pop(name, None)
            differences["cards"] = self._part("cards", progress)
        self._parts, self._layout = parts, progress.layout
        return "".join(
            f'<hx-partial hx-target="#ask-{name}" hx-swap="innerMorph">{html}</hx-partial>'
            for name, html in differences.items()
        )

    def _part(self, name: str, progress: FusionProgress) -> str:
        return self._site.renderer.text(
            "ask_part.html", part=name, progress=progress, fusion_id=self._fusion_id
        )


async def pieces(
    site: Site, visitor: Visitor, fusion_id: str, progress: FusionProgress
) -> AsyncGenerator[bytes, None]:
    """Write the page's changes until the outcome; the browser then does not connect again."""
    writer = PartWriter(site, fusion_id)
    yield b": fusewire\n\n"
    async with follow(site, visitor, fusion_id) as events:
        first_s, is_open = FIRST_S, True
        while is_open and not progress.is_over:
            try:
                is_open = await take(events, progress, first_s)
            except ApiError as exc:
                is_open = False
                progress.interrupt(exc.message, can_resume=exc.status >= 500)
            changes = writer.changes(progress)
            yield sse.encode(changes, retry_ms=RETRY_MS) if changes else b": fusewire\n\n"
            first_s = HEARTBEAT_S
    if progress.is_over:
        yield sse.encode("over", name="end")


class EventStream(StreamingResponse):
    """Server-sent events; their source is closed when the browser leaves."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send all events."""
        async with contextlib.aclosing(self._events):
            await super().stream_response(send)
