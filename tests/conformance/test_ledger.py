"""The paid-call ledger, in memory and in a real NATS bucket: what a crash at each point costs."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.js.kv import KeyValue

from fusewire.contracts import Candidate, Message, Sampling, Task
from fusewire.settings import RemoteModel
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.model_script import FaultKind, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger import Busy, ConflictError, Entry, Ledger, LedgerUnavailable
from fusewire_worker_remote.ledger_kv import BUCKET, KvLedger

LEASE_S = 15.0


@pytest.fixture(params=["memory", "nats"])
async def kv(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyValue]:
    if request.param == "memory":
        yield MemoryKeyValue()
        return
    async with NatsServer(tmp_path) as server:
        client = await nats.connect(server.url)
        try:
            yield await client.jetstream().create_key_value(bucket=BUCKET, history=1, direct=True)
        finally:
            await client.close()


class Clock:
    """The real time, put forward at will."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def outlive_lease(self) -> None:
        self.ahead += timedelta(seconds=LEASE_S * 2)


class Died(BaseException):
    """The worker is gone: nothing of it runs any more."""


class Dying:
    """A ledger whose worker dies before or after the write of a state."""

    def __init__(self, ledger: Ledger, point: str) -> None:
        self._ledger = ledger
        self._when, self._state = point.split()

    async def get(self, task_id: str) -> tuple[Entry | None, int]:
        return await self._ledger.get(task_id)

    async def put(self, task_id: str, entry: Entry, revision: int) -> int:
        if entry.state == self._state and self._when == "before":
            raise Died
        revision = await self._ledger.put(task_id, entry, revision)
        if entry.state == self._state:
            raise Died
        return revision


def a_task(clock: Callable[[], datetime]) -> Task:
    return Task(
        task_id="f1-0-a",
        fusion_id="f1",
        round=0,
        call="a",
        kind="answer",
        model="big",
        tier="remote",
        tenant="t",
        messages=(Message(role="user", content="Hello"),),
        sampling=Sampling(),
        residency="any",
        priority="normal",
        deadline_at=clock() + timedelta(hours=1),
    )


async def no_wait(_: float) -> None: ...


@asynccontextmanager
async def worker(
    ledger: Ledger, server: ModelServer, clock: Clock, name: str = "w", **settings: Any
) -> AsyncIterator[RemoteGenerate]:
    lease_s = settings.pop("lease_s", LEASE_S)
    model = {"kind": "remote", "base_url": server.base_url, "model": "big-1", "timeout_s": 20, **settings}
    generate = RemoteGenerate(
        {"big": RemoteModel.model_validate(model)},
        ledger,
        clock=clock,
        sleep=no_wait,
        rng=random.Random(0).random,
        worker_id=name,
        lease_s=lease_s,
    )
    try:
        yield generate
    finally:
        await generate.aclose()


async def die(ledger: Ledger, server: ModelServer, clock: Clock, task: Task, point: str) -> None:
    async with worker(Dying(ledger, point), server, clock) as generate:
        with pytest.raises(Died):
            await generate.generate(task)


async def deliver(ledger: Ledger, server: ModelServer, clock: Clock, task: Task) -> Candidate:
    async with worker(ledger, server, clock) as generate:
        return await generate.generate(task)


# where the worker dies, fates of the requests, requests when it dies, requests in all, may be paid twice
CRASHES = [
    ("before sent", [], 0, 1, False),
    ("after sent", [], 0, 1, True),  # no byte left, but nothing tells that from a call under way
    ("before settled", [], 1, 2, True),
    ("after settled", [], 1, 1, False),
    ("before reserved", ["rate_limited"], 1, 2, True),
    ("after reserved", ["rate_limited"], 1, 2, False),
    ("before ambiguous", ["truncate"], 1, 2, True),
    ("after ambiguous", ["truncate"], 1, 2, True),
]


