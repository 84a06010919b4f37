"""The judge's handlers on a real database: nothing is decided twice.

Whatever comes, how often and in which order.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import pytest
from judge_desk import CLOSED, Desk, Message, answers, everything, verdicts
from sqlalchemy import Connection, update

from fusewire.bus import Bus
from fusewire.contracts import Plan, Round
from fusewire.errors import Transient, UnacceptableMessage
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.store.tables import fusions, prompts
from fusewire.testing.factories import (
    JUDGE,
    OPEN_ANSWERS,
    T0,
    make_candidate,
    make_plan,
    make_prompt,
)
from fusewire.testing.statements import statements
from fusewire.topology import candidate_subject
from fusewire_judge import turn as turn_module
from fusewire_judge.handlers import ARRIVED_WITHIN, PUBLISHED_WITHIN, Handlers
from fusewire_judge.model import Case, Decision
from fusewire_judge.repository.results import Results

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


async def test_a_closed_fusion_waits_for_nothing(desk: Desk) -> None:
    await desk.submit(PROMPT)
    await desk.take(make_plan(PROMPT), *answers(PROMPT, CLOSED))

    async with desk.store.read() as connection:
        row = (await connection.execute(fusions.select())).one()
    assert (row.is_done, row.due_at, row.timer_at) == (True, None, None)
