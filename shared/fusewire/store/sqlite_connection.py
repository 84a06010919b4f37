"""SQLite connections that a cancelled caller leaves without a transaction.

aiosqlite runs each statement on a thread. If its caller is cancelled meanwhile, aiosqlite leaves
the statement running, and SQLAlchemy closes the connection. Two things went wrong then, both
measured:

- Its transaction kept the write lock of the file, so that every other writer waited until
  `busy_timeout` ended. SQLite closes a connection only when its last statement is freed, and a
  cursor in a reference cycle is freed by the garbage collector.
- A close that was cancelled stopped the thread twice, and waited for ever for the second stop.

Interrupting the statement is no help: while a statement is unfinished the rollback would be
interrupted as well.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import aiosqlite

T = TypeVar("T")


def connect(database: str, **options: Any) -> aiosqlite.Connection:
    """Prepare a connection, opened when it is awaited. Arguments are those of `sqlite3.connect`."""
    return _Connection(partial(sqlite3.connect, database, **options), iter_chunk_size=64)


class _Connection(aiosqlite.Connection):
    def __init__(self, connector: Callable[[], sqlite3.Connection], iter_chunk_size: int) -> None:
        super().__init__(connector, iter_chunk_size)
        # A process must be able to end while a statement runs.
        self._thread.daemon = True

    async def _execute(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a function on the thread. If the caller is cancelled, await its end first.

        Raises:
            ValueError: the connection is closed.
        """
        if not self._running or self._connection is None:
            raise ValueError("Connection closed")
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tx.put_nowait((result, partial(fn, *args, **kwargs)))
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            await _wait_for(result)
            raise

    async def close(self) -> None:
        """Roll back, and close. A caller that is cancelled leaves that to the thread."""
        if stopping := self.stop():
            await asyncio.shield(stopping)

    def stop(self) -> asyncio.Future[Any] | None:
        """Let the thread roll back, close and end; None if it was told before."""
        if not self._running:
            return None
        if self._connection is not None:
            self._tx.put_nowait((None, self._connection.rollback))
        return super().stop()


async def _wait_for(future: asyncio.Future[Any]) -> None:
    """Wait until a future has ended, also while the caller is cancelled further times."""
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            continue
    # Marks its error as seen.
    future.exception()
