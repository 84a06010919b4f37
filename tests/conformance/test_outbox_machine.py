"""Ingest's outbox as a state machine: what is committed is published in the end, whatever ends.

Two ingests share a database. Prompts are accepted, published, marked and swept in any order; the
broker fails before or after it has stored a prompt, an ingest ends with what it had not marked yet,
the broker loses its store, and clients cancel.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from nats.errors import ConnectionClosedError
from sqlalchemy import Connection, delete, select

from fusewire.bus import Bus
from fusewire.contracts import Prompt
from fusewire.errors import Transient
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.store.tables import fusions, prompts, published_to
from fusewire.testing.factories import make_prompt
from fusewire.testing.machines import Loop, SharedState, run_machine
from fusewire_ingest.outbox import SWEEP_EVERY_S, Outbox
from fusewire_ingest.repository.submissions import Submissions

INGESTS = st.sampled_from([0, 1])


class Broker:
    """A broker that drops what it has already, by its message id, and that may lose its store."""

    def __init__(self, number: int) -> None:
        self.store = f"store-{number}"
        self.prompts: Counter[str] = Counter()
        """By fusion, how often it was stored here: once, as message ids are checked."""
        self.cancelled: set[str] = set()


class IngestBus:
    """One ingest's connection to the broker; `fault` befalls its next publications."""

    is_connected = True

    def __init__(self, machine: "OutboxMachine") -> None:
        self._machine = machine
        self.fault = ""

    @property
    def client(self) -> "IngestClient":
        return IngestClient(self)

    async def store_id(self, *, afresh: bool = False) -> str:
        return self._machine.broker.store

    async def publish(
        self,
        subject: str,
        message: Prompt | bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if self.fault == "down":
            raise Transient("the server does not answer")
        if isinstance(message, Prompt):
            assert msg_id == message.fusion_id
            self._machine.broker.prompts[message.fusion_id] = 1
        else:
            self._machine.broker.cancelled.add(subject.rpartition(".")[2])
        if self.fault == "lost ack":
            raise Transient("the acknowledgement was lost")


class IngestClient:
    """Publishes without an acknowledgement, as cancellations are: whether one arrives is open."""

    def __init__(self, bus: IngestBus) -> None:
        self._bus = bus

    async def publish(self, subject: str, body: bytes) -> None:
        if self._bus.fault:
            raise ConnectionClosedError


class NoLargeParts:
    """Prompts that refer to nothing."""

    async def publish(self, prompt: Any) -> None:
        """Nothing to see to."""


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self, shared: SharedState) -> None:
        super().__init__()
        self.shared = shared
        self.clock = shared.clock
        self.submissions = Submissions(shared.store)
        self.broker = Broker(next(shared.numbers))
        self.buses = [IngestBus(self), IngestBus(self)]
        self.outboxes = [self.new_outbox(number) for number in (0, 1)]
        self.prompts: list[Prompt] = []
        self.cancelled: set[str] = set()

    def new_outbox(self, number: int) -> Outbox:
        bus = cast("Bus", self.buses[number])
        outbox = Outbox(bus, self.submissions, cast("Any", NoLargeParts()), self.clock)
        # A broker of its own tells of its streams' length; here all that is lost is a whole store.
        outbox._notice_lost_messages = _notice_nothing  # type: ignore[method-assign]
        return outbox

    def run(self, work: Any) -> Any:
        return self.shared.loop.run(work)

    # -- what happens -------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Nothing of an earlier example is there: nobody ends its fusions."""

        def clear(connection: Connection) -> None:
            for table in (fusions, prompts, published_to):
                connection.execute(delete(table))

        self.run(self.shared.store.run(clear, write=True))
        self.accept(1)

    @rule(count=st.integers(1, 3))
    def accept(self, count: int) -> None:
        batch = [
            make_prompt(custom_id=f"outbox-{next(self.shared.numbers)}", submitted_at=self.clock())
            for _ in range(count)
        ]
        self.run(self.submissions.add(batch, [None] * count))
        self.prompts += batch

    @rule(number=INGESTS, data=st.data())
    def publish(self, number: int, data: st.DataObject) -> None:
        picked = data.draw(st.lists(st.sampled_from(self.prompts), min_size=1, max_size=3))
        self.run(self.outboxes[number].publish([(prompt, None) for prompt in picked]))

    @rule(number=INGESTS)
    def mark(self, number: int) -> None:
        self.run(self.outboxes[number].mark())

    @rule(number=INGESTS)
    def sweep(self, number: int) -> None:
        self.run(self.outboxes[number].sweep())

    @rule(number=INGESTS, fault=st.sampled_from(["down", "lost ack", ""]))
    def broker_fails(self, number: int, fault: str) -> None:
        self.buses[number].fault = fault

    @rule(number=INGESTS)
    def crash(self, number: int) -> None:
        """What it had published and not marked is forgotten."""
        self.outboxes[number] = self.new_outbox(number)

    @rule()
    def lose_the_store(self) -> None:
        self.broker = Broker(next(self.shared.numbers))

    @rule(seconds=st.sampled_from([1, 3, 20]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(data=st.data(), number=INGESTS)
    def cancel(self, data: st.DataObject, number: int) -> None:
        prompt = data.draw(st.sampled_from(self.prompts))
        self.cancelled.add(prompt.fusion_id)
        keys = [prompt.fusion_id]
        self.run(self.submissions.cancel(prompt.tenant, keys, self.clock()))
        self.run(self.outboxes[number].publish_cancellations(keys))

    # -- what must hold -----------------------------------------------------------------------

    def marked(self) -> set[str]:
        keys = [prompt.fusion_id for prompt in self.prompts]
        query = select(prompts.c.fusion_id).where(
            prompts.c.fusion_id.in_(keys), prompts.c.published_at.is_not(None)
        )

        def read(connection: Connection) -> set[str]:
            return set(connection.execute(query).scalars())

        return cast("set[str]", self.run(self.shared.store.run(read, write=False)))

    def settle(self) -> None:
        """Let both sweep once while the broker answers: each learns of its store."""
        for bus, outbox in zip(self.buses, self.outboxes, strict=True):
            bus.fault = ""
            self.run(outbox.sweep())

    @invariant()
    def nothing_that_was_accepted_is_gone(self) -> None:
        """What is marked is on the broker, unless its store was lost and nobody has looked yet."""
        if any(outbox._store_id != self.broker.store for outbox in self.outboxes):
            return
        assert self.marked() <= self.broker.prompts.keys()

    def teardown(self) -> None:
        """Whatever has happened, the sweeps publish all that is committed."""
        self.clock.advance(SWEEP_EVERY_S + 60)
        self.settle()
        self.settle()
        expected = {prompt.fusion_id for prompt in self.prompts} - self.cancelled
        assert expected <= self.broker.prompts.keys()
        assert expected <= self.marked()
        assert self.cancelled - self.broker.cancelled == set()


async def _notice_nothing() -> None: ...


def test_what_is_committed_is_published_in_the_end(database: Database) -> None:
    with Loop() as loop:
        store = Store(database)
        shared = SharedState(loop, store)
        try:
            run_machine(lambda: OutboxMachine(shared), examples=15)
        finally:
            loop.run(store.close())
