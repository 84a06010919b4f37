"""The calls of a model that may run at once, given to the most urgent task first."""

import asyncio
import heapq
import itertools


class SlotQueue:
    """A semaphore whose waiters are served by rank, and those of equal rank in their order.

    Args:
        count: how many there are.
        last_rank: the rank of the least urgent tasks.
        reserve: how many these leave free.
    """

    def __init__(self, count: int, *, last_rank: int, reserve: int = 0) -> None:
        self._free = count
        self._last_rank = last_rank
        self._reserve = reserve
        self._numbers = itertools.count()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    async def acquire(self, rank: int) -> None:
        """Take a slot, waiting until there is one.

        Args:
            rank: 0 is the most urgent.
        """
        if self._has_room(rank):
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (rank, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            # It may have been given the slot just before.
            if not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back, and serve the most urgent waiter if there is room for it."""
        self._free += 1
        while self._waiters and self._has_room(self._waiters[0][0]):
            _, _, turn = heapq.heappop(self._waiters)
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
                return

    def _has_room(self, rank: int) -> bool:
        return self._free > (self._reserve if rank >= self._last_rank else 0)
