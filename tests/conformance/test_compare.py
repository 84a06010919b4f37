"""`fusewire compare` on stored outcomes whose truth is planted, on both databases."""

import json
import random
import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fusewire.analysis.compare import Comparison, Names, Rules
from fusewire.settings import Database
from fusewire.store.analyst import Analyst, comparisons
from fusewire.store.analyst.comparisons import Kind, Reading, Selection
from fusewire.store.engine import Store
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_cli.compare import command

OUTCOMES_THAT_TELL = """
SELECT COUNT(*) FROM (
  SELECT outcome_id FROM v_pair
  WHERE model_a IN ('alpha', 'beta') AND model_b IN ('alpha', 'beta')
    AND (is_consistent IS NOT NULL OR is_by_margin)
  GROUP BY outcome_id
  HAVING SUM(CASE WHEN is_consistent OR is_by_margin THEN 1 ELSE 0 END) > 0
    OR COUNT(DISTINCT CASE WHEN verdict = 'A' THEN model_a ELSE model_b END) = 2
) outcomes
"""
NOW = datetime(2026, 11, 28, tzinfo=UTC)
GAMMA = MemberTruth("gamma", strength=-0.5, accuracy=0.5)


def truth(*members: MemberTruth, judge: JudgeTruth | None = None, **rest: float) -> Truth:
    pools = {"default": PoolTruth((*members, GAMMA), judge or JudgeTruth())}
    return Truth(NOW, pools, days=28, **rest)  # type: ignore[arg-type]


async def compare(
    database: Database, selection: Selection | None = None, *names: str, margin: float = 3.0
) -> Comparison:
    a, b = names or ("alpha", "beta")
    return await command.compare(database, a, b, selection or Selection(), Rules(margin))


async def test_a_better_model_is_shipped(store: Store, database: Database) -> None:
    planted = truth(
        MemberTruth("alpha", accuracy=0.72),
        MemberTruth("beta", accuracy=0.80, failure_rate=0.01),
        gold_share=1.0,
        correlation=0.8,
    )
    await fill(store, planted, 2000, 1)

    comparison = await compare(database)

    header = comparison.header
    assert (comparison.n, header.decision, header.quality_source) == (2000, "SHIP B", "labels")
    assert header.quality.interval is not None
    # A failure is wrong: 0.99 · 80 is 79.2.
    assert header.quality.interval.low < 7.2 < header.quality.interval.high
    cards = {card.name: card for card in comparison.cards}
    assert cards["Builder"].step == "skip"
    assert cards["Builder"].b == pytest.approx(99, abs=0.7)
    assert cards["Founder"].evidence is not None


async def test_a_cheaper_model_that_is_as_good_is_shipped(store: Store, database: Database) -> None:
    planted = truth(
        MemberTruth("alpha", cost_usd=0.003),
        MemberTruth("beta", cost_usd=0.0021),
        gold_share=1.0,
        correlation=0.95,
    )
    await fill(store, planted, 2000, 2)

    comparison = await compare(database)

    assert (comparison.header.decision, comparison.header.reasons_b) == ("SHIP B", ("cheaper",))
    assert (
        comparison.best_for_b == ("cheaper by 30 %",)
        or "cheaper by 30 %" in (comparison.best_for_b[0])
    )
    assert not comparison.is_skip
    back = await compare(database, None, "beta", "alpha")
    assert (back.header.decision, back.is_skip) == ("SHIP A", True)


async def test_the_judge_decides_where_there_are_no_labels(
    store: Store, database: Database
) -> None:
    planted = truth(
        MemberTruth("alpha"),
        MemberTruth("beta", strength=1.2),
        judge=JudgeTruth(position_bias=0.3),
        gold_share=0.0,
        open_share=1.0,
    )
    await fill(store, planted, 1000, 3)

    comparison = await compare(database)

    header = comparison.header
    assert (header.decision, header.quality_source) == ("SHIP B", "judge")
    assert comparison.judges == ("judge",)
    creator = comparison.cards[4]
    assert creator.b is not None
    assert creator.step == "ship"
    # The views count comparisons, of which an outcome may have two; here an outcome counts once.
    async with store.read() as connection:
        n = (await connection.execute(text(OUTCOMES_THAT_TELL))).scalar_one()
        rate = (
            await connection.execute(
                text(
                    "SELECT (SUM(wins) + 0.5 * SUM(ties)) / SUM(n) FROM v_win_matrix"
                    " WHERE model = 'beta' AND opponent = 'alpha'"
                )
            )
        ).scalar_one()
    assert (header.quality.n, creator.n) == (n, n)
    assert creator.b == pytest.approx(100 * float(rate), abs=1)
    flips = comparison.cards[1].details[0]
    assert "contradicted itself" in flips
    assert "0.0 %" not in flips


