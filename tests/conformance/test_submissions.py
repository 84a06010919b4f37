"""Submissions in SQL: accepted once, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from fusewire.contracts import Answer, Candidate, Outcome, Prompt, ToolCall
from fusewire.errors import Transient
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.store.queries import as_reply, standings
from fusewire.store.tables import candidates, fusions, outcomes, prompts
from fusewire.testing.factories import T0, make_candidate, make_outcome, make_prompt
from fusewire_ingest.repository.group_commit import GroupCommit
from fusewire_ingest.repository.submissions import (
    Acceptance,
    EarlierRequest,
    RequestIdentity,
    Submissions,
)


@pytest.fixture
def submissions(store: Store) -> Submissions:
    return Submissions(store)


@pytest.fixture
async def group(submissions: Submissions) -> AsyncIterator[GroupCommit]:
    commit = GroupCommit(submissions, most=10)
    commit.start()
    yield commit
    await commit.stop()


def some(count: int, first: int = 0) -> list[Prompt]:
    return [make_prompt(custom_id=f"q{i}") for i in range(first, first + count)]


async def add(submissions: Submissions, *batch: Prompt) -> list[Acceptance]:
    return await submissions.add(batch, [None] * len(batch))


async def counted(store: Store) -> tuple[int, int]:
    """Rows of prompts and of fusions."""
    async with store.read() as connection:
        found = [
            (await connection.execute(select(func.count()).select_from(t))).scalar()
            for t in (prompts, fusions)
        ]
    return found[0] or 0, found[1] or 0


def fates(accepted: Sequence[Acceptance]) -> list[str]:
    return ["conflict" if a.is_conflict else "new" if a.is_new else "repetition" for a in accepted]


async def test_what_is_accepted_stands_in_the_database(
    submissions: Submissions, store: Store
) -> None:
    prompt = make_prompt(
        "Was kostet “die Welt”? 🌍", custom_id="one", batch_id="b1", residency="edge-only"
    )

    (accepted,) = await submissions.add([prompt], ["00-trace-01"])

    assert (accepted.prompt, accepted.is_new, accepted.is_conflict) == (prompt, True, False)
    async with store.read() as connection:
        row = (await connection.execute(select(prompts))).one()
        fusion = (await connection.execute(select(fusions))).one()
    assert Prompt.decode(row.body) == prompt
    assert (row.fusion_id, row.residency, row.traceparent) == (
        prompt.fusion_id,
        "edge-only",
        "00-trace-01",
    )
    assert (row.submitted_at, row.deadline_at, row.published_at) == (T0, prompt.deadline_at, None)
    assert (fusion.fusion_id, fusion.due_at, fusion.is_done, fusion.plan) == (
        prompt.fusion_id,
        prompt.deadline_at,
        False,
        None,
    )


async def test_a_repetition_is_recognised_and_stored_once(
    submissions: Submissions, store: Store
) -> None:
    prompt = make_prompt()
    later = prompt.model_copy(
        update={"submitted_at": T0 + timedelta(hours=1), "deadline_at": T0 + timedelta(hours=2)}
    )

    assert fates(await add(submissions, prompt)) == ["new"]
    assert fates(await add(submissions, later)) == ["repetition"]

    assert await counted(store) == (1, 1)
    async with store.read() as connection:
        assert (await connection.execute(select(prompts.c.submitted_at))).scalar() == T0


async def test_another_prompt_under_the_same_id_is_a_conflict(
    submissions: Submissions, store: Store
) -> None:
    await add(submissions, make_prompt("Why?"))

    assert fates(await add(submissions, make_prompt("Why not?"))) == ["conflict"]
    assert await counted(store) == (1, 1)


async def test_repetitions_and_conflicts_inside_one_batch(
    submissions: Submissions, store: Store
) -> None:
    one, other = make_prompt("Why?"), make_prompt("Why not?")
    two = make_prompt(custom_id="two")

    accepted = await add(submissions, one, two, one, other, two)

    assert fates(accepted) == ["new", "new", "repetition", "conflict", "repetition"]
    assert [a.prompt for a in accepted] == [one, two, one, other, two]
    assert await counted(store) == (2, 2)


async def test_the_same_id_in_another_batch_or_of_another_tenant_is_another_prompt(
    submissions: Submissions,
) -> None:
    batch = [
        make_prompt(),
        make_prompt(batch_id="b"),
        make_prompt(tenant="acme"),
        make_prompt(tenant="acme", batch_id="b"),
    ]

    assert fates(await add(submissions, *batch)) == ["new"] * 4


async def test_no_prompts_are_no_fault(submissions: Submissions) -> None:
    """As where all lines of a group are refused since the configuration changed."""
    assert await submissions.add([], []) == []


async def test_a_large_batch_is_one_transaction(submissions: Submissions, store: Store) -> None:
    batch = some(700)

    assert fates(await add(submissions, *batch)) == ["new"] * 700
    assert fates(await add(submissions, *batch)) == ["repetition"] * 700
    assert await counted(store) == (700, 700)


async def test_many_at_once_are_each_accepted_once(submissions: Submissions, store: Store) -> None:
    batches = [some(20, first) for first in (0, 10, 0, 5, 10, 0)]

    results = await asyncio.gather(*(add(submissions, *batch) for batch in batches))

    assert fates([a for accepted in results for a in accepted]).count("new") == 30
    assert await counted(store) == (30, 30)


async def test_group_commit_gives_each_its_own(group: GroupCommit, store: Store) -> None:
    waiting = [group.add(some(3, first=i)) for i in range(0, 30, 3)] + [
        group.add(some(2)),
        group.add([make_prompt()]),
    ]

    results = await asyncio.gather(*waiting)

    for i, accepted in enumerate(results[:10]):
        assert [a.prompt.custom_id for a in accepted] == [f"q{3 * i + j}" for j in range(3)]
    assert fates([a for accepted in results[:10] for a in accepted]) == ["new"] * 30
    assert fates(results[10]) == ["repetition"] * 2
    assert fates(results[11]) == ["new"]
    assert await counted(store) == (31, 31)


async def test_group_commit_that_has_ended_is_a_fault(group: GroupCommit) -> None:
    """Whoever submits from then on would wait for ever."""
    assert group.faults() == []

    await group._background.stop()

    assert group.faults() == ["ingest-commit has ended"]


async def test_group_commit_tells_a_conflict_to_the_one_who_made_it(group: GroupCommit) -> None:
    good, bad, other = await asyncio.gather(
        group.add([make_prompt("Why?")]), group.add([make_prompt("Why not?")]), group.add(some(1))
    )

    assert (fates(good), fates(bad), fates(other)) == (["new"], ["conflict"], ["new"])


async def test_group_commit_makes_one_commit_of_what_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Counting(Submissions):
        async def add(self, batch: Sequence[Prompt], *of_each: Any) -> list[Acceptance]:
            sizes.append(len(batch))
            return await super().add(batch, *of_each)

    commit = GroupCommit(Counting(store), most=10)
    waiting = [asyncio.ensure_future(commit.add(some(1, i))) for i in range(25)]
    await asyncio.sleep(0)
    commit.start()
    await asyncio.gather(*waiting)
    await commit.stop()

    assert sizes == [10, 10, 5]


async def test_one_prompt_that_no_table_holds_harms_no_other(
    group: GroupCommit, store: Store
) -> None:
    """Admission refuses it; should one slip by, whoever shares its commit must not pay for it."""
    bad = make_prompt(custom_id="i" * 300 + "\x00")

    results = await asyncio.gather(group.add([bad]), group.add(some(2)), return_exceptions=True)

    assert isinstance(results[1], list), results[1]
    assert fates(results[1]) == ["new"] * 2
    if isinstance(results[0], BaseException):
        assert isinstance(results[0], DBAPIError)
    assert (await group.add(some(1)))[0].is_new is False


async def test_when_the_commit_fails_everyone_is_told_and_the_next_one_succeeds(
    submissions: Submissions, group: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_args: object) -> list[Acceptance]:
        raise Transient("the database is not available")

    with monkeypatch.context() as outage:
        outage.setattr(Submissions, "add", down)
        results = await asyncio.gather(
            group.add(some(1)), group.add(some(1, 5)), return_exceptions=True
        )

    assert [type(r) for r in results] == [Transient, Transient]
    assert fates(await group.add(some(1))) == ["new"]


async def test_whoever_still_waits_when_it_stops_is_told(submissions: Submissions) -> None:
    commit = GroupCommit(submissions)
    waiting = asyncio.ensure_future(commit.add(some(1)))
    await asyncio.sleep(0)
    await commit.stop()

    with pytest.raises(Transient):
        await asyncio.wait_for(waiting, 250)


# -- the sweep --------------------------------------------------------------------------------


async def test_what_was_not_published_is_found_oldest_first(submissions: Submissions) -> None:
    batch = [
        make_prompt(custom_id=f"q{i}", submitted_at=T0 + timedelta(seconds=s))
        for i, s in enumerate([5, 1, 9, 3])
    ]
    await submissions.add(batch, ["t0", None, None, "t3"])

    found = await submissions.find_unpublished(T0 + timedelta(seconds=9), 10)

    assert [(p.custom_id, trace) for p, trace in found] == [
        ("q1", None),
        ("q3", "t3"),
        ("q0", "t0"),
    ]
    assert [
        p.custom_id for p, _ in await submissions.find_unpublished(T0 + timedelta(hours=1), 2)
    ] == [
        "q1",
        "q3",
    ]


async def test_what_was_published_is_not_published_again(submissions: Submissions) -> None:
    batch = some(3)
    await add(submissions, *batch)

    await submissions.publish_to("s1")
    await submissions.mark_published([batch[0].fusion_id, batch[2].fusion_id], T0, "s1")

    assert [p for p, _ in await submissions.find_unpublished(T0 + timedelta(seconds=1), 10)] == [
        batch[1]
    ]


async def test_a_lost_broker_store_takes_the_mark_back_from_what_is_unfinished(
    submissions: Submissions, store: Store
) -> None:
    done, lost, late, fresh, never = some(5)
    await add(submissions, done, lost, late, fresh, never)
    await submissions.publish_to("old")
    await submissions.mark_published([done.fusion_id, lost.fusion_id], T0, "old")
    await finish(store, make_outcome(done))

    assert await submissions.publish_to("old") == 0
    assert await submissions.publish_to("new") == 1
    await submissions.mark_published([fresh.fusion_id], T0, "new")
    # Of a replica that has not noticed yet.
    await submissions.mark_published([late.fusion_id], T0, "old")
    assert await submissions.publish_to("new") == 0

    found = await submissions.find_unpublished(T0 + timedelta(hours=1), 10)
    assert {p.custom_id for p, _ in found} == {lost.custom_id, late.custom_id, never.custom_id}


async def test_messages_that_are_lost_take_the_mark_back_from_what_nobody_works_on(
    submissions: Submissions, store: Store
) -> None:
    lost, fresh, ended, held, never = batch = some(5)
    await add(submissions, *batch)
    await submissions.publish_to("s1")
    early = [prompt.fusion_id for prompt in (lost, ended, held)]
    await submissions.mark_published(early, T0, "s1")
    await submissions.mark_published([fresh.fusion_id], T0 + timedelta(seconds=5), "s1")
    async with store.write() as connection:
        is_ended = fusions.c.fusion_id == ended.fusion_id
        await connection.execute(fusions.update().where(is_ended).values(is_done=True))
        # The judge has a round of it to publish.
        is_held = fusions.c.fusion_id == held.fusion_id
        await connection.execute(fusions.update().where(is_held).values(unpublished_since=T0))

    assert await submissions.forget_stalled(T0 + timedelta(seconds=5)) == 1

    found = await submissions.find_unpublished(T0 + timedelta(hours=1), 10)
    assert {prompt.custom_id for prompt, _ in found} == {lost.custom_id, never.custom_id}


async def finish(store: Store, outcome: Outcome) -> None:
    row = {
        c.name: getattr(outcome, c.name)
        for c in outcomes.columns
        if hasattr(outcome, c.name) and c.name not in {"degraded_reasons", "tool_calls"}
    }
    row |= {
        "degraded_reasons": "[]",
        "prompt_hash": "",
        "n_asked": 0,
        "n_answered": 0,
        "tokens_in": 0,
        "tokens_out": 0,
    }
    async with store.write() as connection:
        await connection.execute(outcomes.insert().values(**row, body=outcome.model_dump_json()))


# -- the read side ----------------------------------------------------------------------------


async def test_where_fusions_stand(submissions: Submissions, store: Store) -> None:
    running, done, foreign = (
        make_prompt(custom_id="r"),
        make_prompt(custom_id="d"),
        make_prompt(tenant="acme"),
    )
    await add(submissions, running, done, foreign)
    await finish(store, make_outcome(done))

    found = await standings(
        store, "default", [running.fusion_id, done.fusion_id, foreign.fusion_id, "fnone", "f\x00"]
    )

    by_id = {s.fusion_id: s for s in found}
    assert set(by_id) == {running.fusion_id, done.fusion_id}
    assert by_id[running.fusion_id].outcome is None
    assert by_id[running.fusion_id].submitted_at == T0
    assert by_id[done.fusion_id].outcome == make_outcome(done)


async def speak(store: Store, candidate: Candidate) -> None:
    row = {
        name: getattr(candidate, name) for name in ("fusion_id", "round", "call", "model", "tier")
    }
    row |= {
        "is_late": False,
        "after_rounds": 0,
        "received_at": T0,
        "body": candidate.model_dump_json(),
    }
    async with store.write() as connection:
        await connection.execute(candidates.insert().values(**row))


async def test_answers_are_shown_with_what_the_members_said_and_called(
    submissions: Submissions, store: Store
) -> None:
    prompt = make_prompt()
    call = ToolCall(id="c1", name="weather", arguments='{"city":"Köln"}')
    await add(submissions, prompt)
    await speak(store, make_candidate("In words.", call="a", prompt=prompt))
    await speak(store, make_candidate(None, call="b", prompt=prompt, tool_calls=(call,)))
    answers = tuple(
        Answer(member=name, model=f"m-{name}", tier="remote", status=status, round=round_)
        for name, status, round_ in (("a", "ok", 0), ("b", "ok", 0), ("c", "missing", None))
    )
    await finish(store, make_outcome(prompt, answers=answers))

    (plain,) = await standings(store, "default", [prompt.fusion_id], texts=False)
    (whole,) = await standings(store, "default", [prompt.fusion_id])

    assert plain.outcome is not None
    assert plain.outcome.answers == answers
    assert whole.outcome is not None
    assert [(a.content, a.tool_calls) for a in whole.outcome.answers] == [
        ("In words.", ()),
        (None, (call,)),
        (None, ()),
    ]
    shown_answers: Any = as_reply(whole)["answers"]
    assert shown_answers[1]["tool_calls"] == [
        {"id": "c1", "name": "weather", "arguments": '{"city":"Köln"}'}
    ]


async def test_a_request_finds_the_newest_fusion_of_its_hash_and_tenant(
    submissions: Submissions,
) -> None:
    first, second, foreign = (
        make_prompt(custom_id="first"),
        make_prompt(
            custom_id="second",
            submitted_at=T0 + timedelta(minutes=1),
            deadline_at=T0 + timedelta(minutes=9),
        ),
        make_prompt(custom_id="foreign", tenant="other", submitted_at=T0 + timedelta(minutes=2)),
    )
    origin = RequestIdentity("same", "here")
    await submissions.add([first, second, foreign], [None] * 3, [origin] * 3)
    await submissions.add(
        [make_prompt(custom_id="plain", submitted_at=T0 + timedelta(minutes=3))], [None]
    )
    soon, late = T0 + timedelta(minutes=2), T0 + timedelta(days=9)

    twin = EarlierRequest(second.fusion_id, "here", None, is_undecided=True)
    assert await submissions.newest("default", "same", T0 - timedelta(minutes=1), late) == twin
    assert await submissions.newest("default", "same", late, soon) == twin, (
        "its deadline is not over"
    )
    assert await submissions.newest("default", "same", late, late) is None
    assert await submissions.newest("default", "another", T0 - timedelta(minutes=1), soon) is None

    await submissions.leave(second.fusion_id, soon)
    left = await submissions.newest("default", "same", T0, soon)
    assert left == EarlierRequest(second.fusion_id, "here", soon, is_undecided=True)
    await submissions.hold(second.fusion_id, "there")
    held = await submissions.newest("default", "same", T0, soon)
    assert held == EarlierRequest(second.fusion_id, "there", None, is_undecided=True)


async def test_only_the_tenant_s_own_and_undecided_are_cancelled(
    submissions: Submissions, store: Store
) -> None:
    running, done = make_prompt(custom_id="running"), make_prompt(custom_id="done")
    foreign = make_prompt(custom_id="foreign", tenant="other")
    await add(submissions, running, done, foreign)
    await finish(store, make_outcome(done))
    keys = [p.fusion_id for p in (running, done, foreign)]

    marked = await submissions.cancel("default", [*keys, "unknown", "nul\x00"], T0)
    again = await submissions.cancel("default", keys, T0 + timedelta(hours=1))

    assert marked == again == [running.fusion_id]
    # The first mark counts, so that the sweep knows how long the judge has had.
    assert await submissions.find_cancelled(T0 + timedelta(seconds=1), 10) == [running.fusion_id]
    assert await submissions.find_cancelled(T0, 10) == []
    # The other two wait to be published; what is cancelled never is.
    waiting = await submissions.find_unpublished(T0 + timedelta(hours=1), 10)
    assert {prompt.fusion_id for prompt, _ in waiting} == {done.fusion_id, foreign.fusion_id}


async def test_a_database_that_is_down_is_transient() -> None:
    store = Store(Database(url="postgresql+asyncpg://nobody@127.0.0.1:1/none"))

    with pytest.raises(Transient):
        await add(Submissions(store), make_prompt())
    await store.close()