@pytest.mark.parametrize(("point", "fates", "at_death", "in_all", "twice"), CRASHES)
async def test_a_crash_costs_at_most_one_more_call(
    kv: KeyValue, point: str, fates: list[Any], at_death: int, in_all: int, twice: bool
) -> None:
    ledger, clock = KvLedger(kv), Clock()
    task = a_task(clock)
    async with ModelServer(Script.of(*fates)) as server:
        await die(ledger, server, clock, task, point)
        assert server.stats.requests == at_death

        if point not in {"before sent", "after settled"}:
            with pytest.raises(Busy) as busy:
                await deliver(ledger, server, clock, task)
            assert busy.value.retry_after_s is not None
            assert 0 < busy.value.retry_after_s <= LEASE_S + 1
            assert server.stats.requests == at_death

        clock.outlive_lease()
        candidate = await deliver(ledger, server, clock, task)
        assert candidate.ok
        assert candidate.maybe_paid_twice is twice
        assert server.stats.requests == in_all

        assert await deliver(ledger, server, clock, task) == candidate
        assert server.stats.requests == in_all


@pytest.mark.parametrize("point", ["before settled", "after sent"])
async def test_a_second_crash_ends_the_task_without_a_third_call(kv: KeyValue, point: str) -> None:
    ledger, clock = KvLedger(kv), Clock()
    task = a_task(clock)
    async with ModelServer() as server:
        for _ in range(2):
            await die(ledger, server, clock, task, point)
            clock.outlive_lease()
        called = server.stats.requests
        assert called == (2 if point == "before settled" else 0)
        candidate = await deliver(ledger, server, clock, task)
        assert candidate.error is not None
        assert (candidate.error.code, candidate.error.retryable) == ("timeout", False)
        assert (candidate.maybe_paid_twice, candidate.cost_usd) == (True, None)
        assert await deliver(ledger, server, clock, task) == candidate
        assert server.stats.requests == called


async def test_of_many_workers_with_one_task_one_calls(kv: KeyValue) -> None:
    ledger, clock = KvLedger(kv), Clock()
    task = a_task(clock)

    async def attempt(n: int) -> Candidate | None:
        async with worker(ledger, server, clock, f"w{n}") as generate:
            try:
                return await generate.generate(task)
            except Busy:
                return None

    async with ModelServer(Script.of(latency_ms=50)) as server:
        candidates = [c for c in await asyncio.gather(*(attempt(n) for n in range(20))) if c]
        assert server.stats.requests == 1
        assert candidates
        assert all(c == candidates[0] for c in candidates)


async def test_a_long_call_keeps_its_lease(kv: KeyValue) -> None:
    ledger, clock = KvLedger(kv), Clock()
    async with ModelServer(Script.of(latency_ms=500)) as server, worker(ledger, server, clock, lease_s=0.3) as generate:
        assert (await generate.generate(a_task(clock))).ok
        settled = await kv.get("f1-0-a")
    assert settled.revision is not None
    assert settled.revision > 2, "written only when sent and when settled"