async def test_pools_are_compared_by_labels(store: Store, database: Database) -> None:
    weak = PoolTruth((MemberTruth("alpha", accuracy=0.6), GAMMA), JudgeTruth())
    strong = PoolTruth((MemberTruth("delta", accuracy=0.9, cost_usd=None), GAMMA), JudgeTruth())
    planted = Truth(NOW, {"weak": weak, "strong": strong}, days=28, gold_share=1.0)
    await fill(store, planted, 600, 4)

    comparison = await compare(database, None, "weak", "strong")

    assert (comparison.names.kind, comparison.n) == ("pools", 600)
    assert comparison.header.decision == "SHIP B"
    assert comparison.header.cost.interval is None, "delta has no price"
    assert comparison.price_b.n_unpriced == comparison.price_b.n
    cards = {card.name: card.step for card in comparison.cards}
    assert (cards["Founder"], cards["Creator"]) == ("–", "–")


async def test_pools_without_labels_are_compared_by_cost_alone(
    store: Store, database: Database
) -> None:
    pools = {
        "dear": PoolTruth((MemberTruth("alpha", cost_usd=0.01), GAMMA), JudgeTruth()),
        "cheap": PoolTruth((MemberTruth("beta", cost_usd=0.001), GAMMA), JudgeTruth()),
    }
    await fill(store, Truth(NOW, pools, days=28, gold_share=0.0), 300, 5)

    comparison = await compare(database, None, "dear", "cheap")

    assert (comparison.header.decision, comparison.header.quality_source) == ("TOO CLOSE", None)
    assert "cheaper" in comparison.header.reasons_b
    assert any("only with gold labels" in sentence for sentence in comparison.notes)


async def test_votes_are_counted_apart(store: Store, database: Database) -> None:
    await fill(store, truth(MemberTruth("alpha"), MemberTruth("beta", strength=1.0)), 400, 6)
    rng = random.Random(6)
    async with store.write() as connection:
        rows = (await connection.execute(text("SELECT outcome_id FROM v_outcome"))).all()
        for number, (outcome_id,) in enumerate(rows[:60]):
            choice = "beta" if number < 45 else rng.choice(["alpha", "tie", "gamma"])
            await connection.execute(
                text(
                    "INSERT INTO votes (fusion_id, voter_hash, choice, created_at, changed_at)"
                    " VALUES (:id, 'v', :choice, :at, :at)"
                ),
                {"id": outcome_id, "choice": choice, "at": _stamp(store)},
            )

    votes = (await compare(database)).votes

    assert (votes.n, votes.for_b) == (60, 45)
    assert votes.for_a + votes.ties + votes.other == 15
    assert votes.n_both <= 60


def _stamp(store: Store) -> object:
    return NOW.strftime("%Y-%m-%d %H:%M:%S.%f") if store.is_sqlite else NOW


async def test_a_selection_narrows_what_is_compared(store: Store, database: Database) -> None:
    members = (MemberTruth("alpha"), MemberTruth("beta"), GAMMA)
    pools = {"default": PoolTruth(members, JudgeTruth()), "other": PoolTruth(members)}
    await fill(store, Truth(NOW, pools, days=28), 400, 7)

    everything = await compare(database)
    one_pool = await compare(database, Selection(pool="other"))
    week = await compare(database, Selection(since=NOW - timedelta(days=7)))
    no_judge = await compare(database, Selection(judge="nobody", pool="default"))

    assert (everything.n, one_pool.n) == (400, 400)
    assert week.n in {99, 100}
    assert everything.judges == ("judge",)
    assert one_pool.judges == no_judge.judges == ()


