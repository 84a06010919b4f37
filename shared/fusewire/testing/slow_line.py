"""A line to a server of this machine that takes its time, for tests only."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def slow_line(port: int, delay_s: float) -> AsyncIterator[int]:
    """A TCP proxy that holds back all that passes, in either direction.

    Args:
        port: where the server listens.
        delay_s: how long each piece is held back, s.

    Yields:
        The proxy's own port.
    """
    lines: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, back))
        lines.append(asyncio.create_task(_carry(reader, back, delay_s)))
        lines.append(asyncio.create_task(_carry(there, writer, delay_s)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
) -> None:
    loop = asyncio.get_running_loop()

    def write(data: bytes) -> None:
        if data:
            writer.write(data)
        else:
            writer.close()

    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            loop.call_later(delay_s, write, data)
    loop.call_later(delay_s, write, b"")
