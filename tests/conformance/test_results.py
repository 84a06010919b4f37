"""The judge's handlers on a real database: nothing is decided twice.

Whatever comes, how often and in which order.
"""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import pytest
from nats.aio.msg import Msg
from sqlalchemy import Connection, text, update

from fusewire.bus import Bus, Delivery
from fusewire.contracts import Candidate, Outcome, Plan, Prompt, Round
from fusewire.errors import Transient, UnacceptableMessage
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.store.queries import standings
from fusewire.store.tables import fusions, prompts
from fusewire.testing.factories import (
    JUDGE,
    OPEN_ANSWERS,
    T0,
    FakeClock,
    make_candidate,
    make_plan,
    make_prompt,
)
from fusewire.testing.statements import statements
from fusewire.topology import candidate_subject, plan_subject
from fusewire_ingest.repository.submissions import Submissions
from fusewire_judge import turn as turn_module
from fusewire_judge.handlers import ARRIVED_WITHIN, PUBLISHED_WITHIN, Handlers
from fusewire_judge.model import Case, Decision
from fusewire_judge.repository.results import Results

Message = Plan | Candidate
REASON = "It is right about the city."


@dataclass
class Published:
    """A bus that keeps what is published."""

    messages: list[Round | Outcome] = field(default_factory=list)
    timers: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    is_down: bool = False
    last_store_id: str = "s1"

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
        if isinstance(message, bytes):
            assert headers is not None
            assert msg_id is None, "setting a timer again must not be swallowed as a duplicate"
            self.timers.append((subject, headers))
        else:
            assert msg_id is not None
            self.messages.append(message)
        return True

    def of(self, prompt: Prompt) -> list[str]:
        """What was published for one fusion, in order: `round 1`, `outcome`."""
        mine = [m for m in self.messages if m.fusion_id == prompt.fusion_id]
        return [f"round {m.round}" if isinstance(m, Round) else "outcome" for m in mine]


