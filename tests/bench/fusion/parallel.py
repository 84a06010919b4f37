"""Slices of the work in processes; what comes out does not depend on how many."""

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import chain, pairwise
from multiprocessing import get_context
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
SLICES = 24


class Pool(Protocol):
    """Takes work."""

    def begin(self, work: Callable[..., list[T]], *args: Any, n: int) -> Callable[[], list[T]]:
        """Run `work(*args, start, stop)` over all slices of n.

        Returns:
            A function that waits for all their rows.
        """
        ...


class SerialPool:
    """This process."""

    def begin(self, work: Callable[..., list[T]], *args: Any, n: int) -> Callable[[], list[T]]:
        """See Pool."""
        return partial(work, *args, 0, n)


class Processes:
    """As many as there are jobs. Work and arguments must be picklable."""

    def __init__(self, jobs: int) -> None:
        # Not forked: a fork of a process with threads may stand still.
        self.executor = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))

    def begin(self, work: Callable[..., list[T]], *args: Any, n: int) -> Callable[[], list[T]]:
        """See Pool."""
        cuts = [n * i // SLICES for i in range(SLICES + 1)]
        slices: list[Future[list[T]]] = [
            self.executor.submit(work, *args, a, b) for a, b in pairwise(cuts) if a < b
        ]
        return lambda: list(chain.from_iterable(future.result() for future in slices))
