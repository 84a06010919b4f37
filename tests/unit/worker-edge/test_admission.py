import asyncio

import pytest

from fusewire_worker_edge.engine.admission import Admission


class Requests:
    """Requests that run until they are told to end."""

    def __init__(self) -> None:
        self.admission = Admission()
        self.running: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, *, is_alone: bool = False) -> None:
        async def run() -> None:
            async with self.admission.hold(is_alone=is_alone):
                self.running.append(name)
                try:
                    await self.ends[name].wait()
                finally:
                    self.running.remove(name)

        self.ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(run())
        await settle()

    async def end(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()
            await self.tasks[name]
        await settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.tasks[name]
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_that_runs_alone_waits_for_those_before_it_and_those_after_it_wait() -> None:
    requests = Requests()
    await requests.begin("a")
    await requests.begin("b")
    await requests.begin("alone", is_alone=True)
    await requests.begin("later")
    assert requests.running == ["a", "b"]
    await requests.end("a")
    assert requests.running == ["b"]
    await requests.end("b")
    assert requests.running == ["alone"]
    await requests.end("alone")
    assert requests.running == ["later"]


async def test_two_that_run_alone_run_one_after_the_other() -> None:
    requests = Requests()
    await requests.begin("first", is_alone=True)
    await requests.begin("second", is_alone=True)
    assert requests.running == ["first"]
    await requests.end("first")
    assert requests.running == ["second"]


async def test_one_that_is_cancelled_while_it_waits_holds_nobody_up() -> None:
    requests = Requests()
    await requests.begin("a")
    await requests.begin("alone", is_alone=True)
    await requests.begin("b")
    await requests.cancel("alone")
    assert requests.running == ["a", "b"]
    await requests.cancel("a")
    await requests.end("b")
    await requests.begin("next", is_alone=True)
    assert requests.running == ["next"]
