"""Reads a provider's SSE stream, and publishes tokens as they come."""

from fusewire.sse import Event, EventReader
from fusewire.worker import TokenPublisher
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import Assembly, ProviderReply


class StreamReader:
    """Takes a response's bytes as they come, and publishes their text at once.

    Args:
        assembly: puts the answer together.
        publisher: publishes tokens; None if nobody reads along.
        max_chars: most characters of the answer's text; a longer one is not read to its end.
    """

    def __init__(
        self, assembly: Assembly, publisher: TokenPublisher | None, *, max_chars: int
    ) -> None:
        self._events = EventReader()
        self._assembly = assembly
        self._publisher = publisher
        self._max_chars = max_chars
        self._chars = 0

    async def __call__(self, chunk: bytes) -> bool:
        """Take the next bytes; return whether the rest of the stream can be ignored."""
        await self._take(self._events.feed(chunk))
        return self._assembly.is_ended or self._chars > self._max_chars

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, so that nothing is lost if the stream breaks off now."""
        return self._assembly.is_complete and self._chars <= self._max_chars

    async def result(self) -> ProviderReply | Failure:
        """End the stream; return its answer, or the failure that it ended in."""
        if self._chars > self._max_chars:
            message = f"the answer exceeds {self._max_chars} characters"
            return Failure("answer_too_large", message, retryable=False, billed=True)
        await self._take(self._events.end())
        return self._assembly.result()

    async def _take(self, events: list[Event]) -> None:
        for event in events:
            text = self._assembly.add(event)
            if text:
                self._chars += len(text)
                if self._publisher is not None:
                    await self._publisher(text)
