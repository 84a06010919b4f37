"""What one fusion costs, counted: no clock, so that whatever makes it dearer fails here.

The broker counts messages, each of which it writes to its disk and syncs; the rest is counted in
the services. What is more or less here is a change of the cost ledger in ARCHITECTURE.md.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, cast

import pytest

from fusewire import metrics
from fusewire.bus import Bus
from fusewire.contracts import Wire
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
    return {
        info.config.name or "": info.state.last_seq
        for info in await bus.js.streams_info()
        if info.state.last_seq
    }


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
        # With all members: else a timer is set for the last one, unless it answers with another.
        shown = await client.submit({"prompt": "Why?", "complete": True}, wait_s=250)
        # It is announced a moment before the broker has written it down.
        after = await eventually(partial(with_outcome, bus))
        await bus.stop()

    assert (shown["status"], shown["is_degraded"]) == ("selected", False)
    assert {name: count - before.get(name, 0) for name, count in after.items()} == WRITTEN


DECODED = {
    "prompt": 2,  # by dispatcher, and by the judge from SQL
    "plan": 1,
    "tasks": 2,
    "candidate": 5,
    "round": 1,
    "outcome": 1,  # by who waits for it
}
"""By contract, how often a message of one fusion is read from JSON."""
COMMITS = 0.6
"""Of 64 fusions in flight, for each. Measured: 0.17; what comes together is committed together."""
TASKS = 40
"""Of asyncio, for each of 64 fusions in flight. Measured: 33."""
IN_FLIGHT = 64


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What is read from JSON from now on."""
    found: Counter[str] = Counter()
    decode = Wire.decode.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Wire], data: bytes | str) -> Wire:
        found[cls.contract] += 1
        message: Wire = decode(cls, data)
        return message

    monkeypatch.setattr(Wire, "decode", classmethod(counted))
    return found


async def test_each_message_is_read_from_json_once_by_each_who_needs_it(
    make_settings: MakeSettings, nats: NatsServer, running: Running, decoded: Counter[str]
) -> None:
    settings = make_settings(nats=Nats(url=nats.url))
    async with running(settings, "judge", "worker-remote", "dispatcher", "ingest") as client:
        decoded.clear()
        await client.submit({"prompt": "Why?", "complete": True}, wait_s=250)

        assert dict(decoded) == DECODED


def commits() -> float:
    return float(metrics.TRANSACTIONS.labels("write")._value.get())


async def test_many_at_once_share_their_commits_and_need_few_tasks(
    make_settings: MakeSettings, nats: NatsServer, running: Running, decoded: Counter[str]
) -> None:
    settings = make_settings(nats=Nats(url=nats.url))
    begun: Counter[str] = Counter()

    def task(
        loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **given: Any
    ) -> asyncio.Task[Any]:
        begun["tasks"] += 1
        return asyncio.Task(work, loop=loop, **given)

    async with running(settings, "judge", "worker-remote", "dispatcher", "ingest") as client:
        fuse = partial(client.submit, wait_s=250)
        await asyncio.gather(
            *(fuse({"prompt": f"Why {n}?", "complete": True}) for n in range(IN_FLIGHT))
        )
        decoded.clear()
        before = commits()
        asyncio.get_running_loop().set_task_factory(cast("Any", task))
        await asyncio.gather(
            *(fuse({"prompt": f"And why {n}?", "complete": True}) for n in range(IN_FLIGHT))
        )
        asyncio.get_running_loop().set_task_factory(None)

    assert (commits() - before) / IN_FLIGHT <= COMMITS
    assert {name: count / IN_FLIGHT for name, count in decoded.items()} == DECODED
    assert begun["tasks"] / IN_FLIGHT <= TASKS