class Desk:
    """A judge without a broker."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.bus = Published()
        self.arrived: set[str] = set()
        """Fusions of which something waits in the stream."""
        self.clock = FakeClock()
        self.restart()
        self._sequence = itertools.count(1)

    async def submit(self, *batch: Prompt) -> None:
        await Submissions(self.store).add(batch, [None] * len(batch))

    def delivery(
        self, message: Message, deliveries: int = 1, subject: str | None = None
    ) -> Delivery:
        if subject is None:
            subject = (
                plan_subject(message.fusion_id)
                if isinstance(message, Plan)
                else candidate_subject(message.fusion_id, message.round, message.call)
            )
        return Delivery(
            message.encode(),
            subject,
            {},
            deliveries,
            "FW_CANDIDATE",
            next(self._sequence),
            cast("Msg", None),
        )

    async def take(self, *messages: Message, deliveries: int = 1) -> None:
        """Handle messages as one batch."""
        await self.handlers.on_batch([self.delivery(m, deliveries) for m in messages])

    async def fire(self, *batch: Prompt, deliveries: int = 1) -> None:
        """Let timers arrive."""
        due = [
            Delivery(
                b"{}",
                f"fw.due.{p.fusion_id}",
                {},
                deliveries,
                "FW_TIMER",
                next(self._sequence),
                cast("Msg", None),
            )
            for p in batch
        ]
        await self.handlers.on_due(due)

    async def _has_pending(self, fusion_id: str) -> bool:
        return fusion_id in self.arrived

    def restart(self) -> None:
        """Another judge, which knows what is stored."""
        self.handlers = Handlers(
            cast("Bus", self.bus), self.store, self.clock, has_pending=self._has_pending
        )

    async def outcome(self, prompt: Prompt) -> Outcome | None:
        (standing,) = await standings(self.store, prompt.tenant, [prompt.fusion_id])
        return standing.outcome

    async def rows(self, query: str) -> list[dict[str, Any]]:
        async with self.store.read() as connection:
            return [dict(row) for row in (await connection.execute(text(query))).mappings()]


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(store)


def answers(
    prompt: Prompt, texts: Mapping[str, str] = OPEN_ANSWERS, **overrides: Any
) -> list[Candidate]:
    return [make_candidate(text, name, prompt=prompt, **overrides) for name, text in texts.items()]


def everything(prompt: Prompt) -> list[Message]:
    """A plan and closed answers."""
    return [make_plan(prompt), *answers(prompt, CLOSED)]


def verdicts(desk: Desk, prompt: Prompt, member: str = "a", **overrides: Any) -> list[Candidate]:
    """Both orders name one member."""
    asked = next(
        m for m in desk.bus.messages if isinstance(m, Round) and m.fusion_id == prompt.fusion_id
    )
    found = []
    for call in asked.calls:
        shown, said = call.messages[-1].content, OPEN_ANSWERS[member]
        label = shown[: shown.index(said)].rstrip("]\n")[-2:]
        content = json.dumps({"reason": REASON, "winner": label})
        given = {
            "round": asked.round,
            "member": None,
            "model": JUDGE.model,
            "cost_usd": 0.01,
            **overrides,
        }
        found.append(make_candidate(content, call.name, prompt=prompt, **given))
    return found


CLOSED = {"a": "4", "b": "5", "c": "4"}
PROMPT = make_prompt()
OTHER = make_prompt(custom_id="two")


async def test_a_vote(desk: Desk) -> None:
    await desk.submit(PROMPT)

    await desk.take(make_plan(PROMPT))
    assert await desk.outcome(PROMPT) is None
    await desk.take(*answers(PROMPT, CLOSED))

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.status, outcome.content, outcome.winner) == ("voted", "4", "a")
    assert desk.bus.of(PROMPT) == ["outcome"]
    assert [a.content for a in outcome.answers] == ["4", "5", "4"]


async def test_a_verdict(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), *answers(PROMPT))
    assert desk.bus.of(PROMPT) == ["round 1"]
    assert [m.store_id for m in desk.bus.messages if isinstance(m, Round)] == [
        desk.bus.last_store_id
    ]

    await desk.take(*verdicts(desk, PROMPT))

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.status, outcome.judge_rung, outcome.rounds) == ("selected", "strict", 1)
    assert outcome.content == OPEN_ANSWERS[outcome.winner or ""]
    assert desk.bus.of(PROMPT) == ["round 1", "outcome"]


@pytest.mark.parametrize("order", [(1, 2, 3, 0), (3, 0, 2, 1), (0, 3, 2, 1)])
async def test_any_order_of_arrival(desk: Desk, order: Sequence[int]) -> None:
    messages = everything(PROMPT)
    await desk.submit(PROMPT)

    for place in order:
        await desk.take(messages[place])

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.content, outcome.winner, outcome.degraded_reasons) == ("4", "a", ())
    assert desk.bus.of(PROMPT) == ["outcome"]


async def test_many_fusions_in_one_batch(desk: Desk) -> None:
    batch = [make_prompt(custom_id=f"q{i}") for i in range(20)]
    await desk.submit(*batch)

    await desk.take(*[m for p in batch for m in everything(p)])

    for prompt in batch:
        assert desk.bus.of(prompt) == ["outcome"]
    assert (await desk.rows("SELECT count(*) AS n FROM v_outcome"))[0]["n"] == 20
    assert (await desk.rows("SELECT count(*) AS n FROM v_answer"))[0]["n"] == 60


# -- what is kept between turns ---------------------------------------------------------------


async def test_what_is_stored_is_read_once(desk: Desk) -> None:
    await desk.submit(PROMPT)
    with statements(desk.store) as said:
        await desk.take(make_plan(PROMPT))
        await desk.take(*answers(PROMPT))
        await desk.take(*verdicts(desk, PROMPT))

    assert sum("prompts.body" in one for one in said) == 1
    assert not [one for one in said if "candidates.body" in one and one.startswith("SELECT")]
    assert not [one for one in said if "rounds.body" in one and one.startswith("SELECT")]
    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.status, outcome.rounds, len(outcome.answers)) == ("selected", 1, 3)


@pytest.mark.parametrize("turns", [(0, 1, 0, 1, 0), (1, 1, 0, 0, 1), (0, 1, 1, 1, 0)])
async def test_judges_that_take_turns_each_see_what_the_other_stored(
    desk: Desk, turns: Sequence[int]
) -> None:
    desks = [desk, Desk(desk.store)]
    desks[1].bus = desk.bus
    desks[1].handlers = Handlers(cast("Bus", desk.bus), desk.store, desk.clock)
    await desk.submit(PROMPT)

    messages: list[Message] = [make_plan(PROMPT), *answers(PROMPT)[:2]]
    for turn, message in zip(turns[:3], messages, strict=True):
        await desks[turn].take(message)
    await desks[turns[3]].take(answers(PROMPT)[2])
    assert desk.bus.of(PROMPT) == ["round 1"]
    await desks[turns[4]].take(*verdicts(desk, PROMPT))

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.status, outcome.rounds, len(outcome.answers)) == ("selected", 1, 3)
    assert desk.bus.of(PROMPT) == ["round 1", "outcome"]


async def test_a_transaction_that_fails_leaves_nothing_behind(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT))
    with monkeypatch.context() as patched:
        patched.setattr(Results, "set_due", _fails)
        patched.setattr(Results, "add_outcomes", _fails)
        with pytest.raises(Transient):
            await desk.take(*answers(PROMPT, CLOSED))
    assert await desk.outcome(PROMPT) is None

    await desk.take(*answers(PROMPT, CLOSED), deliveries=2)

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert outcome.content == "4"


async def test_what_a_transaction_that_failed_has_read_is_not_taken_for_stored(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another judge stores as many candidates, and one of them says something else."""
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT))
    run = desk.store.run

    async def fail_at_the_commit(work: Callable[[Connection], Any], *, write: bool) -> Any:
        def do(connection: Connection) -> None:
            work(connection)
            _fails()

        return await run(do, write=write)

    with monkeypatch.context() as patched:
        patched.setattr(desk.store, "run", fail_at_the_commit)
        with pytest.raises(Transient):
            await desk.take(*answers(PROMPT, {"a": "4"}))

    await Desk(desk.store).take(*answers(PROMPT, {"a": "5"}))
    await desk.take(*answers(PROMPT, {"b": "4", "c": "5"}))

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert outcome.content == "5"


