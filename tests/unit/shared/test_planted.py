"""What is planted is there to be found."""

import json
import math
import statistics
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fusewire.testing.planted import (
    COLUMNS,
    JudgeTruth,
    MemberTruth,
    PoolTruth,
    Truth,
    planted_rows,
)

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
COUNT = 3000
Row = dict[str, Any]


def planted(truth: Truth, count: int = COUNT, seed: int = 1) -> dict[str, list[Row]]:
    """All rows by table, by column."""
    tables: dict[str, list[Row]] = {table: [] for table in COLUMNS}
    for rows in planted_rows(truth, count, seed):
        for table, names in COLUMNS.items():
            tables[table] += [dict(zip(names.split(), row, strict=True)) for row in rows[table]]
    return tables


def truth(*members: MemberTruth, judge: JudgeTruth | None = None, **fields: Any) -> Truth:
    return Truth(NOW, {"default": PoolTruth(members, judge)}, **fields)


def log_odds(wins: int, losses: int) -> float:
    return math.log(wins / losses)


def verdicts_for(tables: dict[str, list[Row]], model: str) -> tuple[int, int]:
    wins = sum(row["winner"] == model for row in tables["verdicts"])
    return wins, len(tables["verdicts"]) - wins


A, B, C = MemberTruth("a"), MemberTruth("b"), MemberTruth("c")


def test_equal_seeds_make_equal_rows() -> None:
    several = truth(A, B, judge=JudgeTruth())
    first = list(planted_rows(several, 2500, 1))

    assert first == list(planted_rows(several, 2500, 1))
    assert first != list(planted_rows(several, 2500, 2))
    assert [len(rows["outcomes"]) for rows in first] == [1000, 1000, 500]


def test_strength_is_the_log_odds_of_being_preferred() -> None:
    strong = MemberTruth("a", strength=1.0)
    tables = planted(truth(strong, B, judge=JudgeTruth(), open_share=1.0))

    assert log_odds(*verdicts_for(tables, "a")) == pytest.approx(1.0, abs=0.15)
    assert all(row["is_consistent"] for row in tables["verdicts"])


