"""Reports on planted outcomes, on both databases: what is true of them comes back."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fusewire.analysis.ranking import count_pairs
from fusewire.analysis.reports.cost import CostKey, cost_report
from fusewire.analysis.reports.drift import DriftFigure, PoolDrift, drift_report
from fusewire.analysis.reports.judge import JudgeRow, judge_report
from fusewire.analysis.reports.leaderboard import (
    LeaderboardOptions,
    LeaderboardReport,
    leaderboard,
    parse_pair_groups,
)
from fusewire.analysis.reports.period import Period, parse_periods
from fusewire.analysis.reports.pool import pool_report
from fusewire.settings import Database
from fusewire.store.analyst import Analyst
from fusewire.store.engine import Store
from fusewire.store.sums import bucket_bounds
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_cli.main import app
from fusewire_cli.report import reading
from fusewire_cli.report.reading import ReportFilter

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
ALL = Period(None, NOW.date())
BOUNDS = bucket_bounds()


def truth(judge: JudgeTruth, *members: MemberTruth, **changes: Any) -> Truth:
    pools = {"p": PoolTruth(members, judge)}
    return Truth(**{"now": NOW, "pools": pools, "open_share": 1.0, "days": 20.0, **changes})


STRENGTHS = {"alpha": 0.7, "beta": 0.0, "gamma": -0.7}
MEMBERS = (
    MemberTruth("alpha", strength=0.7, accuracy=0.8, cost_usd=0.004, failure_rate=0.1),
    MemberTruth("beta", strength=0.0, accuracy=0.7, latency_ms=2000),
    MemberTruth("gamma", strength=-0.7, accuracy=0.5, cost_usd=0.0, tier="edge"),
)


async def ranking(analyst: Analyst, which: ReportFilter) -> LeaderboardReport:
    rows = await reading.read_leaderboard(analyst, which, None)
    assert which.period
    return leaderboard(rows, LeaderboardOptions(which.period, BOUNDS, seed=1, resamples=200))


async def test_planted_strengths_come_back(store: Store, database: Database) -> None:
    await fill(store, truth(JudgeTruth(), *MEMBERS), 800, 3)
    async with Analyst(database, trusted=True) as analyst:
        report = await ranking(analyst, ReportFilter(period=ALL))

    (pool,) = report.pools
    (board,) = pool.boards
    assert (pool.pool, board.judge, board.is_self_graded) == ("p", "judge", True)
    assert [row.model for row in board.ranks] == ["alpha", "beta", "gamma"]
    for row in board.ranks:
        assert row.strength
        # A little wider: in a test that always draws the same, 1 of 20 may lie outside.
        low, high = math.log(row.strength.low) - 0.05, math.log(row.strength.high) + 0.05
        assert low <= STRENGTHS[row.model] <= high
    assert board.cycles == ()
    models = {row.model: row for row in pool.models}
    assert models["alpha"].failure.low <= 0.1 <= models["alpha"].failure.high
    assert models["beta"].accuracy
    assert models["beta"].accuracy.low <= 0.7 <= models["beta"].accuracy.high
    assert models["beta"].p50_ms == pytest.approx(2000, rel=0.15)
    assert (models["gamma"].tier, models["gamma"].cost_usd) == ("edge", 0.0)


async def test_pairs_are_those_of_the_view(store: Store, database: Database) -> None:
    """Whose sums leave out whatever day it was; with flips there are ties."""
    await fill(store, truth(JudgeTruth(position_bias=0.8), *MEMBERS), 300, 4)
    async with Analyst(database, trusted=True) as analyst:
        rows = await reading.read_pairs(analyst, ReportFilter("p", "judge"))
        view = await analyst.fetch("SELECT * FROM v_win_matrix WHERE model < opponent")
        others = await reading.read_pairs(analyst, ReportFilter("p", "nobody"))
        middle = Period(NOW.date() - timedelta(days=9), NOW.date() - timedelta(days=5))
        parts = [
            await reading.read_pairs(analyst, ReportFilter(period=period))
            for period in (
                Period(None, NOW.date() - timedelta(days=10)),
                middle,
                Period(NOW.date() - timedelta(days=4), NOW.date()),
            )
        ]

    counts = {(it.model, it.opponent): it for it in count_pairs(parse_pair_groups(rows))}
    assert len(view) == len(counts) == 3
    for row in view:
        pair = counts[row["model"], row["opponent"]]
        assert (pair.n, pair.wins, pair.ties) == (row["n"], row["wins"], row["ties"])
        assert pair.ties > 0
    assert others == []
    assert all(parts)
    total = sum(row["n"] for row in rows)
    assert sum(row["n"] for part in parts for row in part) == total


async def judged(
    store: Store, database: Database, judge: JudgeTruth, *members: MemberTruth
) -> JudgeRow:
    await fill(store, truth(judge, *members), 900, 5)
    async with Analyst(database, trusted=True) as analyst:
        report = judge_report(await reading.read_judge(analyst, ReportFilter()))
    (row,) = report.judges
    assert report.pools[0].fallbacks.n == 900
    return row


EQUAL = tuple(
    MemberTruth(name, family=family)
    for name, family in (("alpha", "judges"), ("beta", "x"), ("gamma", "y"))
)


async def test_planted_biases_are_found(store: Store, database: Database) -> None:
    judge = JudgeTruth(position_bias=0.6, length_bias=0.8, family_bias=0.6)
    row = await judged(store, database, judge, *EQUAL)

    assert [row.place.finding, row.length.finding, row.family.finding] == ["bias"] * 3
    assert row.place.rate.low > (row.place.fair_rate or 1)
    assert row.family.fair_rate == pytest.approx(1 / 3, abs=0.02)
    assert row.length.fair_rate == pytest.approx(1 / 3, abs=0.02)
    assert row.flips.count > 0


async def test_where_no_bias_was_planted_none_is_seen(store: Store, database: Database) -> None:
    row = await judged(store, database, JudgeTruth(), *EQUAL)

    findings = [row.place.finding, row.length.finding, row.family.finding]
    assert findings == ["no bias seen"] * 3
    assert row.flips.count == 0
    assert row.votes is None
    assert row.labels
    assert 0 < row.labels.accepted.count <= row.labels.oracle.count
    assert row.labels.choice.n == row.labels.oracle.count


async def test_costs_are_those_of_the_outcomes(store: Store, database: Database) -> None:
    members = (*MEMBERS, MemberTruth("delta", cost_usd=None, failure_rate=0.5))
    await fill(store, truth(JudgeTruth(), *members, open_share=0.5), 300, 6)
    async with Analyst(database, trusted=True) as analyst:
        which = ReportFilter("p", period=ALL)
        rows = await reading.read_costs(analyst, which, CostKey.day)
        (sums,) = await analyst.fetch(
            "SELECT COUNT(*) AS n, COUNT(cost_usd) AS priced, SUM(cost_usd) AS usd FROM v_outcome"
        )
        by_tenant = await reading.read_costs(analyst, which, CostKey.tenant)
        other = await reading.read_costs(analyst, ReportFilter("q", period=ALL), CostKey.pool)
    report = cost_report(rows, ALL, CostKey.day)

    assert report.total
    assert report.total.outcomes == sums["n"] == 300
    assert report.total.unpriced == sums["n"] - sums["priced"] > 50
    assert report.total.usd == pytest.approx(sums["usd"])
    assert report.total.panel_usd
    assert report.total.judge_usd
    assert report.total.panel_usd + report.total.judge_usd == pytest.approx(sums["usd"])
    assert sum(row.outcomes for row in report.rows) == 300
    assert [row.key for row in report.rows] == sorted(row.key for row in report.rows)
    calls = {row.model: row for row in report.calls}
    assert calls["alpha"].usd == pytest.approx(0.004 * calls["alpha"].calls)
    assert (calls["delta"].usd, calls["delta"].unpriced) == (None, calls["delta"].calls)
    assert report.edge_usd == 0.0
    assert [row["key"] for row in by_tenant.groups] == ["default"]
    assert cost_report(other, ALL, CostKey.pool).total is None


def shares(drift: PoolDrift) -> dict[str, DriftFigure]:
    return {it.model or "": it for it in drift.figures if it.name == "win share"}


@pytest.mark.parametrize("drift_per_day", [0.0, -0.15])
async def test_planted_drift_is_found(
    store: Store, database: Database, drift_per_day: float
) -> None:
    members = (MemberTruth("alpha", strength=0.7, drift_per_day=drift_per_day), *MEMBERS[1:])
    await fill(store, truth(JudgeTruth(), *members), 900, 8)
    periods = parse_periods("5d", "15d", NOW)
    async with Analyst(database, trusted=True) as analyst:
        recent, earlier = [
            await reading.read_drift(analyst, ReportFilter(period=period)) for period in periods
        ]
    (pool,) = drift_report(recent, earlier, periods=periods, bounds=BOUNDS).pools

    figure = shares(pool)["alpha"]
    assert figure.finding == ("differs" if drift_per_day else "no difference seen")
    assert figure.recent.n + figure.earlier.n > 800
    assert pool.is_reconfigured is False
    assert sum(pool.recent_configs.values()) + sum(pool.earlier_configs.values()) == 900


async def test_what_a_pool_gives(store: Store, database: Database) -> None:
    """A judge that sees what is right lifts the pool above its best member."""
    await fill(store, truth(JudgeTruth(insight=3.0), *EQUAL), 900, 9)
    async with Analyst(database, trusted=True) as analyst:
        rows = await reading.read_pool(analyst, ReportFilter("p"))
        (view,) = await analyst.fetch("SELECT * FROM v_lift")
    (row,) = pool_report(rows).pools
    (lift,) = row.lifts

    assert (lift.n, lift.n_paired) == (view["n"], view["n"])
    assert lift.paired
    assert lift.paired.value == pytest.approx(view["lift"])
    assert lift.paired.low > 0
    assert lift.oracle.value == pytest.approx(view["oracle_score"])
    assert row.closed_by["complete"].n == row.outcomes == 900
    assert {it.model for it in row.ablations} == {"alpha", "beta", "gamma"}


# -- the command ------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `fusewire report` on the database. Returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSEWIRE_DATABASE__URL", database.url)

    def run_(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["report", *arguments])
        return result.exit_code, result.stdout, result.stderr

    return run_


REPORTS = ("leaderboard", "judge", "cost", "drift", "pool")


def test_without_outcomes_a_report_says_so(run: Run) -> None:
    for report in REPORTS:
        code, stdout, stderr = run(report)
        assert (code, stdout) == (0, "")
        assert "there are no " in stderr
        assert "to mend it: run prompts first" in stderr
        code, stdout, _ = run(report, "--json")
        assert code == 0
        assert isinstance(json.loads(stdout), dict)


async def _fill(database: Database, truth_: Truth) -> None:
    store = Store(database)
    await fill(store, truth_, 200, 1)
    await store.close()


def test_each_report_is_printed(run: Run, database: Database) -> None:
    import asyncio

    asyncio.run(_fill(database, Truth(now=datetime.now(UTC), days=20.0)))
    for report in REPORTS:
        code, stdout, stderr = run(report, "--pool", "default")
        assert (code, stderr) == (0, "")
        assert "default" in stdout or report == "cost"
        assert "\x1b" not in stdout
        code, stdout, _ = run(report, "--json")
        assert (code, len(stdout.splitlines())) == (0, 1)
        assert json.loads(stdout)
    code, stdout, stderr = run("leaderboard", "--pool", "nope")
    assert (code, stdout) == (0, "")
    assert "pools: default" in stderr
    code, stdout, _ = run("leaderboard", "--since", "3d", "--vs", "10d", "--json")
    assert json.loads(stdout)["earlier"]["last"] < json.loads(stdout)["period"]["first"]
    for group in CostKey:
        assert run("cost", "--by", group, "--since", "7d")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("leaderboard", "--since", "soon"), "'soon' is no period"),
        (("leaderboard", "--vs", "28d"), "--vs needs a period to compare with"),
        (("drift", "--since", "7d", "--vs", "2999-01-01"), "must begin before"),
        (("drift", "--vs", "x"), "'x' is no period"),
        (("cost", "--since", "2999-01-01"), "in the future"),
        (("cost", "--by", "weather"), "Invalid value"),
    ],
)
def test_bad_input_is_refused(run: Run, arguments: tuple[str, ...], fault: str) -> None:
    code, stdout, stderr = run(*arguments)
    assert (code, stdout) == (2, "")
    assert fault in stderr
    assert "Traceback" not in stderr
