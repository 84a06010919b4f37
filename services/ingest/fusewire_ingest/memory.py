"""Limits the memory that large request bodies take, and returns it to the system afterwards."""

import asyncio
import contextlib
import ctypes
from collections.abc import AsyncIterator

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of mallopt(3): larger buffers are mapped alone, and unmapped when freed."""
_LARGE = 256 * 1024


def give_back_large_buffers() -> None:
    """Make glibc return each large buffer to the system when it is freed; elsewhere do nothing.

    By default glibc raises the threshold to the largest buffer freed so far, and then keeps bodies
    of megabytes among small objects: five requests with 5 MB pictures took 408 MB instead of 289.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


class ByteBudget:
    """A semaphore over bytes; a holder that asks for more than all of them gets them alone.

    First come, first served, so that a large holder is not overtaken for ever by small ones.

    Args:
        most: the capacity, in bytes.
    """

    def __init__(self, most: int) -> None:
        self._capacity = most
        self._in_use = 0
        self._turn = asyncio.Lock()
        self._release = asyncio.Event()

    @contextlib.asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Wait until there is room for `count` bytes, and hold them."""
        async with self._turn:
            while self._in_use and self._in_use + count > self._capacity:
                self._release.clear()
                await self._release.wait()
            self._in_use += count
        try:
            yield
        finally:
            self._in_use -= count
            self._release.set()
