"""Work that ends when the visitor leaves."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

T = TypeVar("T")


class LeftError(Exception):
    """The visitor has left, so nobody reads the response."""


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work, which is cancelled if the visitor leaves meanwhile.

    Args:
        request: whose body was read, or which has none.
        work: what takes long.

    Raises:
        LeftError: the visitor has left.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise LeftError
        return task.result()
    finally:
        for future in (task, leaving):
            future.cancel()
            # What a statement holds is given back before the request ends.
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await future


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