def set_due(due: dict[str, tuple[datetime, datetime | None]], connection: Connection) -> None:
    Results(connection).set_due(due)


def _fails(*_: Any) -> None:
    raise Transient("the database went away")


# -- redelivery -------------------------------------------------------------------------------


async def test_what_is_delivered_again_changes_nothing(desk: Desk) -> None:
    messages: list[Message] = [make_plan(PROMPT), *answers(PROMPT)]
    await desk.submit(PROMPT)
    await desk.take(*messages)
    messages += verdicts(desk, PROMPT)
    await desk.take(*messages[4:])
    before = await desk.outcome(PROMPT)
    stored = {
        t: await desk.rows(f"SELECT * FROM {t} ORDER BY 1, 2")
        for t in ("candidates", "rounds", "fusions")
    }

    desk.clock.advance(5)
    for message in messages:
        await desk.take(message, deliveries=2)

    assert await desk.outcome(PROMPT) == before
    for table, rows in stored.items():
        assert await desk.rows(f"SELECT * FROM {table} ORDER BY 1, 2") == rows


async def later(desk: Desk) -> int:
    """The sweep comes, once what is on its way has had its time."""
    desk.clock.advance(PUBLISHED_WITHIN.total_seconds())
    return await desk.handlers.publish_again()


async def marked(desk: Desk) -> set[str]:
    return {
        row["fusion_id"]
        for row in await desk.rows("SELECT * FROM fusions WHERE unpublished_since IS NOT NULL")
    }


async def test_what_the_broker_was_not_there_for_is_published_by_the_sweep(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), *answers(PROMPT)[:2])

    desk.bus.is_down = True
    with pytest.raises(Transient):
        await desk.take(answers(PROMPT)[2])
    with pytest.raises(Transient):
        await later(desk)
    desk.bus.is_down = False
    assert desk.bus.of(PROMPT) == []
    assert await later(desk) == 1
    assert desk.bus.of(PROMPT) == ["round 1"]

    desk.bus.is_down = True
    with pytest.raises(Transient):
        await desk.take(*verdicts(desk, PROMPT))
    desk.bus.is_down = False
    assert await later(desk) == 1
    assert desk.bus.of(PROMPT) == ["round 1", "outcome"]
    assert len(await desk.rows("SELECT * FROM outcomes")) == 1

    assert await later(desk) == 0
    assert await marked(desk) == set()


async def test_what_a_judge_that_ended_could_not_publish_is_published_by_the_next(
    desk: Desk,
) -> None:
    """Neither a repeated message nor what the first one held in memory is needed for it."""
    await desk.submit(PROMPT, OTHER)
    await desk.take(
        make_plan(PROMPT), *answers(PROMPT)[:2], make_plan(OTHER), *answers(OTHER, CLOSED)[:1]
    )
    desk.clock.advance(45)
    desk.bus.is_down = True
    with pytest.raises(Transient):
        await desk.fire(PROMPT, OTHER)

    desk.bus.is_down = False
    desk.restart()
    assert await desk.handlers.publish_again() == 0, "it may still be on its way"
    assert await later(desk) == 2

    assert (desk.bus.of(PROMPT), desk.bus.of(OTHER)) == (["round 1"], ["outcome"])


async def test_what_the_broker_has_is_not_published_again(desk: Desk) -> None:
    await desk.submit(PROMPT, OTHER)
    await desk.take(make_plan(PROMPT), *answers(PROMPT), *everything(OTHER))
    assert await marked(desk) == {PROMPT.fusion_id, OTHER.fusion_id}

    assert await later(desk) == 0

    assert await marked(desk) == set()
    assert (desk.bus.of(PROMPT), desk.bus.of(OTHER)) == (["round 1"], ["outcome"])


