"""What one fusion costs the broker, counted by the broker: each message is written to its disk and synced.

A message more, or one less, is a change of the cost ledger in ARCHITECTURE.md.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from fusewire.bus import Bus
from fusewire.settings import Nats, Settings
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

WRITTEN = {
    "FW_PROMPT": 1,
    "FW_CANDIDATE": 6,  # the plan, three answers, two verdicts
    "FW_TASK_REMOTE": 2,  # of each round
    "FW_ROUND": 1,
    "FW_OUTCOME": 1,
    "KV_fw_calls": 2,  # of each round, that its calls are sent
}
"""By stream, of best-of with three members and a judge that is asked in both orders."""


async def written(bus: Bus) -> dict[str, int]:
    """Messages that each stream has ever taken."""
    return {info.config.name or "": info.state.last_seq for info in await bus.js.streams_info() if info.state.last_seq}


async def with_outcome(bus: Bus) -> dict[str, int] | None:
    found = await written(bus)
    return found if "FW_OUTCOME" in found else None


async def test_one_fusion_writes_so_many_messages(
    make_settings: MakeSettings, nats: NatsServer, running: Running
) -> None:
    settings = make_settings(nats=Nats(url=nats.url))
    async with running(settings, "judge", "worker-remote", "dispatcher", "ingest") as client:
        bus = Bus("ops", settings.nats, drain_s=2)
        await bus.connect(timeout_s=120)
        before = await written(bus)
        # With all members: else a timer is set for the last one, unless it answers together with another.
        shown = await client.submit({"prompt": "Why?", "complete": True}, wait_s=250)
        # It is announced a moment before the broker has written it down.
        after = await eventually(partial(with_outcome, bus))
        await bus.stop()

    assert (shown["status"], shown["is_degraded"]) == ("fused", False)
    assert {name: count - before.get(name, 0) for name, count in after.items()} == WRITTEN
