"""The judge's sweep: what it does while something around it is away."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from fusewire.errors import Transient
from fusewire.settings import Database, Nats, Settings
from fusewire_judge.handlers import Handlers
from fusewire_judge.service import Judge


class UnavailableHandlers:
    """Handlers that cannot publish, and note that they keep deadlines."""

    def __init__(self, fault: Exception) -> None:
        self.fault = fault
        self.swept = asyncio.Event()

    async def publish_again(self) -> int:
        raise self.fault

    async def sweep(self) -> int:
        self.swept.set()
        return 0


@pytest.mark.parametrize(
    "fault", [Transient("the broker is away"), RuntimeError("a fault of ours")], ids=str
)
async def test_deadlines_are_kept_while_nothing_can_be_published(
    tmp_path: Path, fault: Exception
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'none.db'}"
    judge = Judge(Settings(database=Database(url=url), nats=Nats(url="nats://127.0.0.1:1")))
    away = UnavailableHandlers(fault)
    judge._handlers = cast("Handlers", cast("Any", away))

    sweeping = asyncio.create_task(judge._sweep())
    await asyncio.wait_for(away.swept.wait(), 60)

    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