async def test_a_mark_that_was_set_meanwhile_stays(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), *answers(PROMPT))
    desk.clock.advance(1)
    desk.bus.is_down = True
    with pytest.raises(Transient):
        await desk.take(*verdicts(desk, PROMPT))

    desk.bus.is_down = False
    assert await desk.handlers.publish_again() == 0, (
        "it takes the mark of the round off, and not that of the outcome"
    )
    assert await later(desk) == 1
    assert desk.bus.of(PROMPT) == ["round 1", "outcome"]


async def test_marks_wait_for_a_database_that_is_away(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.submit(PROMPT)
    await desk.take(*everything(PROMPT))
    with monkeypatch.context() as patched:
        patched.setattr(Results, "set_published", _fails)
        with pytest.raises(Transient):
            await desk.handlers.publish_again()

    assert await later(desk) == 0
    assert await marked(desk) == set()


async def test_a_round_is_published_again_when_the_broker_lost_it(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), *answers(PROMPT))

    await desk.take(
        make_plan(PROMPT)
    )  # as dispatcher makes it of a prompt that ingest published again

    assert desk.bus.of(PROMPT) == ["round 1", "round 1"]
    assert len(await desk.rows("SELECT * FROM rounds")) == 1


async def test_the_first_plan_stays(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT))

    await desk.take(make_plan(PROMPT, members="x", quorum=0.1))

    (row,) = await desk.rows("SELECT plan FROM fusions")
    assert Plan.decode(row["plan"]) == make_plan(PROMPT)


async def test_the_first_candidate_of_a_call_stays(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), make_candidate("4", "a"), make_candidate("9", "a"))
    await desk.take(make_candidate("9", "a"), make_candidate("4", "b"), make_candidate("4", "c"))

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.content, outcome.agreement) == ("4", 1.0)


async def test_a_late_candidate_is_kept_and_changes_nothing(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT, judge=None), *answers(PROMPT, {"a": "4", "b": "6"}))
    desk.clock.advance(1)
    await desk.fire(PROMPT)
    before = await desk.outcome(PROMPT)
    assert before is not None
    assert before.degraded_reasons == ("missing:c:0.33:quorum",)

    await desk.take(make_candidate("5", "c"))

    assert await desk.outcome(PROMPT) == before
    late = {
        row["call"]: bool(row["is_late"])
        for row in await desk.rows("SELECT call, is_late FROM candidates")
    }
    assert late == {"a": False, "b": False, "c": True}
    (shown,) = await desk.rows(
        "SELECT status, content, latency_ms FROM v_answer WHERE member = 'c'"
    )
    assert shown == {"status": "missing", "content": None, "latency_ms": None}


# -- what does not belong ---------------------------------------------------------------------


async def test_a_candidate_of_a_fusion_that_nobody_submitted_is_ignored(desk: Desk) -> None:
    await desk.submit(PROMPT)

    await desk.take(
        make_plan(OTHER), *answers(OTHER, CLOSED), make_plan(PROMPT), *answers(PROMPT, CLOSED)
    )

    assert await desk.outcome(PROMPT) is not None
    assert {row["fusion_id"] for row in await desk.rows("SELECT fusion_id FROM fusions")} == {
        PROMPT.fusion_id
    }
    assert {row["fusion_id"] for row in await desk.rows("SELECT fusion_id FROM candidates")} == {
        PROMPT.fusion_id
    }


FORGED = [
    ("a member that was not asked", {"call": "x"}),
    ("a model that was not asked", {"call": "a", "model": "m-other"}),
    (
        "a call of no round",
        {"call": "verdict-1-1", "round": 1, "member": None, "model": JUDGE.model},
    ),
]


@pytest.mark.parametrize("fields", [row[1] for row in FORGED], ids=[row[0] for row in FORGED])
async def test_a_candidate_that_nobody_asked_for_does_not_count(
    desk: Desk, fields: dict[str, Any]
) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), make_candidate("forged", **{"prompt": PROMPT, **fields}))

    await desk.take(*answers(PROMPT, {"b": "4", "c": "4"}))

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.content, outcome.closed_by, outcome.answers[0].status) == (
        "4",
        "certain",
        "missing",
    )
    assert "forged" not in outcome.model_dump_json()


async def test_a_candidate_that_names_another_task_than_its_subject_is_refused(desk: Desk) -> None:
    await desk.submit(PROMPT, OTHER)
    forged = desk.delivery(
        make_candidate("4", "a", prompt=PROMPT), subject=candidate_subject(OTHER.fusion_id, 0, "a")
    )

    with pytest.raises(UnacceptableMessage, match="another task than its subject"):
        await desk.handlers.on_batch([forged])

    assert await desk.rows("SELECT * FROM candidates") == []


