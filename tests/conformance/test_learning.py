"""What the judge learns is read from stored outcomes alike, on both databases."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import Connection, update

from fusewire.store.engine import Store
from fusewire.store.tables import verdicts
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_judge.learning.statistics import StoredCheck, StoredHistory, learn_statistics
from fusewire_judge.repository.history import (
    control_picks,
    newest_answers,
    newest_checks,
    newest_verdicts,
)

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
MEMBERS = (
    MemberTruth("weak", strength=-1.5, accuracy=0.4, family="f1"),
    MemberTruth("good", strength=1.0, accuracy=0.85, family="f2"),
    MemberTruth("fair", strength=0.0, accuracy=0.6, family="f3"),
)
TRUTH = Truth(NOW, {"default": PoolTruth(MEMBERS, JudgeTruth(family="f4"))}, open_share=0.5)


async def test_verdicts_and_votes_show_who_is_right_more_often(store: Store) -> None:
    await fill(store, TRUTH, 600, seed=1)

    data = await store.run(
        lambda connection: StoredHistory(
            newest_answers(connection, ["default"], 1000),
            newest_verdicts(connection, ["default"], 1000),
            control_picks(connection, NOW),
        ),
        write=False,
    )
    statistics = learn_statistics(data)

    for kind in ("open", "number"):
        weights = statistics.weights["default", kind]
        assert weights["good"] > weights["fair"] > weights["weak"], kind


async def test_only_verdicts_on_open_answers_of_the_newest_outcomes_are_read(store: Store) -> None:
    await fill(store, TRUTH, 200, seed=1)

    few, all_, none = await store.run(
        lambda connection: [
            newest_verdicts(connection, pools, limit)
            for pools, limit in ((["default"], 20), (["default"], 1000), (["other"], 1000))
        ],
        write=False,
    )

    assert 0 < len(few) <= 2 * 20 < len(all_)
    assert none == []
    assert {verdict.kind for verdict in all_} == {"open"}
    assert {verdict.judge_model for verdict in all_} == {"judge"}
    assert all(verdict.winner in verdict.shown for verdict in all_)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "guard"},
        {"kind": "check"},
        {"is_by_margin": True},
        {"void": "no_answer"},
        {"winner": None},
    ],
    ids=lambda values: next(iter(values)),
)
async def test_verdicts_that_say_nothing_of_members_teach_nothing(
    store: Store, values: dict[str, object]
) -> None:
    await fill(store, TRUTH, 60, seed=1)

    def change(connection: Connection) -> None:
        connection.execute(update(verdicts).values(values))

    before = await store.run(lambda c: newest_verdicts(c, ["default"], 1000), write=False)
    await store.run(change, write=True)
    after = await store.run(lambda c: newest_verdicts(c, ["default"], 1000), write=False)

    assert before
    assert after == []


async def test_checks_that_count_are_read(store: Store) -> None:
    await fill(store, TRUTH, 60, seed=1)
    check = {"kind": "check", "shown": '["good"]', "void": None, "control": None}
    is_first = verdicts.c.call == "verdict-1-1"

    def change(connection: Connection) -> None:
        connection.execute(update(verdicts).values(**check, winner="good").where(is_first))
        connection.execute(update(verdicts).values(**check, winner=None).where(~is_first))

    def read(connection: Connection) -> list[StoredCheck]:
        return newest_checks(connection, ["default", "other"], 1000)

    before = await store.run(read, write=False)
    await store.run(change, write=True)
    after = await store.run(read, write=False)
    await store.run(lambda c: c.execute(update(verdicts).values(void="no_answer")), write=True)
    void = await store.run(read, write=False)
    await store.run(
        lambda c: c.execute(update(verdicts).values(void=None, control="null")), write=True
    )
    controls = await store.run(read, write=False)

    assert (before, void, controls) == ([], [], [])
    assert {(c.pool, c.member, c.judge_model != "") for c in after} == {("default", "good", True)}
    assert 0 < sum(c.is_pass for c in after) < len(after)
    assert {c.kind for c in after} >= {"open"}
