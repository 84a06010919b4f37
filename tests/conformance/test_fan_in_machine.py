"""The fan-in as a state machine: two judges, one database, whatever comes and whenever they end.

Plans and candidates come in any order and again and again, due times pass, clients cancel, a
transaction fails, a judge ends between its commit and what it publishes. A model of what may never
happen stands beside the rows.
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from nats.aio.msg import Msg
from sqlalchemy import Connection, select

from fusewire.bus import Bus, Delivery
from fusewire.contracts import Candidate, Outcome, Plan, Prompt, Round
from fusewire.errors import Transient
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.store.tables import candidates, fusions, outcomes, rounds
from fusewire.testing.factories import (
    OPEN_ANSWERS,
    make_candidate,
    make_plan,
    make_prompt,
)
from fusewire.testing.machines import Loop, SharedState, run_machine
from fusewire.topology import candidate_subject, plan_subject
from fusewire_ingest.repository.submissions import Submissions
from fusewire_judge.handlers import PUBLISHED_WITHIN, Handlers

T = TypeVar("T")
Message = Plan | Candidate
JUDGES = st.sampled_from([0, 1])
PANELS: list[dict[str, str | None]] = [
    {"a": "4", "b": "5", "c": "4"},
    {"a": OPEN_ANSWERS["a"], "b": OPEN_ANSWERS["b"], "c": OPEN_ANSWERS["c"]},
    {"a": "4", "b": None, "c": None},
    {"a": None, "b": None, "c": None},
    {"a": OPEN_ANSWERS["a"], "b": OPEN_ANSWERS["b"], "c": None},
]
"""What members answer; None is a failure."""
REPLIES = ["verdict", "prose", "failure", "two verdicts"]
_LABEL = re.compile(r"\[\[[0-9a-f]{8,32} ([A-Z]{1,2})\]\]")


class Broker:
    """What has reached the broker, whichever judge published it."""

    def __init__(self) -> None:
        self.outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
        self.rounds: list[Round] = []


class JudgeBus:
    """One judge's connection to the broker."""

    last_store_id = "s1"

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.is_down = False

    async def publish(
        self,
        subject: str,
        message: Round | Outcome | bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        if self.is_down:
            raise Transient("the server does not answer")
        if isinstance(message, Outcome):
            self.broker.outcomes[message.fusion_id].append(message)
        elif isinstance(message, Round):
            self.broker.rounds.append(message)
        return True


class FailingStore:
    """A store of which one transaction is rolled back when it is told so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fails = False

    async def run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        def fail(connection: Connection) -> T:
            work(connection)
            raise Transient("the database went away before the commit")

        return await self._store.run(fail if self.fails and write else work, write=write)


class FanIn(RuleBasedStateMachine):
    """Up to three fusions, from their acceptance to their outcome."""

    def __init__(self, shared: SharedState) -> None:
        super().__init__()
        self.shared = shared
        self.clock = shared.clock
        self.broker = Broker()
        self.store = FailingStore(shared.store)
        self.buses = [JudgeBus(self.broker), JudgeBus(self.broker)]
        self.judges = [self.new_judge(number) for number in (0, 1)]
        self.prompts: list[Prompt] = []
        self.messages: list[Message] = []
        """What may be delivered: plans and candidates, in the order in which they came to be."""
        self.answered_rounds = 0
        self.cancelled_before_end: set[str] = set()
        self.ended: dict[str, str] = {}
        """Bodies of outcomes, as they were when first seen."""
        self.kept: dict[tuple[Any, ...], str] = {}
        """Bodies of rounds and candidates, likewise."""

    def new_judge(self, number: int) -> Handlers:
        bus = cast("Bus", self.buses[number])
        return Handlers(bus, cast("Store", self.store), self.clock)

    def run(self, work: Any) -> Any:
        return self.shared.loop.run(work)

    async def attempt(self, number: int, work: Any) -> None:
        """Let a judge work; one that fails ends, and another starts in its place."""
        try:
            await work
        except Transient:
            self.judges[number] = self.new_judge(number)

    def delivery(self, message: Message) -> Delivery:
        subject = (
            plan_subject(message.fusion_id)
            if isinstance(message, Plan)
            else candidate_subject(message.fusion_id, message.round, message.call)
        )
        number = next(self.shared.numbers)
        return Delivery(message.encode(), subject, {}, 2, "FW_CANDIDATE", number, cast("Msg", None))

    def batch(self, data: st.DataObject) -> list[Delivery]:
        # Draws depend on no state: ids are new in each example, and with them orders of rounds.
        picks = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=5), label="batch")
        messages = [self.messages[pick % len(self.messages)] for pick in picks]
        return [self.delivery(message) for message in messages]

    # -- what happens -------------------------------------------------------------------------

    @initialize(
        panels=st.lists(st.sampled_from(PANELS), min_size=1, max_size=3),
        mode=st.sampled_from(["best-of", "merge", "debate"]),
        is_paid_twice=st.booleans(),
    )
    def accept(self, panels: list[dict[str, str | None]], mode: str, is_paid_twice: bool) -> None:
        for panel in panels:
            now = self.clock()
            prompt = make_prompt(
                custom_id=f"machine-{next(self.shared.numbers)}",
                mode=mode,
                submitted_at=now,
                deadline_at=now + timedelta(seconds=60),
            )
            self.prompts.append(prompt)
            self.messages.append(make_plan(prompt))
            for member, text in panel.items():
                fails = None if text else "server_error"
                self.messages.append(make_candidate(text, member, prompt=prompt, fails=fails))
            if is_paid_twice:
                self.messages.append(make_candidate("4, again", "a", prompt=prompt))
        # A task that nobody planned, a model that was not asked, a fusion that nobody accepted.
        forged = self.prompts[0]
        self.messages.append(make_candidate("forged", "d", prompt=forged))
        self.messages.append(make_candidate("forged", "b", prompt=forged, model="m-evil"))
        stranger = make_prompt(custom_id=f"stranger-{next(self.shared.numbers)}")
        self.messages += [make_plan(stranger), make_candidate("4", "a", prompt=stranger)]
        submissions = Submissions(self.shared.store)
        self.run(submissions.add(self.prompts, [None] * len(self.prompts)))

    @rule(number=JUDGES, data=st.data())
    def deliver(self, number: int, data: st.DataObject) -> None:
        self.run(self.attempt(number, self.judges[number].on_batch(self.batch(data))))

    @rule(number=JUDGES)
    def deliver_all(self, number: int) -> None:
        batch = [self.delivery(message) for message in self.messages]
        self.run(self.attempt(number, self.judges[number].on_batch(batch)))

    @rule(data=st.data())
    def deliver_to_both(self, data: st.DataObject) -> None:
        batches = [self.batch(data), self.batch(data)]

        async def take() -> None:
            await asyncio.gather(
                *(self.attempt(n, self.judges[n].on_batch(batches[n])) for n in (0, 1))
            )

        self.run(take())

    @rule(number=JUDGES, data=st.data())
    def crash_before_publishing(self, number: int, data: st.DataObject) -> None:
        self.buses[number].is_down = True
        self.deliver(number, data)
        self.buses[number].is_down = False
        self.judges[number] = self.new_judge(number)

    @rule(number=JUDGES, data=st.data())
    def fail_before_the_commit(self, number: int, data: st.DataObject) -> None:
        self.store.fails = True
        self.deliver(number, data)
        self.store.fails = False

    @rule(reply=st.sampled_from(REPLIES))
    def answer_rounds(self, reply: str) -> None:
        """The dispatcher and workers have done their part of the rounds that were published."""
        for round_ in self.broker.rounds[self.answered_rounds :]:
            for call in round_.calls:
                self.messages.append(self.reply(round_, call, reply))
        self.answered_rounds = len(self.broker.rounds)

    def reply(self, round_: Round, call: Any, reply: str) -> Candidate:
        prompt = next(p for p in self.prompts if p.fusion_id == round_.fusion_id)
        labels = _LABEL.findall(call.messages[-1].content) or ["A"]
        verdict = json.dumps({"reason": "It is right about the city.", "winner": labels[0]})
        texts = {"verdict": verdict, "prose": "Paris is it.", "two verdicts": verdict + verdict}
        return make_candidate(
            texts.get(reply),
            call.name,
            prompt=prompt,
            fails=None if reply in texts else "server_error",
            round=round_.round,
            member=call.member,
            model=call.model,
        )

    @rule(seconds=st.sampled_from([1, 5, 20, 50]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(number=JUDGES, is_down=st.booleans())
    def sweep(self, number: int, is_down: bool) -> None:
        self.buses[number].is_down = is_down
        self.run(self.attempt(number, self.judges[number].sweep()))
        self.buses[number].is_down = False

    @rule(number=JUDGES, is_down=st.booleans())
    def publish_again(self, number: int, is_down: bool) -> None:
        self.buses[number].is_down = is_down
        self.run(self.attempt(number, self.judges[number].publish_again()))
        self.buses[number].is_down = False

    @rule(number=JUDGES, data=st.data())
    def fire_timer(self, number: int, data: st.DataObject) -> None:
        prompt = self.prompts[data.draw(st.integers(0, 9)) % len(self.prompts)]
        due = Delivery(b"{}", f"fw.due.{prompt.fusion_id}", {}, 1, "FW_TIMER", 1, cast("Msg", None))
        self.run(self.attempt(number, self.judges[number].on_due([due])))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        prompt = self.prompts[data.draw(st.integers(0, 9)) % len(self.prompts)]
        submissions = Submissions(self.shared.store)
        self.run(submissions.cancel(prompt.tenant, [prompt.fusion_id], self.clock()))
        if prompt.fusion_id not in self.ended:
            self.cancelled_before_end.add(prompt.fusion_id)

    # -- what must hold -----------------------------------------------------------------------

    @property
    def keys(self) -> list[str]:
        return [prompt.fusion_id for prompt in self.prompts]

    def stored(self, columns: list[Any]) -> list[Any]:
        where = columns[0].table.c.fusion_id.in_(self.keys)

        def read(connection: Connection) -> list[Any]:
            return list(connection.execute(select(*columns).where(where)))

        return cast("list[Any]", self.run(self.shared.store.run(read, write=False)))

    @invariant()
    def check(self) -> None:
        # In this order: the first two read what the others compare.
        self.what_has_ended_stays_as_it_is()
        self.rounds_and_candidates_are_stored_once_and_stay()
        self.only_what_is_stored_is_published()
        self.every_fusion_that_is_open_will_be_looked_at()
        self.nothing_forged_counts()

    def what_has_ended_stays_as_it_is(self) -> None:
        bodies = dict(tuple(row) for row in self.stored([outcomes.c.fusion_id, outcomes.c.body]))
        assert bodies.items() >= self.ended.items()
        for key in bodies.keys() - self.ended.keys():
            if key in self.cancelled_before_end:
                assert Outcome.decode(bodies[key]).status == "cancelled"
        self.ended = bodies

    def rounds_and_candidates_are_stored_once_and_stay(self) -> None:
        columns = [candidates.c.fusion_id, candidates.c.round, candidates.c.call, candidates.c.body]
        kept = {tuple(row[:-1]): row.body for row in self.stored(columns)}
        kept |= {
            tuple(row[:-1]): row.body
            for row in self.stored([rounds.c.fusion_id, rounds.c.round, rounds.c.body])
        }
        assert kept.items() >= self.kept.items()
        self.kept = kept

    def only_what_is_stored_is_published(self) -> None:
        for key, published in self.broker.outcomes.items():
            assert {outcome.model_dump_json() for outcome in published} == {self.ended[key]}
        for round_ in self.broker.rounds:
            assert Round.decode(self.kept[round_.fusion_id, round_.round]) == round_

    def every_fusion_that_is_open_will_be_looked_at(self) -> None:
        columns = [fusions.c.fusion_id, fusions.c.is_done, fusions.c.due_at]
        for row in self.stored(columns):
            assert row.is_done == (row.fusion_id in self.ended)
            assert row.is_done or row.due_at is not None

    def nothing_forged_counts(self) -> None:
        for body in self.ended.values():
            assert not any(a.content == "forged" for a in Outcome.decode(body).answers)

    def teardown(self) -> None:
        """Let everything end: a judge that starts anew finds all that is left."""
        judge = self.judges[0] = self.new_judge(0)
        self.clock.advance(90)
        while self.run(judge.sweep()):
            pass
        self.clock.advance(2 * PUBLISHED_WITHIN.total_seconds())
        while self.run(judge.publish_again()):
            self.clock.advance(2 * PUBLISHED_WITHIN.total_seconds())
        self.check()
        assert set(self.ended) == set(self.keys), "each has an outcome"
        assert self.broker.outcomes.keys() == set(self.keys), "and it was published"
        assert not any(row[0] for row in self.stored([fusions.c.unpublished_since]))


def test_the_fan_in_holds_whatever_comes(database: Database) -> None:
    with Loop() as loop:
        store = Store(database)
        shared = SharedState(loop, store)
        try:
            run_machine(lambda: FanIn(shared), examples=12)
        finally:
            loop.run(store.close())
