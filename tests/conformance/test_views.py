"""The views with a row for each pair and event, beside what stored outcomes say themselves."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import text

from fusewire.contracts import Outcome, Verdict
from fusewire.store.engine import Store
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill

MEMBERS = tuple(MemberTruth(name, failure_rate=0.1) for name in ("alpha", "beta", "gamma"))
TRUTH = Truth(
    now=datetime(2026, 11, 20, tzinfo=UTC),
    pools={"default": PoolTruth(MEMBERS, JudgeTruth(position_bias=1.0))},
    days=3,
)


@pytest.fixture
async def filled(store: Store) -> Store:
    await fill(store, TRUTH, 200, 11)
    return store


async def rows(store: Store, sql: str) -> list[dict[str, Any]]:
    async with store.read() as connection:
        return [dict(row) for row in (await connection.execute(text(sql))).mappings()]


async def outcomes(store: Store) -> list[Outcome]:
    return [Outcome.decode(row["body"]) for row in await rows(store, "SELECT body FROM outcomes")]


def pairs(outcome: Outcome) -> Iterator[tuple[Any, ...]]:
    """Outcome, call, first and second model, A or B, both lengths, and consistency."""
    models = {answer.member: answer.model for answer in outcome.answers}
    for verdict in outcome.verdicts:
        winner = verdict.winner
        if winner is None or verdict.void:
            continue
        for member in verdict.shown:
            if member != winner:
                first, second = sorted((member, winner), key=verdict.shown.index)
                yield (
                    outcome.fusion_id,
                    verdict.call,
                    models[first],
                    models[second],
                    "A" if first == winner else "B",
                    chars(verdict, first),
                    chars(verdict, second),
                    verdict.is_consistent,
                )


def chars(verdict: Verdict, member: str) -> int:
    return verdict.chars[verdict.shown.index(member)]


async def test_each_pair_that_a_verdict_compares_is_a_row(filled: Store) -> None:
    expected = [pair for outcome in await outcomes(filled) for pair in pairs(outcome)]
    found = await rows(filled, "SELECT * FROM v_pair")

    assert len(expected) > 200
    assert {pair[4] for pair in expected} == {"A", "B"}
    assert sorted(map(str, expected)) == sorted(str(_pair(row)) for row in found)


def _pair(row: dict[str, Any]) -> tuple[Any, ...]:
    named = (row[key] for key in ("outcome_id", "call", "model_a", "model_b", "verdict"))
    consistent = row["is_consistent"]
    # SQLite has no booleans.
    return (
        *named,
        row["len_a"],
        row["len_b"],
        None if consistent is None else bool(consistent),
    )


async def test_consistent_orders_win_and_inconsistent_ones_tie(filled: Store) -> None:
    """What a judge says in two orders counts once in the matrix."""
    wins: dict[tuple[str, str], list[int]] = {}
    for outcome in await outcomes(filled):
        swapped = {v.call: v for v in outcome.verdicts if v.is_consistent is not None}
        for call, first in swapped.items():
            if not call.endswith("-1"):
                continue
            second = swapped[call.removesuffix("-1") + "-2"]
            losers = set(first.shown) - {first.winner} if first.is_consistent else {second.winner}
            for loser in losers:
                count = wins.setdefault((str(first.winner), str(loser)), [0, 0])
                count[0 if first.is_consistent else 1] += 1

    matrix = await rows(filled, "SELECT * FROM v_win_matrix")
    assert any(row["ties"] for row in matrix)
    for row in matrix:
        won, tied = wins.get((row["model"], row["opponent"]), [0, 0])
        lost, also_tied = wins.get((row["opponent"], row["model"]), [0, 0])
        assert (row["n"], row["wins"], row["ties"]) == (
            won + lost + tied + also_tied,
            won,
            tied + also_tied,
        )
        assert row["win_rate"] == pytest.approx((won + (tied + also_tied) / 2) / row["n"])


async def test_what_happened_to_a_prompt_is_told_in_order(filled: Store) -> None:
    judged = next(outcome for outcome in await outcomes(filled) if outcome.verdicts)

    events = await rows(
        filled,
        f"SELECT * FROM v_event WHERE outcome_id = '{judged.fusion_id}' ORDER BY at, event",
    )

    steps = [event["event"] for event in events]
    assert steps[0] == "accepted"
    assert steps[-1] == "decided"
    assert events[-1]["detail"] == judged.status
    assert steps.count("asked") == judged.rounds
    called = {event["call"] for event in events if event["event"] in ("answered", "failed")}
    assert {answer.call for answer in judged.answers if answer.call} <= called
    assert {verdict.call for verdict in judged.verdicts} <= called


async def test_an_event_is_found_by_its_outcome_alone(filled: Store) -> None:
    """A union of seven tables is searched in each of them, and none is read whole."""
    if not filled.is_sqlite:
        return
    plan = await rows(filled, "EXPLAIN QUERY PLAN SELECT * FROM v_event WHERE outcome_id = 'x'")
    steps = [row["detail"] for row in plan]
    whole_reads = [step for step in steps if step.startswith("SCAN") and step != "SCAN e"]
    assert not whole_reads
    assert len(steps) > 7
