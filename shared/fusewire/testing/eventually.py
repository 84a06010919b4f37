"""Waiting for something to become true, for tests and benchmarks only."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE_S = 280.0
"""Long enough for the slowest machine: it only matters where a test is about to fail.

A little less than the time limit of a test, so that the last result is reported."""


async def eventually(
    look: Callable[[], Awaitable[Any] | Any], *, timeout_s: float = PATIENCE_S
) -> Any:
    """Call `look` until its result is true; returns the result.

    Raises:
        AssertionError: it still is not after `timeout_s`; names the last result.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while True:
        result = look()
        last_result = await result if inspect.isawaitable(result) else result
        if last_result:
            return last_result
        if loop.time() > until:
            raise AssertionError(f"still {last_result!r} after {timeout_s:g} s")
        await asyncio.sleep(0.02)


def until(look: Callable[[], Any], what: str) -> Any:
    """The same for a test without an event loop.

    Raises:
        AssertionError: the result is still false after `PATIENCE_S`; names `what` was expected.
    """
    end = time.monotonic() + PATIENCE_S
    while not (result := look()):
        if time.monotonic() > end:
            raise AssertionError(f"never saw {what}")
        time.sleep(0.05)
    return result
