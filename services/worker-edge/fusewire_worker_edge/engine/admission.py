"""Which requests may run beside each other: a shared-exclusive lock, in the order of arrival."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Admission:
    """Many requests at once, or one alone.

    One that runs alone waits until those before it have ended; those after it wait for its end.
    """

    def __init__(self) -> None:
        self._gate = asyncio.Lock()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._running = 0

    @asynccontextmanager
    async def hold(self, *, is_alone: bool) -> AsyncIterator[None]:
        """Wait for the turn of a request; inside the block, it runs."""
        if is_alone:
            async with self._gate:
                await self._is_empty.wait()
                yield
            return
        async with self._gate:
            self._running += 1
            self._is_empty.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._is_empty.set()
