"""The proxy that tests put before servers: each of its faults, as a client sees it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from fusewire.testing.link import LINK_FAULTS, Link, LinkFault

END_S = 60.0


class Echo(asyncio.Protocol):
    """Says everything again."""

    def __init__(self, connections: list[asyncio.WriteTransport]) -> None:
        self.connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.connections.append(transport)

    def data_received(self, data: bytes) -> None:
        self.connections[-1].write(data)


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    """Before a server that says everything again."""
    connections: list[asyncio.WriteTransport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Echo(connections), "127.0.0.1", 0)
    async with server:
        async with Link(server.sockets[0].getsockname()[1]) as link:
            yield link
        for connection in connections:
            connection.abort()
        await asyncio.sleep(0.01)


async def connect(link: Link) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    await ask(reader, writer, b"hello")
    return reader, writer


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> None:
    writer.write(text)
    async with asyncio.timeout(END_S):
        assert await reader.readexactly(len(text)) == text


@pytest.mark.parametrize("fault", LINK_FAULTS)
async def test_after_a_fault_connections_are_as_before(link: Link, fault: LinkFault) -> None:
    _, old = await connect(link)
    await link.begin(fault)
    link.mend()
    old.close()
    _, writer = await connect(link)
    writer.close()


async def test_what_is_held_back_at_random_keeps_its_order(link: Link) -> None:
    reader, writer = await connect(link)
    link.delay_s, link.jitter_s = 0.001, 0.02
    parts = [f"{number:04}".encode() for number in range(50)]
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.001)
    async with asyncio.timeout(END_S):
        assert await reader.readexactly(200) == b"".join(parts)
    writer.close()


async def test_a_slow_link_takes_as_long_as_its_rate_says(link: Link) -> None:
    reader, writer = await connect(link)
    link.rate = 10_000
    started = asyncio.get_running_loop().time()
    await ask(reader, writer, b"x" * 2_000)
    assert asyncio.get_running_loop().time() - started >= 0.4
    writer.close()


async def test_a_connection_into_a_black_hole_stays_silent_and_a_new_one_is_as_before(
    link: Link,
) -> None:
    reader, writer = await connect(link)
    await link.begin("black_hole")
    writer.write(b"lost")
    await asyncio.sleep(0.1)
    link.mend()
    writer.write(b"after a gap")
    _, other = await connect(link)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.1)
    for end in (writer, other):
        end.close()


async def test_a_reset_connection_is_an_error_to_its_client(link: Link) -> None:
    reader, writer = await connect(link)
    await link.begin("reset")
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), END_S)
    writer.close()


async def test_a_half_closed_connection_ends_for_its_client_alone(link: Link) -> None:
    reader, writer = await connect(link)
    await link.begin("half_close")
    assert await asyncio.wait_for(reader.read(), END_S) == b""
    for _ in range(3):
        writer.write(b"still heard")
        await writer.drain()
    assert not writer.is_closing()
    writer.close()


async def test_a_truncated_connection_ends_after_so_many_bytes(link: Link) -> None:
    reader, writer = await connect(link)
    await link.begin("truncate")
    writer.write(b"x" * 1_000)
    assert await asyncio.wait_for(reader.read(), END_S) == b"x" * 150
    writer.close()
