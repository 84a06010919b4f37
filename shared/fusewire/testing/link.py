"""A TCP link to a server of this machine that can be cut, slow or lossy, for tests only."""

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, get_args

LinkFault = Literal["latency", "rate", "black_hole", "reset", "half_close", "truncate", "cut"]
LINK_FAULTS: tuple[LinkFault, ...] = get_args(LinkFault)
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Connection:
    """The two ends of a connection, and the bytes that have gone to the client."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    byte_count: int = 0
    is_half_open: bool = False
    """A piece has vanished; so do all that follow, as TCP never goes on after a gap."""


class Link:
    """A TCP proxy; an asynchronous context manager.

    Attributes:
        target: the port that the server listens on; it may change while the link is cut.
        delay_s: how long each piece is held back, in either direction.
        jitter_s: by how much more at random; pieces keep their order.
        rate: bytes per second and direction; 0 is no limit.
        loss: the probability that a piece, and the connection with it, is lost.
        is_black_hole: pieces vanish, and connections stay, from which then nothing comes any more.
        truncate_after: a connection is reset after so many more bytes to the client.
    """

    def __init__(self, target: int, *, delay_s: float = 0.0, loss: float = 0.0, seed: int = 0):
        self.target = target
        self.delay_s = delay_s
        self.loss = loss
        self.jitter_s = 0.0
        self.rate = 0
        self.is_black_hole = False
        self.truncate_after: int | None = None
        self.losses = 0
        self._random = random.Random(seed)
        self._is_cut = False
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[_Connection] = set()

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

    def mend(self) -> None:
        """Let connections through again, as they come."""
        self._is_cut = self.is_black_hole = False
        self.delay_s = self.jitter_s = self.loss = 0.0
        self.rate = 0
        self.truncate_after = None

    def reset(self) -> None:
        """Answer the clients of all connections with RST."""
        for connection in list(self._connections):
            _reset(connection)

    def half_close(self) -> None:
        """Tell the clients of all connections that the server says nothing more, and hear them."""
        for connection in self._connections:
            with contextlib.suppress(OSError, RuntimeError):
                connection.client.write_eof()

    async def begin(self, fault: LinkFault) -> None:
        """Let a fault begin; `mend` ends it. Resets and half-closes are over at once."""
        match fault:
            case "latency":
                self.delay_s, self.jitter_s = 0.2, 0.3
            case "rate":
                self.rate = 20_000
            case "black_hole":
                self.is_black_hole = True
            case "truncate":
                for connection in self._connections:
                    connection.byte_count = 0
                self.truncate_after = 150
            case "reset":
                self.reset()
            case "half_close":
                self.half_close()
            case "cut":
                await self.cut()

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
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        writers = [writer]
        try:
            if self._is_cut:
                return
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(back)
            connection = _Connection(writer, back)
            self._connections.add(connection)
            directions = [
                asyncio.create_task(self._carry(reader, connection, to_client=False)),
                asyncio.create_task(self._carry(there, connection, to_client=True)),
            ]
            try:
                # A connection that has ended in one direction is of no use in the other.
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(self.delay_s + self.jitter_s)
            finally:
                self._connections.discard(connection)
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the server's own task: nobody waits for it
        finally:
            self._tasks.discard(task)
            for end in writers:
                end.close()

    async def _carry(
        self, reader: asyncio.StreamReader, connection: _Connection, *, to_client: bool
    ) -> None:
        writer, due = connection.client if to_client else connection.server, 0.0
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                if self._is_lost() or (to_client and self._truncates(connection, data)):
                    return
                connection.is_half_open |= self.is_black_hole
                if not connection.is_half_open:
                    due = await self._send(writer, data, due)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes, last_due: float) -> float:
        """Write a piece when it is due, after that of `last_due`; returns when that is."""
        if self.rate:
            await asyncio.sleep(len(data) / self.rate)
        loop = asyncio.get_running_loop()
        delay_s = self.delay_s + self._random.uniform(0, self.jitter_s)
        # Times that are equal would lose the order.
        due = max(last_due + 1e-6, loop.time() + delay_s)
        loop.call_at(due, _write, writer, data)
        return due

    def _is_lost(self) -> bool:
        is_lost = self._random.random() < self.loss
        self.losses += is_lost
        return is_lost

    def _truncates(self, connection: _Connection, data: bytes) -> bool:
        """Whether a connection ends within this piece, of which it then carries a part."""
        connection.byte_count += len(data)
        if self.truncate_after is None or connection.byte_count <= self.truncate_after:
            return False
        kept_size = len(data) - (connection.byte_count - self.truncate_after)
        if kept_size > 0:
            _write(connection.client, data[:kept_size])
        return True


def _reset(connection: _Connection) -> None:
    stream: socket.socket = connection.client.get_extra_info("socket")
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    connection.client.transport.abort()


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    # After a half-close the end of writing has been said already.
    with contextlib.suppress(RuntimeError):
        if not writer.is_closing():
            writer.write(data)
