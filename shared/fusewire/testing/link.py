"""A TCP link to a server of this machine that can be cut, slow or lossy, for tests only."""

import asyncio
import contextlib
import random
from types import TracebackType
from typing import Self


class Link:
    """A TCP proxy; an asynchronous context manager.

    Attributes:
        target: the port that the server listens on; it may change while the link is cut.
        delay_s: how long each piece is held back, in either direction.
        loss: the probability that a piece, and the connection with it, is lost.
    """

    def __init__(self, target: int, *, delay_s: float = 0.0, loss: float = 0.0, seed: int = 0):
        self.target = target
        self.delay_s = delay_s
        self.loss = loss
        self.losses = 0
        self._random = random.Random(seed)
        self._is_cut = False
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The proxy's own port."""
        if self._server is None:
            raise RuntimeError("not started")
        return int(self._server.sockets[0].getsockname()[1])

    async def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._is_cut = True
        await self._end_connections()

    def restore(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server:
            self._server.close()
        await self._end_connections()

    async def _end_connections(self) -> None:
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        writers = [writer]
        try:
            if self._is_cut:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(back)
            directions = [
                asyncio.create_task(self._carry(reader, back)),
                asyncio.create_task(self._carry(there, writer)),
            ]
            try:
                # A connection that has ended in one direction is of no use in the other.
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(self.delay_s)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server's own task: nobody waits for it
        finally:
            self._connections.discard(connection)
            for end in writers:
                end.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._random.random() < self.loss:
                    self.losses += 1
                    return
                loop.call_later(self.delay_s, _write, writer, data)


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(data)
