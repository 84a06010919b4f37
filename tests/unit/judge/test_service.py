"""The judge's sweep: what it does while something around it is away."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from fusewire.errors import Transient
from fusewire.settings import Database, Nats, Settings
from fusewire_judge.handlers import Handlers
from fusewire_judge.service import Judge


class DisconnectedHandlers:
    """Handlers that cannot publish, and note that they keep deadlines."""

    def __init__(self, fault: Exception) -> None:
        self.fault = fault
        self.swept = asyncio.Event()

    async def publish_again(self) -> int:
        raise self.fault

    async def sweep(self) -> int:
        self.swept.set()
        return 0


class BusyHandlers:
    """Handlers that find something to do twice in each step, and note what was asked of them."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.ended = asyncio.Event()

    async def publish_again(self) -> int:
        return self._count("publish_again")

    async def sweep(self) -> int:
        return self._count("sweep")

    def _count(self, step: str) -> int:
        self.steps.append(step)
        left = 3 - self.steps.count(step)
        if step == "sweep" and left == 0:
            self.ended.set()
        return left


def make_judge(tmp_path: Path, handlers: Any) -> Judge:
    url = f"sqlite+aiosqlite:///{tmp_path / 'none.db'}"
    judge = Judge(Settings(database=Database(url=url), nats=Nats(url="nats://127.0.0.1:1")))
    judge._handlers = cast("Handlers", handlers)
    return judge


async def sweep_until(judge: Judge, event: asyncio.Event) -> None:
    sweeping = asyncio.create_task(judge._sweep())
    await asyncio.wait_for(event.wait(), 60)
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)


async def test_each_step_is_taken_until_nothing_is_left_to_do(tmp_path: Path) -> None:
    handlers = BusyHandlers()

    await sweep_until(make_judge(tmp_path, handlers), handlers.ended)

    assert handlers.steps == ["publish_again"] * 3 + ["sweep"] * 3


@pytest.mark.parametrize(
    "fault", [Transient("the broker is away"), RuntimeError("a fault of ours")], ids=str
)
async def test_deadlines_are_kept_while_nothing_can_be_published(
    tmp_path: Path, fault: Exception
) -> None:
    handlers = DisconnectedHandlers(fault)

    await sweep_until(make_judge(tmp_path, handlers), handlers.swept)

    assert handlers.swept.is_set()
