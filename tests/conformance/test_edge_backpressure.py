"""The edge worker takes from the real bus only what it can begin; its engine is a fake here."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fusewire.bus import Bus
from fusewire.contracts import PRIORITIES, Task
from fusewire.settings import Nats, Settings
from fusewire.testing.echo_worker import EchoEngine, echo
from fusewire.testing.edge_tasks import edge_task, publish_task
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import task_durable
from fusewire_worker_edge import service as worker_edge
from fusewire_worker_edge.service import WorkerEdge

MakeBus = Callable[..., Awaitable[Bus]]
MakeSettings = Callable[..., Settings]
SLOTS = 2


class Replica:
    """A worker whose answers wait until its gate is open."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        self.engine = EchoEngine(self._answer)
        monkeypatch.setattr(worker_edge, "EdgeGenerate", lambda _models, _clock: self.engine)
        monkeypatch.setattr(worker_edge, "verify", lambda _folder: None)
        self.service = WorkerEdge(settings)

    async def _answer(self, task: Task) -> str:
        await self.gate.wait()
        return echo(task)

    def tasks(self) -> list[str]:
        return [task.task_id for task in self.engine.tasks]


async def test_what_a_full_worker_cannot_begin_is_begun_by_another(
    make_bus: MakeBus,
    make_settings: MakeSettings,
    nats: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    bus = await make_bus("ops", {"small": "edge"})
    edge = {"kind": "edge", "path": str(tmp_path), "slots": SLOTS}
    settings = make_settings(nats=Nats(url=nats.url), models={"small": edge})
    tasks = [edge_task(f"t{number}", "Why?") for number in range(SLOTS + 1)]

    async def on_the_bus() -> tuple[int, int]:
        """Messages in a worker's hand, and those that wait."""
        durables = [task_durable("small", "edge", priority) for priority in PRIORITIES]
        infos = [await bus.js.consumer_info(d.stream, d.name) for d in durables]
        return (
            sum(info.num_ack_pending or 0 for info in infos),
            sum(info.num_pending or 0 for info in infos),
        )

    full = Replica(settings, monkeypatch)
    for task in tasks:
        await publish_task(bus, task)
    await full.service.start()
    await eventually(lambda: len(full.tasks()) == SLOTS)
    assert await on_the_bus() == (SLOTS, 1)

    free = Replica(settings, monkeypatch)
    free.gate.set()
    await free.service.start()
    await eventually(lambda: len(free.tasks()) == 1)

    assert full.tasks() + free.tasks() == [task.task_id for task in tasks]
    full.gate.set()
    for replica in (full, free):
        await replica.service.stop()
    assert (await bus.js.stream_info("FW_CANDIDATE")).state.messages == len(tasks)
