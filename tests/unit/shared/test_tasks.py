"""Loops end when they are told to, and are missed when they end by themselves."""

import asyncio
import contextlib

import pytest

from fusewire import tasks
from fusewire.tasks import BackgroundTasks, cancel


async def forever() -> None:
    await asyncio.Event().wait()


async def test_loops_are_stopped() -> None:
    background = BackgroundTasks()
    background.start("first", forever())
    background.start("second", forever())
    assert background.faults() == []

    await background.stop()
    assert background.faults() == ["first has ended", "second has ended"]


async def test_a_loop_that_fails_is_a_fault_and_stops() -> None:
    async def fail() -> None:
        raise ValueError

    background = BackgroundTasks()
    background.start("failing", fail())
    await asyncio.sleep(0)
    assert background.faults() == ["failing has ended"]
    await background.stop()


async def test_a_cancellation_that_is_dropped_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `asyncio.wait_for` drops one in Python 3.11, where its future is done by then."""
    monkeypatch.setattr(tasks, "CANCEL_AGAIN_S", 0.01)

    async def drop_one() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        await forever()

    task = asyncio.create_task(drop_one())
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await cancel([task])
    assert task.cancelled()


async def test_nothing_to_cancel_is_no_fault() -> None:
    await cancel([])
    await BackgroundTasks().stop()
