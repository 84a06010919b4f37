"""The ledger of paid calls as a state machine, in memory and in a real NATS bucket.

Three workers, a message of two tasks, any order of deliveries, results, crashes, stalls and lapsed
leases, as `tests/unit/worker-remote/test_ledger.py` has it for one task. Here the ledger fails too:
a write takes place and its acknowledgement is lost, the bucket does not answer, or its whole store
is lost and the tasks come again as repeated ones.
"""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import nats
import nats.errors
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from nats.aio.client import Client
from nats.js.kv import KeyValue

from fusewire.contracts import CallFailure, Candidate
from fusewire.errors import Transient
from fusewire.testing.machines import Loop, run_machine
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.nats_server import NatsServer
from fusewire_worker_remote import ledger_kv
from fusewire_worker_remote.lease import LeaseTerms, LedgerLease
from fusewire_worker_remote.ledger import MAX_UNKNOWN, EntryBusy
from fusewire_worker_remote.ledger_kv import BUCKET, KvLedger

T = TypeVar("T")
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
LEASE = timedelta(seconds=15)
CALLS = ("a", "b")
WORKERS = ("w1", "w2", "w3")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation is tried twice, without a wait."""
    monkeypatch.setattr(ledger_kv, "_PAUSES_S", (0.0,))


class Bucket:
    """A bucket whose store can be lost, and its operations, which can fail."""

    def __init__(self, kv: KeyValue, client: Client | None) -> None:
        self.kv = kv
        self._client = client
        self.numbers = itertools.count(1)
        """Of messages: each example has an entry of its own."""
        self.faults: list[str] = []
        """What befalls the next operations: `lost ack`, `down` or nothing."""

    async def lose(self) -> None:
        """The store is gone with its numbers: revisions begin at 1 again."""
        if self._client is None:
            self.kv = MemoryKeyValue()
            return
        js = self._client.jetstream()
        await js.delete_key_value(BUCKET)
        self.kv = await js.create_key_value(bucket=BUCKET, history=1, direct=True)

    async def _befall(self, work: Callable[[], Awaitable[T]]) -> T:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "down":
            raise nats.errors.TimeoutError
        result = await work()
        if fault == "lost ack":
            raise nats.errors.TimeoutError
        return result

    async def get(self, key: str) -> KeyValue.Entry:
        return await self._befall(lambda: self.kv.get(key))

    async def _update(self, key: str, value: bytes, last: int, msg_ttl: float) -> int:
        # A bucket of a server without limits on markers takes no time to live.
        write = getattr(self.kv, "_update")  # noqa: B009 - as KvLedger writes
        return await self._befall(lambda: write(key, value, last=last))


@dataclass
class Delivery:
    """A worker that has the message."""

    lease: LedgerLease
    flying: set[str] = field(default_factory=set)
    pausing: set[str] = field(default_factory=set)


class LedgerMachine(RuleBasedStateMachine):
    """A crash, an unreadable result and an answer count as paid; a refusal does not."""

    def __init__(self, loop: Loop, bucket: Bucket) -> None:
        super().__init__()
        self.loop = loop
        self.bucket = bucket
        self.key = f"f{next(bucket.numbers)}-0"
        self.ledger = KvLedger(cast("KeyValue", bucket))
        self.now = NOW
        self.deliveries: dict[str, Delivery] = {}
        self.leases = 0
        self.losses = 0
        self.paid: Counter[str] = Counter()
        self.unknowable: Counter[str] = Counter()
        """Calls, by task, whose result nobody can know."""
        self.candidates: dict[str, list[Candidate]] = {call: [] for call in CALLS}

    def clock(self) -> datetime:
        return self.now

    async def find_ended(self, calls: Collection[str]) -> Collection[str]:
        return [call for call in calls if self.candidates[call]]

    def run(self, work: Awaitable[T]) -> T:
        async def await_it() -> T:
            return await work

        return self.loop.run(await_it())

    # -- what happens -------------------------------------------------------------------------

    @rule(me=st.sampled_from(WORKERS), is_first=st.booleans())
    def deliver(self, me: str, is_first: bool) -> None:
        if me in self.deliveries:
            return
        self.leases += 1
        terms = LeaseTerms(f"{me}#{self.leases}", LEASE, NOW + timedelta(days=1), self.clock)
        # After a loss the dispatcher publishes the tasks again, and says that they may be copies.
        is_repeated = self.losses > 0
        lease = LedgerLease(
            self.ledger,
            self.key,
            terms,
            self.find_ended,
            is_first=is_first and not is_repeated,
            earlier=CALLS if is_repeated else (),
        )
        try:
            self.run(lease.__aenter__())
        except Transient:
            return
        delivery = self.deliveries[me] = Delivery(lease)
        calls = [call for call in CALLS if not lease.has_ended(call)]

        async def begin() -> list[Any]:
            begins = (lease.begin(call, 99) for call in calls)
            return await asyncio.gather(*begins, return_exceptions=True)

        results = dict(zip(calls, self.run(begin()), strict=True))
        for call, result in results.items():
            assert (
                result is None or not isinstance(result, Exception) or isinstance(result, Transient)
            )
            if result is None:
                self.end(delivery, call, None)
            elif not isinstance(result, Exception):
                delivery.flying.add(call)
        if any(isinstance(result, Exception) for result in results.values()):
            # Nothing was sent of what could not be noted; what was is cut off.
            self.leave(me, Transient("not noted"))

    def end(self, delivery: Delivery, call: str, content: str | None) -> None:
        task_calls = delivery.lease.calls(call)
        assert task_calls is not None
        failure = CallFailure(code="timeout", message="none", retryable=False)
        candidate = Candidate(
            task_id=f"f1-0-{call}",
            fusion_id="f1",
            round=0,
            call=call,
            model="big",
            tier="remote",
            provider="openai",
            content=content,
            error=None if content else failure,
            maybe_paid_twice=task_calls.unknown >= 1,
            started_at=NOW,
            finished_at=NOW,
        )
        try:
            self.candidates[call].append(self.run(delivery.lease.end(candidate)))
        except EntryBusy:
            assert content is None

    def draw(self, data: st.DataObject, kind: str) -> tuple[Delivery, str]:
        choices = [(me, c) for me in sorted(self.deliveries) for c in self.state(me, kind)]
        me, call = data.draw(st.sampled_from(choices))
        return self.deliveries[me], call

    def state(self, me: str, kind: str) -> list[str]:
        return sorted(getattr(self.deliveries[me], kind))

    def count(self, kind: str) -> int:
        return sum(len(self.state(me, kind)) for me in self.deliveries)

    @precondition(lambda self: self.count("flying"))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        delivery, call = self.draw(data, "flying")
        delivery.flying.remove(call)
        self.paid[call] += 1
        self.end(delivery, call, "Paris")

    @precondition(lambda self: self.count("flying"))
    @rule(data=st.data(), ambiguous=st.booleans())
    def fail(self, data: st.DataObject, ambiguous: bool) -> None:
        delivery, call = self.draw(data, "flying")
        delivery.flying.remove(call)
        self.paid[call] += ambiguous
        self.unknowable[call] += ambiguous
        task_calls = delivery.lease.calls(call)
        assert task_calls is not None
        if task_calls.unknown + ambiguous >= MAX_UNKNOWN:
            self.end(delivery, call, None)
            return
        try:
            self.run(delivery.lease.pause(call, ambiguous=ambiguous))
        except Transient as exc:
            self.leave(self.name(delivery), exc)
        else:
            delivery.pausing.add(call)

    @precondition(lambda self: self.count("pausing"))
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        delivery, call = self.draw(data, "pausing")
        delivery.pausing.remove(call)
        try:
            self.run(delivery.lease.resend(call))
        except Transient as exc:
            self.leave(self.name(delivery), exc)
        else:
            delivery.flying.add(call)

    def name(self, delivery: Delivery) -> str:
        return next(me for me, other in self.deliveries.items() if other is delivery)

    def cut_off(self, me: str) -> Delivery:
        delivery = self.deliveries.pop(me)
        for call in delivery.flying:
            self.paid[call] += 1
            self.unknowable[call] += 1
        return delivery

    def leave(self, me: str, exc: Transient) -> None:
        delivery = self.cut_off(me)
        self.run(delivery.lease.__aexit__(type(exc), exc, None))

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.cut_off(data.draw(st.sampled_from(sorted(self.deliveries))))

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(sorted(self.deliveries))), Transient("it stops"))

    @precondition(lambda self: self.deliveries)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        me = data.draw(st.sampled_from(sorted(self.deliveries)))
        lease = self.deliveries[me].lease
        # It is tried again a third of a lease later, or the lease is lost.
        with contextlib.suppress(Transient):
            self.run(lease._put(self.now + LEASE))

    @rule(seconds=st.sampled_from([1, 5, 16, 40]))
    def pass_time(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(faults=st.lists(st.sampled_from(["lost ack", "down", ""]), min_size=1, max_size=4))
    def ledger_fails(self, faults: list[str]) -> None:
        self.bucket.faults = faults

    @rule()
    def lose_the_store(self) -> None:
        self.losses += 1
        self.loop.run(self.bucket.lose())

    # -- what must hold -----------------------------------------------------------------------

    def calls_made(self, call: str) -> int:
        return self.paid[call] + sum(call in d.flying for d in self.deliveries.values())

    @invariant()
    def a_task_is_paid_for_at_most_twice_and_once_more_for_a_lost_store(self) -> None:
        for call in CALLS:
            assert self.calls_made(call) <= MAX_UNKNOWN + self.losses

    @invariant()
    def an_answer_that_may_have_been_paid_for_twice_says_so(self) -> None:
        for call, published in self.candidates.items():
            # Who answers within its lease cannot know that the store was lost meanwhile.
            if published and published[0].ok and self.calls_made(call) >= 2 and not self.losses:
                assert published[0].maybe_paid_twice

    @invariant()
    def what_ended_well_was_asked_once(self) -> None:
        for call, published in self.candidates.items():
            if published and published[0].ok and not published[0].maybe_paid_twice:
                assert self.unknowable[call] == 0 or self.losses

    def teardown(self) -> None:
        """Whatever has happened, who comes last ends every task."""
        self.bucket.faults.clear()
        for me in tuple(self.deliveries):
            self.cut_off(me)
        for _ in range(3):
            self.pass_time(40)
            self.deliver("w1", is_first=False)
            for delivery in self.deliveries.values():
                for call in tuple(delivery.flying):
                    delivery.flying.remove(call)
                    self.paid[call] += 1
                    self.end(delivery, call, "Paris")
            self.deliveries.clear()
        assert all(self.candidates.values())
        self.a_task_is_paid_for_at_most_twice_and_once_more_for_a_lost_store()


@pytest.fixture(params=["memory", "nats"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Loop, Bucket, int]]:
    """A loop, a bucket, and how many examples it is quick enough for."""
    with Loop() as loop:
        if request.param == "memory":
            yield loop, Bucket(MemoryKeyValue(), None), 60
            return
        server = NatsServer(tmp_path)
        loop.run(server.__aenter__())
        client = loop.run(nats.connect(server.url))
        bucket = client.jetstream().create_key_value(bucket=BUCKET, history=1, direct=True)
        yield loop, Bucket(loop.run(bucket), client), 8
        loop.run(client.close())
        loop.run(server.__aexit__(None, None, None))


def test_a_task_is_paid_for_at_most_twice_whatever_befalls_workers_and_ledger(
    ground: tuple[Loop, Bucket, int],
) -> None:
    loop, bucket, examples = ground
    run_machine(lambda: LedgerMachine(loop, bucket), examples=examples, steps=30)
