"""So many bytes at once, and each in its turn."""

import asyncio

import pytest

from fusewire_ingest.memory import ByteBudget


class Holders:
    """Holders of a budget, begun in their order."""

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


async def test_what_does_not_fit_waits_for_what_ends() -> None:
    of = Holders(10)
    await of.begin("a", 6)
    await of.begin("b", 4)
    await of.begin("c", 5)
    assert of.inside == ["a", "b"]

    await of.end("b")
    assert of.inside == ["a"]
    await of.end("a")
    assert of.inside == ["c"]


async def test_a_large_one_is_not_overtaken() -> None:
    of = Holders(10)
    await of.begin("a", 6)
    await of.begin("large", 10)
    await of.begin("small", 1)
    assert of.inside == ["a"]

    await of.end("a")
    assert of.inside == ["large"]
    await of.end("large")
    assert of.inside == ["small"]


async def test_one_that_is_larger_than_all_has_it_alone() -> None:
    of = Holders(10)
    await of.begin("huge", 11)
    await of.begin("b", 1)
    assert of.inside == ["huge"]

    await of.end("huge")
    assert of.inside == ["b"]


async def test_what_is_given_up_frees_what_it_held_or_waited_for() -> None:
    of = Holders(10)
    await of.begin("a", 10)
    await of.begin("b", 10)
    await of.begin("c", 10)

    await of.cancel("b")
    await of.cancel("a")
    assert of.inside == ["c"]
