"""Waiting for something to become true, for tests and benchmarks only."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE_S = 280.0
"""Long enough for the slowest machine: it only matters where a test is about to fail.

A little less than the time limit of a test, so that what was seen last is told."""


async def eventually(
    look: Callable[[], Awaitable[Any] | Any], *, timeout_s: float = PATIENCE_S
) -> Any:
    """Look again and again until there is something to see; returns it.

    Raises:
        AssertionError: there still is not after `timeout_s`; tells what was seen last.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while True:
        looked = look()
        seen = await looked if inspect.isawaitable(looked) else looked
        if seen:
            return seen
        if loop.time() > until:
            raise AssertionError(f"still {seen!r} after {timeout_s:g} s")
        await asyncio.sleep(0.02)


def until(look: Callable[[], Any], what: str) -> Any:
    """The same for a test without an event loop; returns what is seen.

    Raises:
        AssertionError: there still is nothing after `PATIENCE_S`; says `what` was waited for.
    """
    end = time.monotonic() + PATIENCE_S
    while not (seen := look()):
        if time.monotonic() > end:
            raise AssertionError(f"never saw {what}")
        time.sleep(0.05)
    return seen