# -- time -------------------------------------------------------------------------------------


SOON = make_prompt(custom_id="soon", deadline_at=T0 + timedelta(seconds=8))
"""Its panel has six seconds."""


async def test_a_timer_is_set_for_the_panel_and_moved_when_the_quorum_is_there(desk: Desk) -> None:
    await desk.submit(SOON)
    await desk.take(make_plan(SOON))
    desk.clock.advance(1)
    await desk.take(make_candidate("4", "a", prompt=SOON), make_candidate("6", "b", prompt=SOON))

    first, moved = (headers["Nats-Schedule"] for _, headers in desk.bus.timers)
    assert first == "@at 2026-01-02T03:04:11.000+00:00"
    assert "@at 2026-01-02T03:04:06" <= moved < first


async def test_the_panel_s_deadline_is_left_to_the_sweep_and_the_quorum_s_has_a_timer(
    desk: Desk,
) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT))
    assert desk.bus.timers == []
    desk.clock.advance(2)
    await desk.take(make_candidate("4", "a"))
    desk.clock.advance(2)
    await desk.take(make_candidate("6", "b"))

    subjects = {subject for subject, _ in desk.bus.timers}
    times = [headers["Nats-Schedule"] for _, headers in desk.bus.timers]
    assert subjects == {f"fw.sched.{PROMPT.fusion_id}"}
    assert {h["Nats-Schedule-Target"] for _, h in desk.bus.timers} == {f"fw.due.{PROMPT.fusion_id}"}
    assert times == ["@at 2026-01-02T03:04:10.400+00:00"]


async def test_a_timer_that_fires_too_soon_is_set_anew(desk: Desk) -> None:
    await desk.submit(SOON)
    await desk.take(
        make_plan(SOON), *answers(SOON, {"a": OPEN_ANSWERS["a"], "b": OPEN_ANSWERS["b"]})
    )
    desk.clock.advance(1)
    await desk.fire(SOON)  # the panel is closed by its timer; the judge is asked
    assert desk.bus.of(SOON) == ["round 1"]
    asked = len(desk.bus.timers)

    desk.clock.advance(1)
    await desk.fire(SOON)

    assert len(desk.bus.timers) == asked + 1
    assert desk.bus.timers[-1][1]["Nats-Schedule"] == "@at 2026-01-02T03:04:13.000+00:00"
    assert await desk.outcome(SOON) is None


async def test_a_far_deadline_has_no_timer_and_the_sweep_finds_it(desk: Desk) -> None:
    prompt = make_prompt(batch_id="night", deadline_at=T0 + timedelta(days=1))
    await desk.submit(prompt)
    await desk.take(make_plan(prompt), make_candidate("4", "a", prompt=prompt))
    assert desk.bus.timers == []

    desk.clock.advance(0.74 * 86_400)
    assert await desk.handlers.sweep() == 0
    desk.clock.advance(0.02 * 86_400)
    assert await desk.handlers.sweep() == 1

    outcome = await desk.outcome(prompt)
    assert outcome is not None
    assert (outcome.status, outcome.degraded_reasons) == (
        "single",
        ("missing:b:0.33:deadline", "missing:c:0.33:deadline"),
    )
    assert await desk.handlers.sweep() == 0


async def test_what_was_never_planned_expires_by_the_sweep(desk: Desk) -> None:
    await desk.submit(PROMPT)
    desk.clock.advance(59.9)
    assert await desk.handlers.sweep() == 0

    desk.clock.advance(0.2)
    assert await desk.handlers.sweep() == 1

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.status, outcome.degraded_reasons) == ("expired", ("never_planned",))
    assert desk.bus.of(PROMPT) == ["outcome"]


@pytest.mark.parametrize("mode", ["best-of", "merge", "debate"])
async def test_a_judge_that_was_down_past_the_deadline_decides_all_the_same(
    desk: Desk, mode: str
) -> None:
    prompt = make_prompt(mode=mode)
    await desk.submit(prompt)
    desk.clock.advance(120)

    await desk.take(make_plan(prompt), *answers(prompt))

    outcome = await desk.outcome(prompt)
    assert outcome is not None
    assert outcome.status == "voted"
    assert outcome.is_degraded