async def test_what_cannot_be_compared_is_said(
    store: Store, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    both = MemberTruth("both")
    pools = {
        "default": PoolTruth((MemberTruth("alpha"), MemberTruth("beta"), both), JudgeTruth()),
        "both": PoolTruth((MemberTruth("delta"), both), JudgeTruth()),
    }
    await fill(store, Truth(NOW, pools, days=28), 60, 8)
    # Of a name that a model and a pool have, the other one decides.
    assert (await compare(database, Selection(), "both", "alpha")).names.kind == "models"
    for names, selection, message in (
        (("alpha", "nobody"), Selection(), "no outcome has nobody"),
        (("alpha", "alpha"), Selection(), "compared with itself"),
        (("alpha", "default"), Selection(), "a model and a pool"),
        (("alpha", "beta"), Selection("pools"), "no outcome has alpha or beta"),
        (("alpha", "delta"), Selection(), "no prompt has outcomes of both"),
    ):
        with pytest.raises(SystemExit) as caught:
            await compare(database, selection, *names)

        printed = capsys.readouterr().err
        assert caught.value.code == 2
        assert message in printed
        assert "to mend it" in printed


async def test_names_of_models_and_pools_have_to_be_told_apart(
    store: Store, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    members = (MemberTruth("x"), MemberTruth("y"))
    pools = {"x": PoolTruth(members, JudgeTruth()), "y": PoolTruth(members, JudgeTruth())}
    await fill(store, Truth(NOW, pools, days=28), 40, 9)

    with pytest.raises(SystemExit):
        await compare(database, None, "x", "y")

    assert "add --models or --pools" in capsys.readouterr().err
    assert (await compare(database, Selection("models"), "x", "y")).names.kind == "models"
    assert (await compare(database, Selection("pools"), "x", "y")).names.kind == "pools"


def test_the_command_prints_writes_and_fails_as_told(
    sqlite_database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import asyncio

    from typer.testing import CliRunner

    from fusewire.settings import Settings
    from fusewire_cli.main import app

    async def prepare() -> None:
        store = Store(sqlite_database)
        planted = truth(
            MemberTruth("alpha", accuracy=0.9), MemberTruth("beta", accuracy=0.6), gold_share=1.0
        )
        await fill(store, planted, 400, 10)
        await store.close()

    asyncio.run(prepare())
    monkeypatch.setattr(command, "settings", lambda: Settings(database=sqlite_database))
    page = tmp_path / "page.html"
    run = CliRunner().invoke

    shown = run(app, ["compare", "alpha", "beta", "--html", str(page)])
    failed = run(app, ["compare", "alpha", "beta", "--json", "--fail-if", "skip"])
    kept = run(app, ["compare", "beta", "alpha", "--fail-if", "skip"])
    wrong = run(app, ["compare", "alpha", "beta", "--fail-if", "ship"])
    unwritten = run(app, ["compare", "alpha", "beta", "--html", str(tmp_path / "no" / "page")])

    assert shown.exit_code == 0
    assert "SHIP A: alpha" in shown.stdout
    assert "SHIP A: alpha" in page.read_text(encoding="utf-8")
    assert failed.exit_code == 3
    assert json.loads(failed.stdout)["header"]["decision"] == "SHIP A"
    assert (kept.exit_code, wrong.exit_code, unwritten.exit_code) == (0, 2, 2)
    assert "write --fail-if skip" in wrong.stderr
    assert "name another file" in unwritten.stderr


async def bounded(analyst: Analyst, kind: Kind, most: int, **selection: str) -> Reading:
    names = Names(kind, *(("alpha", "beta") if kind == "models" else ("one", "two")))
    return await comparisons.read(
        analyst.fetch, names, Selection(kind, selection.get("pool")), most
    )


@pytest.fixture
async def two_pools(store: Store, database: Database) -> AsyncIterator[Analyst]:
    members = (MemberTruth("alpha"), MemberTruth("beta"), GAMMA)
    pools = {
        "one": PoolTruth(members, JudgeTruth()),
        "two": PoolTruth(members[:2], JudgeTruth()),
        "other": PoolTruth((members[0], GAMMA), JudgeTruth()),
    }
    await fill(store, Truth(NOW, pools, days=28, gold_share=0.5), 100, 5)
    async with Analyst(database, trusted=True) as analyst:
        yield analyst


@pytest.mark.parametrize(("kind", "n"), [("models", 200), ("pools", 100)])
async def test_a_bound_that_is_not_reached_changes_nothing(
    two_pools: Analyst, kind: Kind, n: int
) -> None:
    names = Names(kind, *(("alpha", "beta") if kind == "models" else ("one", "two")))
    whole = await comparisons.read(two_pools.fetch, names, Selection(kind))
    assert len(whole.pairs) == n
    assert await bounded(two_pools, kind, n) == whole
    assert not whole.is_cut


@pytest.mark.parametrize("kind", ["models", "pools"])
async def test_the_newest_pairs_are_read_up_to_a_bound(two_pools: Analyst, kind: Kind) -> None:
    names = Names(kind, *(("alpha", "beta") if kind == "models" else ("one", "two")))
    whole = await comparisons.read(two_pools.fetch, names, Selection(kind))
    newest = await bounded(two_pools, kind, 40)
    assert newest.is_cut
    # A prompt's two outcomes are not equally old, so that the oldest may be without the other.
    assert 38 <= len(newest.pairs) <= 40
    assert newest.pairs == whole.pairs[-len(newest.pairs) :]
    one = await bounded(two_pools, "models", 40, pool="one")
    assert len(one.pairs) == 40
    assert (await bounded(two_pools, "models", 40, pool="other")).pairs == []


async def test_a_bounded_comparison_reads_no_table_whole(
    sqlite_database: Database,
) -> None:
    store = Store(sqlite_database)
    await fill(store, truth(MemberTruth("alpha"), MemberTruth("beta")), 60, 6)
    await store.close()
    steps: list[str] = []
    async with Analyst(sqlite_database) as analyst:

        async def fetch(sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
            rows = await analyst.fetch(f"EXPLAIN QUERY PLAN {sql}", values)
            steps.extend(row["detail"] for row in rows)
            return await analyst.fetch(sql, values)

        for names in (Names("models", "alpha", "beta"), Names("pools", "default", "other")):
            await comparisons.read(fetch, names, Selection(names.kind), 20)
    assert len(steps) > 20
    whole = [step for step in steps if re.match(r"SCAN [oatvwl]\b(?! VIRTUAL)|MATERIALIZE", step)]
    # Of `v_model`, which has a row for each model of a pool.
    assert whole == ["SCAN t"]
