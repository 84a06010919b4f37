"""Loops that run beside everything else until their owner stops them."""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

CANCEL_AGAIN_S = 1.0
"""How long a cancelled task may take before it is cancelled once more."""


class BackgroundTasks:
    """The loops of one owner. None of them ends by itself, so one that has ended is a fault."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """Run a loop. Its name is what `faults` calls it."""
        self._tasks.append(asyncio.create_task(loop, name=name))

    async def stop(self) -> None:
        """End all loops."""
        await cancel(self._tasks)

    def faults(self) -> list[str]:
        """Names of loops that have ended."""
        return [f"{task.get_name()} has ended" for task in self._tasks if task.done()]


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended; what they raise is dropped.

    Until Python 3.12, `asyncio.wait_for` drops a cancellation that arrives when its future is just
    done (python/cpython#86296), and nats-py waits with it for each acknowledgement; it also
    swallows one while it closes a connection. A task that goes on for such a reason is cancelled
    again.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