async def test_what_has_arrived_is_waited_for_past_a_deadline_and_not_for_ever(desk: Desk) -> None:
    """As after an outage of the database, when its answers are in the stream."""
    await desk.submit(PROMPT, OTHER)
    await desk.take(make_plan(PROMPT), make_plan(OTHER))
    desk.arrived = {PROMPT.fusion_id}
    desk.clock.advance(46)

    await desk.handlers.sweep()
    await desk.fire(PROMPT)
    assert (await desk.outcome(PROMPT), desk.bus.of(OTHER)) == (None, ["outcome"])

    desk.clock.advance(ARRIVED_WITHIN.total_seconds())
    await desk.handlers.sweep()
    assert desk.bus.of(PROMPT) == ["outcome"]


async def test_what_arrives_past_a_deadline_that_waited_for_it_counts(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT))
    desk.arrived = {PROMPT.fusion_id}
    desk.clock.advance(46)
    await desk.handlers.sweep()

    await desk.take(*answers(PROMPT, CLOSED))

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.content, outcome.is_degraded) == ("4", False)


async def test_a_question_that_no_message_holds_has_failed_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be published again and again, until the deadline."""
    monkeypatch.setattr(turn_module, "MOST_ROUND_BYTES", 2_000)
    await desk.submit(PROMPT)

    await desk.take(make_plan(PROMPT), *answers(PROMPT))

    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    assert (outcome.status, outcome.judge_rung, outcome.is_degraded) == ("voted", "fallback", True)
    assert desk.bus.of(PROMPT) == ["outcome"]
    failed = await desk.rows(
        "SELECT error_code, after_rounds, is_late FROM candidates WHERE round = 1"
    )
    assert {row["error_code"] for row in failed} == {"context_length_exceeded"}
    assert {row["after_rounds"] for row in failed} == {1}
    assert await later(desk) == 0
    assert desk.bus.of(PROMPT) == ["outcome"]

    async with (
        desk.store.write() as connection
    ):  # as if it had gone on, to be published by the sweep
        await connection.execute(fusions.update().values(is_done=False, unpublished_since=T0))
    assert await desk.handlers.publish_again() == 1
    assert "round 1" not in desk.bus.of(PROMPT)


async def test_one_fusion_that_cannot_be_decided_keeps_no_other_from_the_sweep(desk: Desk) -> None:
    batch = [
        make_prompt(custom_id=f"q{i}", submitted_at=T0 + timedelta(seconds=i)) for i in range(4)
    ]
    await desk.submit(*batch)
    async with desk.store.write() as connection:
        broken = update(prompts).where(prompts.c.fusion_id == batch[0].fusion_id)
        await connection.execute(broken.values(body='{"v": 9}'))
    desk.clock.advance(120)

    assert await desk.handlers.sweep() == 4

    for prompt in batch[1:]:
        assert desk.bus.of(prompt) == ["outcome"]
    assert await desk.handlers.sweep() == 0
    desk.clock.advance(61)
    assert await desk.handlers.sweep() == 1  # it is not forgotten


async def test_a_fusion_on_which_the_judge_fails_ends_as_failed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, early = make_prompt(custom_id="late"), make_prompt(custom_id="early")
    await desk.submit(late, early)
    await desk.take(make_plan(late), make_plan(early))

    def fail(case: Case, now: datetime) -> Decision:
        raise OverflowError

    monkeypatch.setattr("fusewire_judge.turn.decide", fail)
    # Three times before its deadline, or once after it.
    for count in range(1, 4):
        await desk.store.run(partial(set_due, {early.fusion_id: (desk.clock(), None)}), write=True)
        assert await desk.handlers.sweep() == 1
        assert (await desk.outcome(early) is not None) == (count == 3)
        desk.clock.advance(1)
    desk.clock.advance(120)
    assert await desk.handlers.sweep() == 1

    for prompt in (late, early):
        outcome = await desk.outcome(prompt)
        assert outcome is not None
        assert (outcome.status, outcome.degraded_reasons, outcome.cost_usd) == (
            "failed",
            ("undecidable",),
            None,
        )
        assert "OverflowError" in (outcome.error or "")
        assert desk.bus.of(prompt)[-1] == "outcome"
    assert await desk.handlers.sweep() == 0


# -- replicas ---------------------------------------------------------------------------------


async def test_replicas_that_get_the_same_messages_decide_once(desk: Desk) -> None:
    replicas = [desk, Desk(desk.store), Desk(desk.store)]
    batch = [make_prompt(custom_id=f"q{i}") for i in range(10)]
    await desk.submit(*batch)
    messages: list[Message] = [m for p in batch for m in everything(p)]

    async def play(replica: Desk, order: Sequence[Message]) -> None:
        for start in range(0, len(order), 7):
            await replica.take(*order[start : start + 7])

    await asyncio.gather(
        *(play(r, o) for r, o in zip(replicas, (messages, messages[::-1], messages), strict=True))
    )

    rows = await desk.rows("SELECT status, content, n_answered FROM v_outcome")
    assert rows == [{"status": "voted", "content": "4", "n_answered": 3}] * 10
    assert len(await desk.rows("SELECT * FROM answers")) == 30


async def test_sweeps_of_replicas_share_what_is_due(postgres_database: Database) -> None:
    one, two = Desk(Store(postgres_database)), Desk(Store(postgres_database))
    batch = [make_prompt(custom_id=f"q{i:03}") for i in range(150)]
    await one.submit(*batch)
    for desk in (one, two):
        desk.clock.advance(120)

    async def drain(desk: Desk) -> None:
        while await desk.handlers.sweep():
            pass

    await asyncio.gather(drain(one), drain(two))
    await drain(one)  # what one had locked when the other looked

    ended = Counter(m.fusion_id for desk in (one, two) for m in desk.bus.messages)
    assert ended == Counter({p.fusion_id: 1 for p in batch})
    await one.store.close()
    await two.store.close()


# -- what analysts see ------------------------------------------------------------------------


async def test_an_outcome_as_analysts_see_it(desk: Desk) -> None:
    prompt = make_prompt("Which city?", batch_id="b1", custom_id="row 1")
    await desk.submit(prompt)
    desk.clock.advance(1)
    plan = make_plan(prompt, planned_at=desk.clock())
    await desk.take(
        plan,
        *answers(prompt, {k: OPEN_ANSWERS[k] for k in "ab"}),
        make_candidate(call="c", fails="timeout", prompt=prompt),
    )
    desk.clock.advance(2)
    await desk.take(*verdicts(desk, prompt))

    (row,) = await desk.rows("SELECT * FROM v_outcome")

    for name in ("is_degraded", "is_fallback", "swap_consistent", "is_replay"):
        row[name] = bool(row[name])
    winner = row["winner"]
    assert winner in ("a", "b")
    assert str(row.pop("submitted_at"))[:19] == "2026-01-02 03:04:05"
    assert str(row.pop("finished_at"))[:19] == "2026-01-02 03:04:08"
    assert str(row.pop("day")) == "2026-01-02"
    assert json.loads(row.pop("degraded_reasons")) == ["failed:c:timeout"]
    assert len(row.pop("prompt_hash")) == 64
    assert 0 < row.pop("agreement") < 1
    assert row == {
        "is_degraded": True,
        "status": "selected",
        "outcome_id": prompt.fusion_id,
        "batch_id": "b1",
        "custom_id": "row 1",
        "tenant": "default",
        "pool": "default",
        "mode": "best-of",
        "strategy": "best-of",
        "config_hash": "0123456789ab",
        "content": OPEN_ANSWERS[winner],
        "reason": "It is right about the city.",
        "judge_model": "m-judge",
        "winner": winner,
        "winner_model": f"m-{winner}",
        "n_asked": 3,
        "n_answered": 2,
        "is_fallback": False,
        "fallback_reason": None,
        "verdict_parse": "strict",
        "swap_consistent": True,
        "latency_ms": 3000,
        "panel_ms": 0,
        "judge_ms": 2000,
        "tokens_in": 40,
        "tokens_out": 8,
        "tokens_cached": 0,
        "tokens_thought": 0,
        "cost_panel_usd": pytest.approx(0.002),
        "cost_judge_usd": pytest.approx(0.02),
        "cost_usd": pytest.approx(0.022),
        "price_version": "test-1",
        "accepted": None,
        "error": None,
        "answer_kind": "open",
        "route": None,
        "route_loss_points": None,
        "closed_by": "complete",
        "missing_weight": pytest.approx(1 / 3),
        "guard": None,
        "hedges": 0,
        "is_replay": False,
        "tool_calls": None,
        "cost_late_usd": None,
    }


async def test_answers_as_analysts_see_them(desk: Desk) -> None:
    await desk.submit(PROMPT)
    edge = make_candidate(
        OPEN_ANSWERS["a"], "a", tier="edge", provider="onnxruntime", cost_usd=0.0, attempts=2
    )
    members = [
        m.model_copy(update={"tier": "edge"}) if m.name == "a" else m
        for m in make_plan(PROMPT).members
    ]
    plan = make_plan(PROMPT, members=members)
    await desk.take(
        plan,
        edge,
        make_candidate(OPEN_ANSWERS["b"], "b"),
        make_candidate(call="c", fails="timeout", attempts=3),
    )
    await desk.take(*verdicts(desk, PROMPT))

    a, b, c = await desk.rows("SELECT * FROM v_answer ORDER BY member")

    assert {a["shown_position"], b["shown_position"]} == {1, 2}
    outcome = await desk.outcome(PROMPT)
    assert outcome is not None
    won = {row["member"] for row in (a, b, c) if row["is_winner"]}
    assert won == {outcome.winner}
    for row in (a, b, c):
        assert str(row["day"]) == "2026-01-02"
        assert row["answer_id"] == f"{PROMPT.fusion_id}/{row['member']}"
        assert (row["pool"], row["mode"], row["outcome_id"]) == (
            "default",
            "best-of",
            PROMPT.fusion_id,
        )

    def part(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    told = ("member", "model", "provider", "tier", "status", "error_code", "attempts", "round")
    assert part(a, *told) == ("a", "m-a", "onnxruntime", "edge", "ok", None, 2, 0)
    assert part(b, *told) == ("b", "m-b", "openai", "hosted", "ok", None, 1, 0)
    assert part(c, *told) == ("c", "m-c", "openai", "hosted", "error", "timeout", 3, 0)
    spent = ("latency_ms", "tokens_in", "tokens_out", "cost_usd", "content")
    assert part(a, *spent) == (1000, 10, 2, 0.0, OPEN_ANSWERS["a"])
    assert part(c, *spent) == (1000, 0, 0, 0.0, None)
    assert part(a, "call", "weight", "agreed", "vote_group", "is_right") == (
        "a",
        1.0,
        None,
        None,
        None,
    )


async def test_what_came_too_late_has_cost_something_too(desk: Desk) -> None:
    await desk.submit(PROMPT)
    first, late, second = answers(PROMPT, CLOSED, cost_usd=0.25)
    await desk.take(make_plan(PROMPT), first, second)
    (before,) = await desk.rows("SELECT cost_usd, cost_late_usd FROM v_outcome")

    await desk.take(late)
    # Until a budget has counted it; delivered once more, it has cost nothing more.
    assert await desk.rows("SELECT call, usd FROM late_costs") == [{"call": "b", "usd": 0.25}]
    async with desk.store.write() as connection:
        await connection.execute(text("DELETE FROM late_costs"))
    await desk.take(late)
    assert await desk.rows("SELECT call, usd FROM late_costs") == []

    (after,) = await desk.rows("SELECT cost_usd, cost_late_usd FROM v_outcome")
    assert (before["cost_usd"], before["cost_late_usd"]) == (0.5, None)
    assert (after["cost_usd"], after["cost_late_usd"]) == (0.5, 0.25)


async def test_a_fallback_as_analysts_see_it(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), *answers(PROMPT, cost_usd=None, price_version=None))
    await desk.take(*verdicts(desk, PROMPT, fails="server_error", cost_usd=None))

    (row,) = await desk.rows("SELECT * FROM v_outcome")

    assert (bool(row["is_fallback"]), bool(row["is_degraded"]), row["verdict_parse"]) == (
        True,
        True,
        "fallback",
    )
    assert (
        row["fallback_reason"]
        == row["reason"]
        == "no usable verdict, the answer most like the others"
    )
    assert (row["cost_panel_usd"], row["cost_judge_usd"], row["cost_usd"]) == (None, 0, None)


async def test_the_day_is_utc_whatever_the_zone_of_the_session(postgres_database: Database) -> None:
    desk = Desk(Store(postgres_database))
    late = T0.replace(hour=23, minute=59)
    prompt = make_prompt(submitted_at=late)
    await desk.submit(prompt)
    desk.clock.now = late + timedelta(seconds=10)
    await desk.take(make_plan(prompt), *answers(prompt, CLOSED))

    async with desk.store.read() as connection:
        await connection.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        found = await connection.execute(
            text("SELECT o.day, a.day AS other FROM v_outcome o, v_answer a LIMIT 1")
        )
        assert [str(value) for value in found.one()] == ["2026-01-02", "2026-01-02"]
    await desk.store.close()


async def test_an_answer_of_any_text_is_shown_as_it_is(desk: Desk) -> None:
    prompt = make_prompt(members="ab")
    texts = {
        "a": 'Quotes " and \\ and \n and \\u0000 and 🌍 and “€”.',
        "b": "%s :name {x} ' ; -- as one may well say",
    }
    await desk.submit(prompt)
    await desk.take(make_plan(prompt, members="ab", judge=None), *answers(prompt, texts))

    rows = await desk.rows("SELECT member, content FROM v_answer ORDER BY member")

    assert {row["member"]: row["content"] for row in rows} == texts
    assert len(await desk.rows("SELECT * FROM outcomes")) == 1


async def test_a_closed_fusion_waits_for_nothing(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), *answers(PROMPT, CLOSED))

    async with desk.store.read() as connection:
        row = (await connection.execute(fusions.select())).one()
    assert (row.is_done, row.due_at, row.timer_at) == (True, None, None)
