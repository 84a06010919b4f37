"""The paid-call ledger, in memory and in a real NATS bucket: what a crash at each point costs."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.js.kv import KeyValue

from fusewire import provision
from fusewire.contracts import Candidate, Message, Sampling, Task, Tasks
from fusewire.errors import Transient
from fusewire.settings import RemoteModel
from fusewire.testing.eventually import eventually
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.model_script import FaultKind, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import topology
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger import (
    ConflictError,
    EntryBusy,
    Ledger,
    LedgerEntry,
    LedgerUnavailable,
    TaskCalls,
)
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


def state(entry: LedgerEntry) -> str:
    """What an entry of one call says."""
    (known,) = entry.calls.values()
    if known.is_sent:
        return "sent"
    return "ambiguous" if known.unknown else "paused"


class Dying:
    """A ledger whose worker dies before or after the write of a state."""

    def __init__(self, ledger: Ledger, point: str) -> None:
        self._ledger = ledger
        self._when, self._state = point.split()
        self.is_dead = False

    async def get(self, key: str) -> tuple[LedgerEntry | None, int]:
        return await self._ledger.get(key)

    async def put(self, key: str, entry: LedgerEntry, revision: int, keep_s: float) -> int:
        if self.is_dead:
            raise LedgerUnavailable("nothing of it runs any more")
        if state(entry) == self._state and self._when == "before":
            self.is_dead = True
            raise Died
        revision = await self._ledger.put(key, entry, revision, keep_s)
        if state(entry) == self._state:
            self.is_dead = True
            raise Died
        return revision


class Published:
    """Candidates that have come: what the judge tells."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []

    async def __call__(
        self, fusion_id: str, round_: int, calls: Collection[str]
    ) -> Collection[str]:
        come = {(c.fusion_id, c.round, c.call) for c in self.candidates}
        return [call for call in calls if (fusion_id, round_, call) in come]


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
    stored = settings.pop("stored", Published())
    model = {
        "kind": "remote",
        "base_url": server.base_url,
        "model": "big-1",
        "timeout_s": 20,
        **settings,
    }
    generate = RemoteGenerate(
        {"big": RemoteModel.model_validate(model)},
        ledger,
        lookup=stored,
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


async def abandon(ledger: Dying, server: ModelServer, clock: Clock, deliveries: int) -> None:
    """A worker takes the message, and dies before its candidate is published if not before."""
    async with (
        worker(ledger, server, clock) as generate,
        generate.hold(
            Tasks.from_tasks("default", [a_task(clock)]), deliveries, lambda: None
        ) as make,
    ):
        await make(a_task(clock), None)
        ledger.is_dead = True
        raise Died


async def die(
    ledger: Ledger, server: ModelServer, clock: Clock, point: str, deliveries: int = 1
) -> None:
    """A worker takes the message and dies at a point."""
    with pytest.raises(Died):
        await abandon(Dying(ledger, point), server, clock, deliveries)


async def deliver(
    ledger: Ledger, server: ModelServer, clock: Clock, published: Published
) -> Candidate | None:
    """Another worker gets it again and publishes what comes of it; None where nothing is left."""
    async with (
        worker(ledger, server, clock, "other", stored=published) as generate,
        generate.hold(Tasks.from_tasks("default", [a_task(clock)]), 2, lambda: None) as make,
    ):
        candidate = await make(a_task(clock), None)
    if candidate:
        published.candidates.append(candidate)
    return candidate


# where the worker dies, fates of the requests, requests when it dies, requests in all,
# may be paid twice
CRASHES = [
    ("before sent", [], 0, 1, False),
    ("after sent", [], 0, 1, True),  # no byte left, but nothing tells that from a call under way
    ("after answer", [], 1, 2, True),
    ("before paused", ["rate_limited"], 1, 2, True),
    ("after paused", ["rate_limited"], 1, 2, False),
    ("before ambiguous", ["truncate"], 1, 2, True),
    ("after ambiguous", ["truncate"], 1, 2, True),
]


@pytest.mark.parametrize(("point", "fates", "at_death", "in_all", "twice"), CRASHES)
async def test_a_crash_costs_at_most_one_more_call(
    kv: KeyValue, point: str, fates: list[Any], at_death: int, in_all: int, twice: bool
) -> None:
    ledger, clock, published = KvLedger(kv), Clock(), Published()
    async with ModelServer(Script.of(*fates)) as server:
        await die(ledger, server, clock, point)
        assert server.stats.requests == at_death

        if point != "before sent":
            with pytest.raises(EntryBusy) as busy:
                await deliver(ledger, server, clock, published)
            assert busy.value.retry_after_s is not None
            assert 0 < busy.value.retry_after_s <= LEASE_S + 1
            assert server.stats.requests == at_death

        clock.outlive_lease()
        candidate = await deliver(ledger, server, clock, published)
        assert candidate is not None
        assert candidate.ok
        assert candidate.maybe_paid_twice is twice
        assert server.stats.requests == in_all

        clock.outlive_lease()
        assert await deliver(ledger, server, clock, published) is None
        assert server.stats.requests == in_all


async def test_what_may_have_been_called_before_the_ledger_was_lost_is_called_where_no_candidate_has_come(  # noqa: E501 - a promise names it
    kv: KeyValue,
) -> None:
    ledger, clock, published = KvLedger(kv), Clock(), Published()

    async def repeated(server: ModelServer, queue: str) -> Candidate | None:
        async with (
            worker(ledger, server, clock, stored=published) as generate,
            generate.hold(
                Tasks.from_tasks(queue, [a_task(clock)]), 1, lambda: None, is_repeated=True
            ) as make,
        ):
            return await make(a_task(clock), None)

    async with ModelServer() as server:
        candidate = await repeated(server, "default")
        assert candidate is not None
        assert (candidate.ok, candidate.maybe_paid_twice) == (True, True)
        published.candidates.append(candidate)
        # Of another message's entry nothing is known either.
        assert await repeated(server, "other") is None
        assert server.stats.requests == 1


@pytest.mark.parametrize("point", ["after answer", "after sent"])
async def test_a_second_crash_ends_the_task_without_a_third_call(kv: KeyValue, point: str) -> None:
    ledger, clock, published = KvLedger(kv), Clock(), Published()
    async with ModelServer() as server:
        await die(ledger, server, clock, point)
        clock.outlive_lease()
        await die(ledger, server, clock, point, deliveries=2)
        clock.outlive_lease()
        called = server.stats.requests
        candidate = await deliver(ledger, server, clock, published)
        assert candidate is not None
        assert candidate.error is not None
        assert (candidate.error.code, candidate.error.retryable) == ("timeout", False)
        assert (candidate.maybe_paid_twice, candidate.cost_usd) == (True, None)
        clock.outlive_lease()
        assert await deliver(ledger, server, clock, published) is None
        assert server.stats.requests == called


async def test_a_worker_that_stops_lets_go_so_that_nobody_waits_for_its_lease(kv: KeyValue) -> None:
    ledger, clock, published = KvLedger(kv), Clock(), Published()
    async with ModelServer(Script.of("hang")) as server:
        async with worker(ledger, server, clock) as generate:

            async def handle() -> None:
                async with generate.hold(
                    Tasks.from_tasks("default", [a_task(clock)]), 1, lambda: None
                ) as make:
                    await make(a_task(clock), None)

            handling = asyncio.create_task(handle())
            await server.wait_for_requests(1)
            handling.cancel()
            await asyncio.gather(handling, return_exceptions=True)
        server.set_script(Script())
        candidate = await deliver(ledger, server, clock, published)
    assert candidate is not None
    assert (candidate.ok, candidate.maybe_paid_twice) == (True, True)


async def test_without_an_answer_from_the_judge_nothing_is_called_again(kv: KeyValue) -> None:
    ledger, clock = KvLedger(kv), Clock()

    async def silent(*_: Any) -> Collection[str]:
        raise Transient("no judge")

    async with ModelServer() as server:
        await die(ledger, server, clock, "after answer")
        clock.outlive_lease()
        async with worker(ledger, server, clock, stored=silent) as generate:
            with pytest.raises(Transient, match="no judge"):
                await generate.hold(
                    Tasks.from_tasks("default", [a_task(clock)]), 2, lambda: None
                ).__aenter__()
        assert server.stats.requests == 1


async def test_the_calls_of_a_message_are_noted_in_one_write(kv: KeyValue) -> None:
    ledger, clock = KvLedger(kv), Clock()
    tasks = [
        a_task(clock).model_copy(update={"call": call, "task_id": f"f1-0-{call}"}) for call in "abc"
    ]
    async with (
        ModelServer() as server,
        worker(ledger, server, clock) as generate,
        generate.hold(Tasks.from_tasks("default", tasks), 1, lambda: None) as make,
    ):
        candidates = await asyncio.gather(*(make(task, None) for task in tasks))
        entry, revision = await ledger.get("f1-0-default")
    assert all(c and c.ok for c in candidates)
    assert entry is not None
    assert set(entry.calls) == {"a", "b", "c"}
    assert revision == 1


async def test_a_message_stands_in_line_until_one_of_its_calls_has_a_place(kv: KeyValue) -> None:
    clock = Clock()
    begun: list[str] = []
    async with (
        ModelServer(Script.of("hang")) as server,
        worker(KvLedger(kv), server, clock, max_concurrency=1) as generate,
    ):

        async def handle(call: str) -> None:
            task = a_task(clock).model_copy(update={"call": call})
            async with generate.hold(
                Tasks.from_tasks(call, [task]), 1, lambda: begun.append(call)
            ) as make:
                await make(task, None)

        first = asyncio.create_task(handle("a"))
        await server.wait_for_requests(1)
        second = asyncio.create_task(handle("b"))
        await asyncio.sleep(0.05)
        assert begun == ["a"]
        first.cancel()
        await server.wait_for_requests(2)
        assert begun == ["a", "b"]
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def test_a_copy_of_a_message_that_has_ended_makes_no_call(kv: KeyValue) -> None:
    ledger, clock, published = KvLedger(kv), Clock(), Published()
    async with ModelServer() as server:
        assert await deliver(ledger, server, clock, published)
        async with (
            worker(ledger, server, clock, stored=published) as generate,
            generate.hold(Tasks.from_tasks("default", [a_task(clock)]), 1, lambda: None) as make,
        ):
            # It cannot know before it tries, and comes again.
            with pytest.raises(EntryBusy):
                await make(a_task(clock), None)
        clock.outlive_lease()
        assert await deliver(ledger, server, clock, published) is None
        assert server.stats.requests == 1


async def test_of_many_workers_with_one_task_one_calls(kv: KeyValue) -> None:
    ledger, clock = KvLedger(kv), Clock()
    task = a_task(clock)

    async def attempt(n: int) -> Candidate | None:
        async with worker(ledger, server, clock, f"w{n}") as generate:
            try:
                return await generate.generate(task)
            except EntryBusy:
                return None

    async with ModelServer(Script.of(latency_ms=50)) as server:
        candidates = [c for c in await asyncio.gather(*(attempt(n) for n in range(20))) if c]
        assert server.stats.requests == 1
        assert len(candidates) == 1


async def test_a_long_call_keeps_its_lease(kv: KeyValue) -> None:
    ledger, clock = KvLedger(kv), Clock()
    async with (
        ModelServer(Script.of(latency_ms=500)) as server,
        worker(ledger, server, clock, lease_s=0.3) as generate,
    ):
        assert (await generate.generate(a_task(clock))).ok
        noted = await kv.get("f1-0-a")
    assert noted.revision is not None
    assert noted.revision > 2, "written only when sent"


class Stalling:
    """A ledger whose worker stands still after its first call, before its next word, until told."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_noted = False
        self.stands = asyncio.Event()
        self.go_on = asyncio.Event()

    async def get(self, key: str) -> tuple[LedgerEntry | None, int]:
        await self._stand_still()
        return await self._ledger.get(key)

    async def put(self, key: str, entry: LedgerEntry, revision: int, keep_s: float) -> int:
        await self._stand_still()
        self._is_noted = True
        return await self._ledger.put(key, entry, revision, keep_s)

    async def _stand_still(self) -> None:
        if self._is_noted:
            self.stands.set()
            await self.go_on.wait()


@asynccontextmanager
async def lease_lost(
    kv: KeyValue, *fates: FaultKind, then: FaultKind
) -> AsyncIterator[tuple[Stalling, asyncio.Task[Candidate], asyncio.Task[Candidate], ModelServer]]:
    """A first worker stalls in its call and loses its lease; a second called, and is at `then`."""
    clock = Clock()
    stalling = Stalling(KvLedger(kv))
    task = a_task(clock)
    async with (
        ModelServer(Script.of(*fates, then, latency_ms=100)) as server,
        worker(stalling, server, clock, "first") as first,
        worker(KvLedger(kv), server, clock, "second") as second,
    ):
        stalled = asyncio.create_task(first.generate(task))
        await server.wait_for_requests(1)
        clock.outlive_lease()
        taken_over = asyncio.create_task(second.generate(task))
        await stalling.stands.wait()
        await server.wait_for_requests(2)
        yield stalling, stalled, taken_over, server
        taken_over.cancel()
        await asyncio.gather(stalled, taken_over, return_exceptions=True)


async def test_an_answer_ends_a_task_over_a_call_that_has_none_yet(kv: KeyValue) -> None:
    async with lease_lost(kv, "none", then="hang") as (stalling, stalled, _, server):
        stalling.go_on.set()
        candidate = await stalled
        assert candidate.ok
        assert candidate.maybe_paid_twice
        assert server.stats.requests == 2


async def test_a_failure_does_not_end_it_over_a_call_that_may_yet_answer(kv: KeyValue) -> None:
    async with lease_lost(kv, "unauthorized", then="hang") as (stalling, stalled, _, _server):
        stalling.go_on.set()
        with pytest.raises(EntryBusy):
            await stalled


@pytest.mark.parametrize("fate", ["rate_limited", "truncate"])
async def test_without_its_lease_a_worker_makes_no_further_call(
    kv: KeyValue, fate: FaultKind
) -> None:
    async with lease_lost(kv, fate, then="hang") as (stalling, stalled, _, server):
        stalling.go_on.set()
        with pytest.raises(EntryBusy):
            await stalled
        assert server.stats.requests == 2


async def test_of_two_answers_each_says_that_there_may_be_another(kv: KeyValue) -> None:
    async with lease_lost(kv, "none", then="none") as (stalling, stalled, taken_over, _):
        second = await taken_over
        stalling.go_on.set()
        assert second.maybe_paid_twice
        assert (await stalled).maybe_paid_twice


class Deaf(MemoryKeyValue):
    """A bucket whose acknowledgement of the nth writes is lost, the writes being stored."""

    def __init__(self, *lost: int) -> None:
        super().__init__()
        self._lost = set(lost)
        self._writes = 0

    async def _update(
        self, key: str, value: bytes, last: int | None = None, *rest: Any, **more: Any
    ) -> int:
        self._writes += 1
        revision = await super()._update(key, value, last, *rest, **more)
        if self._writes in self._lost:
            raise nats.errors.TimeoutError
        return revision


@pytest.mark.parametrize("lost", [{1}, {2}, {3}, {1, 3}, {1, 3, 5, 7}])
async def test_a_lost_acknowledgement_costs_no_call(lost: set[int]) -> None:
    clock = Clock()
    async with ModelServer(Script.of("rate_limited")) as server:
        candidate = await deliver(KvLedger(Deaf(*lost)), server, clock, Published())
        assert candidate is not None
        assert candidate.ok
        assert not candidate.maybe_paid_twice
        assert server.stats.requests == 2


class Down(MemoryKeyValue):
    """A bucket that does not answer from the nth write on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._left = first - 1

    async def _update(
        self, key: str, value: bytes, last: int | None = None, *rest: Any, **more: Any
    ) -> int:
        if self._left == 0:
            raise nats.errors.TimeoutError
        self._left -= 1
        return await super()._update(key, value, last, *rest, **more)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusewire_worker_remote.ledger_kv._PAUSES_S", (0.0,))


@pytest.mark.usefixtures("impatient")
async def test_without_a_ledger_nothing_is_called() -> None:
    clock = Clock()
    async with ModelServer() as server:
        with pytest.raises(LedgerUnavailable):
            await deliver(KvLedger(Down(1)), server, clock, Published())
        assert server.stats.requests == 0


@pytest.mark.usefixtures("impatient")
async def test_a_paid_answer_is_not_thrown_away_when_the_ledger_goes_down() -> None:
    clock = Clock()
    async with ModelServer() as server:
        candidate = await deliver(KvLedger(Down(2)), server, clock, Published())
    assert candidate is not None
    assert candidate.ok


async def test_what_the_server_leaves_of_an_expired_key_is_no_entry() -> None:
    kv, clock = MemoryKeyValue(), Clock()
    kv._entries["f1-0-default"] = KeyValue.Entry(BUCKET, "f1-0-default", None, 7, None, None, None)
    async with ModelServer() as server:
        candidate = await deliver(KvLedger(kv), server, clock, Published())
    assert candidate is not None
    assert candidate.ok


async def test_a_revision_that_is_not_the_last_is_refused(kv: KeyValue) -> None:
    ledger, clock = KvLedger(kv), Clock()
    entry = LedgerEntry(owner="w", until=clock(), calls={"a": TaskCalls(started_at=clock())})
    late = 3600.0
    assert await ledger.get("t") == (None, 0)
    first = await ledger.put("t", entry, 0, late)
    with pytest.raises(ConflictError):
        await ledger.put("t", entry, 0, late)
    second = await ledger.put("t", entry, first, late)
    with pytest.raises(ConflictError):
        await ledger.put("t", entry, first, late)
    assert await ledger.get("t") == (entry, second)


async def test_the_server_forgets_an_entry_when_its_time_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire_worker_remote.ledger_kv.LEAST_TTL_S", 1.0)
    clock = Clock()
    entry = LedgerEntry(owner="w", until=clock(), calls={"a": TaskCalls(started_at=clock())})
    async with NatsServer(tmp_path) as server:
        client = await nats.connect(server.url)
        js = client.jetstream()
        await provision.apply(js, topology({}, ()))
        ledger = KvLedger(await js.key_value(BUCKET))
        kept = await ledger.put("kept", entry, 0, 3600.0)
        await ledger.put("kept", entry, kept, 3600.0)
        first = await ledger.put("over", entry, 0, 0.0)
        await ledger.put("over", entry, first, 0.0)

        async def is_over() -> bool:
            return await ledger.get("over") == (None, 0)

        await eventually(is_over)
        assert (await ledger.get("kept"))[0] == entry
        assert await ledger.put("over", entry, 0, 0.0), (
            "what is forgotten is as if it had never been"
        )
        await client.close()
