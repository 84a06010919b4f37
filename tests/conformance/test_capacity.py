"""Doors that close before the broker's stores are full, on a real broker."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import aiohttp
import pytest
from nats.js import JetStreamContext
from structlog.testing import capture_logs

from fusewire import metrics, provision
from fusewire.bus import Bus
from fusewire.errors import Transient
from fusewire.settings import Nats, Settings
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire_cli import doctor
from fusewire_cli.client import Client
from fusewire_ingest import capacity as module
from fusewire_ingest.capacity import StoreCapacity

LIMIT = 100_000
PIECE = b"x" * 10_000
"""With its subject, a tenth of the limit."""

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]


async def narrow(bus: Bus) -> None:
    config = (await bus.js.stream_info("FW_PROMPT")).config
    await bus.js.update_stream(config.evolve(max_bytes=LIMIT))


async def fill(bus: Bus, pieces: int) -> None:
    for _ in range(pieces):
        await bus.publish("fw.prompt.low.filler", PIECE)


async def test_it_is_told_how_full_they_are_before_the_doors_close(bus: Bus) -> None:
    await narrow(bus)
    room = StoreCapacity(bus)
    with capture_logs() as told:
        for pieces, event in ((6, None), (2, "ingest.store_fills"), (1, "ingest.closed")):
            room.check()
            before = len(told)
            await fill(bus, pieces)
            await room.look()
            await room.look()
            assert [line["event"] for line in told[before:]] == ([event] if event else [])

        with pytest.raises(Transient, match=r"FW_PROMPT is 9.% full") as refused:
            room.check()
        assert refused.value.retry_after_s
        used = metrics.REGISTRY.get_sample_value(
            "fusewire_store_used_ratio", {"stream": "FW_PROMPT"}
        )
        assert used == pytest.approx(0.9, abs=0.03)

        await bus.js.purge_stream("FW_PROMPT")
        await room.look()
        room.check()


async def test_a_broker_that_is_away_closes_no_door(
    bus: Bus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is accepted meanwhile is published later."""
    asked: list[str] = []
    stream_usage = provision.stream_usage

    async def counted(js: JetStreamContext, stream: str) -> provision.StreamUsage:
        asked.append(stream)
        return await stream_usage(js, stream)

    monkeypatch.setattr(provision, "stream_usage", counted)
    room = StoreCapacity(bus)
    await nats.kill()

    await room.look()

    room.check()
    assert len(asked) <= 1, "each would wait until its time is up"


async def test_a_client_is_told_to_come_back_and_can(
    make_settings: MakeSettings,
    nats: NatsServer,
    running: Running,
    ops: Bus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    settings = make_settings(nats=Nats(url=nats.url))
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as http:

        async def submitted() -> tuple[int, str | None]:
            async with http.post("/v1/fusions", json={"prompt": "Why?"}) as response:
                return response.status, response.headers.get("retry-after")

        assert await submitted() == (202, None)
        await narrow(ops)
        await fill(ops, 9)

        async def is_closed() -> bool:
            return await submitted() == (503, "10")

        await eventually(is_closed)
        told = await doctor._nats(settings)
        assert (told.state, told.what[:24]) == ("warning", "stores fill: FW_PROMPT 9")
        await ops.js.purge_stream("FW_PROMPT")

        async def is_open() -> bool:
            return await submitted() == (202, None)

        await eventually(is_open)
