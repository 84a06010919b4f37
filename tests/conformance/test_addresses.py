"""Where worker-remote connects to, and where it does not, whatever a name resolves to."""

import socket
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from fusewire.testing.model_server import ModelServer
from fusewire_worker_remote.addresses import is_forbidden
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import HttpRequest
from fusewire_worker_remote.transport import Transport

FORBIDDEN = [
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "100.100.100.200", "168.63.129.16",
    "0.0.0.0", "224.0.0.1", "::", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1",
    "::ffff:169.254.169.254", "::ffff:0.0.0.0",
]  # fmt: skip
ALLOWED = ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.9", "172.16.0.1", "fd12::1", "1.1.1.1"]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_no_model_is_called_there(address: str) -> None:
    assert is_forbidden(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_models_are_served_here(address: str) -> None:
    assert not is_forbidden(address)


class ScriptedResolver(AbstractResolver):
    """Says that every name is at these addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


async def posted(url: str, resolver: AbstractResolver | None, is_streamed: bool) -> Any:
    transport = Transport()
    session = transport._open(is_streamed=is_streamed)
    assert isinstance(session.connector, aiohttp.TCPConnector)
    if resolver:
        session.connector._resolver = resolver
    reader = None
    if is_streamed:

        async def read(chunk: bytes) -> bool:
            return False

        reader = read
    try:
        return await transport.post(HttpRequest(url, {}, {}), 20, reader)
    finally:
        await transport.aclose()


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::ffff:a9fe:a9fe]"])
async def test_an_address_in_base_url_is_refused(host: str, is_streamed: bool) -> None:
    failure = await posted(f"http://{host}/v1/chat/completions", None, is_streamed)

    assert isinstance(failure, Failure)
    assert (failure.code, failure.retryable, failure.ambiguous) == ("bad_request", False, False)
    assert "base_url" in failure.message


async def test_a_name_that_resolves_to_one_is_refused_and_another_address_of_it_is_called() -> None:
    async with ModelServer() as server:
        path = f"http://model.test:{server.port}/v1/chat/completions"
        failure = await posted(path, ScriptedResolver("169.254.169.254"), False)
        assert isinstance(failure, Failure)
        assert (failure.code, server.stats.connections) == ("bad_request", 0)

        both = ScriptedResolver("169.254.169.254", "127.0.0.1")
        response = await posted(path, both, False)
        assert not isinstance(response, Failure)
        assert server.stats.connections == 1
