"""Health and metrics: on the API's port, or on a port of their own."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from structlog.testing import capture_logs

from fusewire import provision
from fusewire.bus import Bus
from fusewire.errors import StartupError
from fusewire.http_server import listen
from fusewire.service import Host, Service
from fusewire.settings import Http, Nats, Settings
from fusewire.testing.command_line import Cli, address, background, bare
from fusewire.testing.eventually import eventually, until
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import topology
from fusewire_cli.client import Client

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ACCEPTED = "fusewire_prompts_accepted_total"


@pytest.fixture(autouse=True)
def _log_starts() -> None:
    """The event of a start, which names the ports, is logged; tests log warnings alone."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def started_port(logs: Sequence[Mapping[str, Any]], name: str = "operations_port") -> object:
    (event,) = (entry for entry in logs if entry["event"] == "service.started")
    return event[name]


@pytest.mark.parametrize(
    "http",
    [
        Http(port=0, operations_port=0, keys="required"),
        Http(port=0, operations_port=0, host="0.0.0.0", allow_insecure=True),
    ],
    ids=["this machine, with keys", "all addresses"],
)
async def test_metrics_have_a_port_of_their_own_that_asks_for_no_key(
    make_settings: MakeSettings, running: Running, nats: NatsServer, http: Http
) -> None:
    settings = make_settings(nats=Nats(url=nats.url), http=http)
    with capture_logs() as logs:
        async with running(settings, "ingest") as client:
            operations = f"http://127.0.0.1:{started_port(logs)}"
            api = client.url.replace("0.0.0.0", "127.0.0.1")

            for url in (api, operations):
                assert await get(f"{url}/healthz") == (200, "ok ingest\n")
                assert await get(f"{url}/readyz") == (200, "ok ingest\n")
            status, metrics = await get(f"{operations}/metrics")
            assert (status, ACCEPTED in metrics) == (200, True)
            status, body = await get(f"{api}/metrics")
            assert (status, ACCEPTED in body) == (404, False)
            assert (await get(f"{api}/v1/models"))[0] == 401
            assert await get(f"{operations}/v1/models") == (404, "not found\n")


@pytest.mark.parametrize(
    "http",
    [Http(port=0, keys="required"), Http(port=0, host="0.0.0.0", allow_insecure=True)],
    ids=["this machine, with keys", "all addresses"],
)
async def test_without_one_an_api_that_requires_keys_asks_for_one_to_its_metrics(
    make_settings: MakeSettings, running: Running, nats: NatsServer, http: Http
) -> None:
    settings = make_settings(nats=Nats(url=nats.url), http=http)
    async with running(settings, "ingest") as client:
        api = client.url.replace("0.0.0.0", "127.0.0.1")
        assert (await get(f"{api}/healthz"))[0] == 200
        assert (await get(f"{api}/metrics"))[0] == 401


async def test_a_service_without_an_api_takes_the_operations_port_alone(
    make_settings: MakeSettings, nats: NatsServer, tmp_path: Path
) -> None:
    """As its own process, with a main port that another one has."""
    settings = make_settings(nats=Nats(url=nats.url))
    bus = Bus("ops", settings.nats)
    await bus.connect(timeout_s=120)
    await provision.apply(bus.js, topology({}, settings.pools))
    await bus.stop()
    file = tmp_path / "fusewire.json"
    file.write_text(settings.model_dump_json())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        env = {
            **os.environ,
            "FUSEWIRE_CONFIG": str(file),
            "FUSEWIRE_HTTP__PORT": str(other.getsockname()[1]),
            "FUSEWIRE_HTTP__OPERATIONS_PORT": "0",
        }
        command = [sys.executable, "-m", "fusewire_judge"]
        with background(command, cwd=tmp_path, env=env) as judge:
            await asyncio.to_thread(
                until,
                lambda: "service.started" in judge.stderr or judge.returncode is not None,
                "its start",
            )
            assert judge.returncode is None, judge.stderr
            (started,) = (
                entry
                for entry in map(json.loads, judge.stderr.splitlines())
                if entry["event"] == "service.started"
            )
            assert "port" not in started
            url = f"http://127.0.0.1:{started['operations_port']}"
            assert await get(f"{url}/readyz") == (200, "ok judge\n")
            assert "fusewire_outcomes_total" in (await get(f"{url}/metrics"))[1]
            judge.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(judge.wait) == 0


class DrainingService(Service):
    """A service that does nothing, and takes as long to stop as the test lets it.

    It has faults then, as one whose loops have ended.
    """

    name = "stub"
    drain_s = 60.0

    def __init__(self) -> None:
        self.may_stop = asyncio.Event()
        self.is_stopping = False

    async def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def stop(self) -> None:
        self.is_stopping = True
        await self.may_stop.wait()

    def faults(self) -> list[str]:
        return ["its loop has ended"] if self.is_stopping else []

    def unready(self) -> list[str]:
        return []

    def app(self) -> None:
        return None


async def test_what_drains_is_healthy_not_ready_and_still_scraped() -> None:
    service = DrainingService()
    http = Http(port=0, operations_port=0)
    with capture_logs() as logs:
        host = Host([service], listen(http), http)
        await host.start()
    operations = f"http://127.0.0.1:{started_port(logs)}"
    stopping = asyncio.create_task(host.stop())

    async def drains() -> bool:
        return service.is_stopping

    await eventually(drains)
    assert await get(f"{operations}/readyz") == (503, "stub: it drains and stops\n")
    assert await get(f"{operations}/healthz") == (200, "ok stub\n")
    assert (await get(f"{operations}/metrics"))[0] == 200
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(f"http://127.0.0.1:{started_port(logs, 'port')}/healthz")

    service.may_stop.set()
    await stopping
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(f"{operations}/healthz")


async def test_an_operations_port_in_use_is_named_with_what_to_do() -> None:
    with listen(Http(port=0)) as other, listen(Http(port=0)) as sock:
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StartupError) as refusal:
            Host([DrainingService()], sock, Http(port=0, operations_port=port))

    assert f"port {port} on 127.0.0.1 cannot be used" in refusal.value.what
    assert "FUSEWIRE_HTTP__OPERATIONS_PORT" in refusal.value.mend


@pytest.mark.parametrize("processes", [(), ("--processes",)], ids=["one process", "processes"])
async def test_up_serves_metrics_on_the_operations_port(
    make_settings: MakeSettings, tmp_path: Path, processes: tuple[str, ...]
) -> None:
    """With a process for each service, the port is ingest's."""
    file = tmp_path / "fusewire.json"
    data_dir = tmp_path / ".fusewire"
    file.write_text(make_settings(nats=Nats(), data_dir=data_dir).model_dump_json())
    with listen(Http(port=0)) as sock:  # bound and not listening: nobody is given it meanwhile
        port = sock.getsockname()[1]
    cli: Cli = bare(tmp_path, FUSEWIRE_CONFIG=str(file), FUSEWIRE_HTTP__OPERATIONS_PORT=str(port))
    with cli.start("up", *processes) as up:
        api = await asyncio.to_thread(address, cli, up)
        status, metrics = await get(f"http://127.0.0.1:{port}/metrics")
        assert (status, ACCEPTED in metrics) == (200, True)
        assert (await get(f"{api}/metrics"))[0] == 404
        assert up.returncode is None, up.stderr
        up.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(up.wait) == 0
