"""Work that ends when the visitor leaves."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

T = TypeVar("T")


class DisconnectError(Exception):
    """The visitor has left, so nobody reads the response."""


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work, which is cancelled if the visitor leaves meanwhile.

    Args:
        request: whose body was read, or which has none.
        work: what takes long.

    Raises:
        DisconnectError: the visitor has left.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise DisconnectError
        return task.result()
    finally:
        for future in (task, disconnect):
            future.cancel()
            # What a statement holds is given back before the request ends.
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await future


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
