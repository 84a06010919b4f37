"""The budget of bytes: no more than fit at once, and each holder in its turn."""

import asyncio

import pytest

from fusewire_ingest.memory import ByteBudget


class BudgetTasks:
    """Tasks that hold bytes of a budget, started one after the other."""

    def __init__(self, most: int) -> None:
        self.budget = ByteBudget(most)
        self.inside: list[str] = []
        self._end: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, count: int) -> None:
        self._end[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._hold(name, count))
        await settled()

    async def end(self, name: str) -> None:
        self._end[name].set()
        await self._tasks[name]
        await settled()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._tasks[name]
        await settled()

    async def _hold(self, name: str, count: int) -> None:
        async with self.budget.hold(count):
            self.inside.append(name)
            try:
                await self._end[name].wait()
            finally:
                self.inside.remove(name)


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_holder_that_does_not_fit_waits_until_others_end() -> None:
    tasks = BudgetTasks(10)
    await tasks.begin("a", 6)
    await tasks.begin("b", 4)
    await tasks.begin("c", 5)
    assert tasks.inside == ["a", "b"]

    await tasks.end("b")
    assert tasks.inside == ["a"]
    await tasks.end("a")
    assert tasks.inside == ["c"]


async def test_a_large_holder_is_not_overtaken() -> None:
    tasks = BudgetTasks(10)
    await tasks.begin("a", 6)
    await tasks.begin("large", 10)
    await tasks.begin("small", 1)
    assert tasks.inside == ["a"]

    await tasks.end("a")
    assert tasks.inside == ["large"]
    await tasks.end("large")
    assert tasks.inside == ["small"]


async def test_a_holder_that_is_larger_than_the_budget_has_it_alone() -> None:
    tasks = BudgetTasks(10)
    await tasks.begin("huge", 11)
    await tasks.begin("b", 1)
    assert tasks.inside == ["huge"]

    await tasks.end("huge")
    assert tasks.inside == ["b"]


async def test_a_cancelled_holder_frees_its_bytes_or_its_turn() -> None:
    tasks = BudgetTasks(10)
    await tasks.begin("a", 10)
    await tasks.begin("b", 10)
    await tasks.begin("c", 10)

    await tasks.cancel("b")
    await tasks.cancel("a")
    assert tasks.inside == ["c"]
