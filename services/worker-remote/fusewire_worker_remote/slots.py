"""The calls of a model that may run at once, given to the most urgent task first."""

import asyncio
import heapq
import itertools
from collections.abc import Callable


class SlotQueue:
    """A semaphore whose waiters are served by rank, and those of equal rank in their order.

    Args:
        count: how many there are.
        last_rank: the rank of the least urgent tasks.
        reserve: how many these leave free, of as many as there are.
    """

    def __init__(
        self, count: int, *, last_rank: int, reserve: Callable[[int], int] = lambda _: 0
    ) -> None:
        self._count = count
        self._taken_count = 0
        self._last_rank = last_rank
        self._reserve = reserve
        self._numbers = itertools.count()
        self._waiters: list[tuple[int, int, asyncio.Future[bool]]] = []

    @property
    def taken_count(self) -> int:
        """Slots that are in use: more than there are, after a `resize` to fewer."""
        return self._taken_count

    def resize(self, count: int) -> None:
        """Change how many there are. Whoever has one keeps it."""
        self._count = count
        self._serve()

    def dismiss_waiters(self) -> None:
        """Let all waiters go without a slot."""
        for _, _, turn in self._waiters:
            if not turn.done():
                turn.set_result(False)
        self._waiters.clear()

    async def acquire(self, rank: int) -> bool:
        """Take a slot, waiting until there is one; return False if the waiters were dismissed.

        Args:
            rank: 0 is the most urgent.
        """
        if self._has_room(rank):
            self._taken_count += 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (rank, next(self._numbers), turn))
        try:
            return await turn
        except asyncio.CancelledError:
            # It may have been given the slot just before.
            if not turn.cancelled() and turn.result():
                self.release()
            raise

    def release(self) -> None:
        """Give a slot back, and serve the most urgent waiter if there is room for it."""
        self._taken_count -= 1
        self._serve()

    def _serve(self) -> None:
        while self._waiters and self._has_room(self._waiters[0][0]):
            _, _, turn = heapq.heappop(self._waiters)
            if not turn.done():
                self._taken_count += 1
                turn.set_result(True)

    def _has_room(self, rank: int) -> bool:
        reserve = self._reserve(self._count) if rank >= self._last_rank else 0
        return self._count - self._taken_count > reserve