class Stalling:
    """A ledger whose worker stands still after its first call, before it writes, until it is told to go on."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.stands = asyncio.Event()
        self.go_on = asyncio.Event()

    async def get(self, task_id: str) -> tuple[Entry | None, int]:
        return await self._ledger.get(task_id)

    async def put(self, task_id: str, entry: Entry, revision: int) -> int:
        if entry.state != "sent":
            self.stands.set()
            await self.go_on.wait()
        return await self._ledger.put(task_id, entry, revision)


@asynccontextmanager
async def lease_lost(
    kv: KeyValue, *fates: FaultKind, then: FaultKind
) -> AsyncIterator[tuple[Stalling, asyncio.Task[Candidate], asyncio.Task[Candidate], ModelServer]]:
    """A first worker stalls after its call and loses its lease; a second has called, too (and is at `then`)."""
    clock = Clock()
    stalling = Stalling(KvLedger(kv))
    task = a_task(clock)
    async with (
        ModelServer(Script.of(*fates, then)) as server,
        worker(stalling, server, clock, "first") as first,
        worker(KvLedger(kv), server, clock, "second") as second,
    ):
        stalled = asyncio.create_task(first.generate(task))
        await stalling.stands.wait()
        clock.outlive_lease()
        taken_over = asyncio.create_task(second.generate(task))
        await server.arrived(2)
        yield stalling, stalled, taken_over, server
        taken_over.cancel()
        await asyncio.gather(stalled, taken_over, return_exceptions=True)


async def test_an_answer_settles_over_a_call_that_has_none_yet(kv: KeyValue) -> None:
    async with lease_lost(kv, "none", then="hang") as (stalling, stalled, _, server):
        stalling.go_on.set()
        candidate = await stalled
        assert candidate.ok
        assert candidate.maybe_paid_twice
        entry, _ = await KvLedger(kv).get(candidate.task_id)
        assert entry is not None
        assert entry.candidate == candidate
        assert server.stats.requests == 2


async def test_a_failure_does_not_settle_over_a_call_that_may_yet_answer(kv: KeyValue) -> None:
    async with lease_lost(kv, "unauthorized", then="hang") as (stalling, stalled, _, _server):
        stalling.go_on.set()
        with pytest.raises(Busy):
            await stalled


@pytest.mark.parametrize("fate", ["rate_limited", "truncate"])
async def test_without_its_lease_a_worker_makes_no_further_call(kv: KeyValue, fate: FaultKind) -> None:
    async with lease_lost(kv, fate, then="hang") as (stalling, stalled, _, server):
        stalling.go_on.set()
        with pytest.raises(Busy):
            await stalled
        assert server.stats.requests == 2


async def test_of_two_answers_the_first_to_settle_is_the_tasks_end(kv: KeyValue) -> None:
    async with lease_lost(kv, "none", then="none") as (stalling, stalled, taken_over, _):
        winner = await taken_over
        stalling.go_on.set()
        assert await stalled == winner
        assert winner.maybe_paid_twice


class Deaf(MemoryKeyValue):
    """A bucket whose acknowledgement of the nth writes is lost, the writes being stored."""

    def __init__(self, *lost: int) -> None:
        super().__init__()
        self._lost = set(lost)
        self._writes = 0

    async def update(self, key: str, value: bytes, last: int | None = None, validate_keys: bool = True) -> int:
        self._writes += 1
        revision = await super().update(key, value, last)
        if self._writes in self._lost:
            raise nats.errors.TimeoutError
        return revision


@pytest.mark.parametrize("lost", [{1}, {2}, {3}, {1, 3}, {1, 3, 5, 7}])
async def test_a_lost_acknowledgement_costs_no_call(lost: set[int]) -> None:
    clock = Clock()
    async with ModelServer(Script.of("rate_limited")) as server:
        candidate = await deliver(KvLedger(Deaf(*lost)), server, clock, a_task(clock))
        assert candidate.ok
        assert not candidate.maybe_paid_twice
        assert server.stats.requests == 2


class Down(MemoryKeyValue):
    """A bucket that does not answer from the nth write on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._left = first - 1

    async def update(self, key: str, value: bytes, last: int | None = None, validate_keys: bool = True) -> int:
        if self._left == 0:
            raise nats.errors.TimeoutError
        self._left -= 1
        return await super().update(key, value, last)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusewire_worker_remote.ledger_kv._PAUSES_S", (0.0,))


@pytest.mark.usefixtures("impatient")
async def test_without_a_ledger_nothing_is_called() -> None:
    clock = Clock()
    async with ModelServer() as server:
        with pytest.raises(LedgerUnavailable):
            await deliver(KvLedger(Down(1)), server, clock, a_task(clock))
        assert server.stats.requests == 0


@pytest.mark.usefixtures("impatient")
async def test_a_paid_answer_is_not_thrown_away_when_the_ledger_goes_down() -> None:
    clock = Clock()
    async with ModelServer() as server:
        assert (await deliver(KvLedger(Down(2)), server, clock, a_task(clock))).ok


async def test_what_the_server_leaves_of_an_expired_key_is_no_entry() -> None:
    kv, clock = MemoryKeyValue(), Clock()
    kv._entries["f1-0-a"] = KeyValue.Entry(BUCKET, "f1-0-a", None, 7, None, None, None)
    async with ModelServer() as server:
        assert (await deliver(KvLedger(kv), server, clock, a_task(clock))).ok


async def test_a_revision_that_is_not_the_last_is_refused(kv: KeyValue) -> None:
    ledger, clock = KvLedger(kv), Clock()
    entry = Entry(state="sent", owner="w", until=clock(), started_at=clock(), attempts=1)
    assert await ledger.get("t") == (None, 0)
    first = await ledger.put("t", entry, 0)
    with pytest.raises(ConflictError):
        await ledger.put("t", entry, 0)
    second = await ledger.put("t", entry, first)
    with pytest.raises(ConflictError):
        await ledger.put("t", entry, first)
    assert await ledger.get("t") == (entry, second)
