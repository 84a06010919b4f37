"""A streamed answer, told while it is being read."""

from fusewire.worker import TokenPublisher
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import Assembly, ProviderReply
from fusewire_worker_remote.sse import Event, EventReader


class StreamReader:
    """Takes a response's bytes as they come; what they say is told at once.

    Args:
        assembly: puts the answer together.
        tell: whom to tell, if anybody wants to know.
        max_chars: of the answer's text; it is not read further.
    """

    def __init__(self, assembly: Assembly, tell: TokenPublisher | None, *, max_chars: int) -> None:
        self._events = EventReader()
        self._assembly = assembly
        self._tell = tell
        self._max_chars = max_chars
        self._chars = 0

    async def __call__(self, chunk: bytes) -> bool:
        """Take the next bytes; whether they were the last that count."""
        await self._take(self._events.feed(chunk))
        return self._assembly.is_ended or self._chars > self._max_chars

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, so that a stream that breaks off now has lost nothing."""
        return self._assembly.is_complete and self._chars <= self._max_chars

    async def result(self) -> ProviderReply | Failure:
        """What the stream, now at its end, came to."""
        if self._chars > self._max_chars:
            what = f"the answer exceeds {self._max_chars} characters"
            return Failure("answer_too_large", what, retryable=False, billed=True)
        await self._take(self._events.end())
        return self._assembly.result()

    async def _take(self, events: list[Event]) -> None:
        for event in events:
            text = self._assembly.add(event)
            if text:
                self._chars += len(text)
                if self._tell is not None:
                    await self._tell(text)