def test_strength_drifts_by_the_day() -> None:
    drifting = MemberTruth("a", strength=-1.0, drift_per_day=0.2)
    tables = planted(truth(drifting, B, judge=JudgeTruth(), open_share=1.0, days=10))
    halves = tables["verdicts"][: len(tables["verdicts"]) // 2], tables["verdicts"]
    early, whole = (sum(row["winner"] == "a" for row in half) / len(half) for half in halves)

    assert early == pytest.approx(0.38, abs=0.04)
    assert whole == pytest.approx(0.5, abs=0.04)


def test_position_bias_favours_the_first_and_makes_flips() -> None:
    tables = planted(truth(A, B, judge=JudgeTruth(position_bias=0.8), open_share=1.0))
    firsts = sum(row["winner_position"] == 1 for row in tables["verdicts"])

    assert log_odds(firsts, len(tables["verdicts"]) - firsts) == pytest.approx(0.8, abs=0.1)
    flips = [row for row in tables["verdicts"] if not row["is_consistent"]]
    assert flips
    assert {row["winner_position"] for row in flips} == {1}


def test_a_judge_that_thinks_anew_flips_without_a_bias() -> None:
    tables = planted(truth(A, B, judge=JudgeTruth(repeatability=0.6), open_share=1.0))
    flips = sum(not row["is_consistent"] for row in tables["verdicts"])

    assert flips / len(tables["verdicts"]) == pytest.approx(0.2, abs=0.03)


def test_length_bias_is_by_doubling() -> None:
    long = MemberTruth("a", chars=800, chars_spread=0.0)
    short = MemberTruth("b", chars=400, chars_spread=0.0)
    tables = planted(truth(long, short, judge=JudgeTruth(length_bias=0.7), open_share=1.0))

    assert log_odds(*verdicts_for(tables, "a")) == pytest.approx(0.7, abs=0.15)
    assert {row["longest_position"] for row in tables["verdicts"]} == {1, 2}


def test_a_judge_may_prefer_its_family() -> None:
    kin = MemberTruth("a", family="judges")
    tables = planted(truth(kin, B, judge=JudgeTruth(family_bias=0.7), open_share=1.0))

    assert log_odds(*verdicts_for(tables, "a")) == pytest.approx(0.7, abs=0.15)
    assert {row["n_own_family"] for row in tables["verdicts"]} == {1}


def test_insight_prefers_right_answers() -> None:
    def accepted_share(insight: float) -> float:
        judge = JudgeTruth(insight=insight)
        tables = planted(truth(A, B, judge=judge, open_share=1.0, gold_share=1.0))
        return statistics.mean(float(row["accepted"]) for row in tables["outcomes"])

    assert accepted_share(0.0) == pytest.approx(0.7, abs=0.03)
    assert accepted_share(3.0) > 0.85


def test_members_are_as_they_were_planted() -> None:
    member = MemberTruth(
        "a", accuracy=0.3, failure_rate=0.1, cost_usd=0.02, latency_ms=500, latency_spread=0.5
    )
    tables = planted(truth(member, B, C, gold_share=0.4))
    rows = [row for row in tables["answers"] if row["member"] == "a"]
    answered = [row for row in rows if row["status"] == "ok"]
    latencies = [math.log(row["latency_ms"]) for row in answered]

    assert len(answered) / len(rows) == pytest.approx(0.9, abs=0.02)
    with_gold = [row["is_right"] for row in answered if row["is_right"] is not None]
    assert len(with_gold) / len(answered) == pytest.approx(0.4, abs=0.03)
    assert statistics.mean(with_gold) == pytest.approx(0.3, abs=0.04)
    assert {row["cost_usd"] for row in answered} == {0.02}
    assert statistics.mean(latencies) == pytest.approx(math.log(500), abs=0.05)
    assert statistics.stdev(latencies) == pytest.approx(0.5, abs=0.05)


def test_an_unknown_price_makes_the_outcomes_cost_unknown() -> None:
    tables = planted(truth(A, MemberTruth("b", cost_usd=None, failure_rate=0.5)), 200)
    costs = {row["fusion_id"]: row["cost_usd"] for row in tables["outcomes"]}
    for row in tables["answers"]:
        if row["member"] == "b":
            assert (costs[row["fusion_id"]] is None) == (row["status"] == "ok")


@pytest.mark.parametrize("judge", [None, JudgeTruth(position_bias=1.0)])
def test_a_useless_member_changes_no_outcome(judge: JudgeTruth | None) -> None:
    useless = MemberTruth("z", accuracy=1.0, is_useless=True)
    sometimes = [MemberTruth(name, accuracy=0.5, failure_rate=0.4) for name in "ab"]
    tables = planted(truth(*sometimes, useless, judge=judge, gold_share=1.0))
    rows = [row for row in tables["answers"] if row["member"] == "z"]

    assert any(row["status"] == "ok" for row in rows)
    assert not any(row["is_winner"] or row["is_right"] for row in rows)
    assert not verdicts_for(tables, "z")[0]


def test_difficulty_may_be_shared() -> None:
    good, poor = MemberTruth("a", accuracy=0.8), MemberTruth("b", accuracy=0.4)
    tables = planted(truth(good, poor, gold_share=1.0, correlation=1.0))
    right = {(row["fusion_id"], row["member"]): row["is_right"] for row in tables["answers"]}
    ids = [row["fusion_id"] for row in tables["outcomes"]]

    assert all(right[key, "a"] for key in ids if right[key, "b"])
    assert statistics.mean(right[key, "b"] for key in ids) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_errors_are_shared_as_often_as_planted(rate: float) -> None:
    wrong = [MemberTruth(name, accuracy=0.0) for name in "abc"]
    tables = planted(truth(*wrong, open_share=0.0, shared_error_rate=rate), 100)

    assert {row["agreement"] for row in tables["outcomes"]} == {1.0 if rate else 1 / 3}


def test_two_pools_have_the_same_prompts() -> None:
    pools = {"p": PoolTruth((A, B)), "q": PoolTruth((C,))}
    tables = planted(Truth(NOW, pools, tenants=("acme", "zoo")), 50)
    hashes = {
        pool: [row["prompt_hash"] for row in tables["outcomes"] if row["pool"] == pool]
        for pool in pools
    }

    assert hashes["p"] == hashes["q"]
    assert len(set(hashes["p"])) == 50
    assert len({row["fusion_id"] for row in tables["outcomes"]}) == 100
    assert {row["tenant"] for row in tables["prompts"]} == {"acme", "zoo"}


def test_prompts_are_spread_over_the_days() -> None:
    tables = planted(truth(A, days=2.0, batch_share=0.5, batch_size=1000, open_share=0.25))
    times = [row["submitted_at"] for row in tables["prompts"]]

    assert times == sorted(times)
    assert times[0] == NOW - timedelta(days=2)
    assert NOW - timedelta(minutes=12) < times[-1] < NOW - timedelta(minutes=10)
    batches = [row["batch_id"] for row in tables["prompts"] if row["batch_id"]]
    assert len(set(batches)) == 3
    assert len(batches) / COUNT == pytest.approx(0.5, abs=0.03)
    kinds = [row["answer_kind"] for row in tables["outcomes"]]
    assert kinds.count("open") / COUNT == pytest.approx(0.25, abs=0.03)


def test_bodies_are_json() -> None:
    tables = planted(truth(A, B, C, judge=JudgeTruth(position_bias=2.0)), 50)
    bodies = [(table, row) for table, rows in tables.items() for row in rows]
    found = {table: json.loads(row.get("body") or row.get("plan") or "{}") for table, row in bodies}
    assert all(
        found[table]["fusion_id"]
        for table in ("prompts", "fusions", "rounds", "candidates", "outcomes")
    )


@pytest.mark.parametrize(
    ("members", "judge"),
    [
        ((), None),
        ((A, A), None),
        ((A, B), JudgeTruth("b")),
        ((MemberTruth("z", is_useless=True), A), None),
    ],
)
def test_a_pool_that_no_judge_would_have_is_refused(
    members: tuple[MemberTruth, ...], judge: JudgeTruth | None
) -> None:
    with pytest.raises(ValueError, match=r"1 to 26|of its own|has to be the last"):
        PoolTruth(members, judge)
