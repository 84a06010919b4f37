"""Reports from rows: what was planted is found, and what was not is not."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest

from fusewire.analysis.measures import Rate
from fusewire.analysis.reports.cost import CostKey, CostRows, cost_report
from fusewire.analysis.reports.drift import DriftFigure, DriftRows, drift_report
from fusewire.analysis.reports.judge import JudgeRows, check_bias, judge_report
from fusewire.analysis.reports.leaderboard import (
    LeaderboardOptions,
    LeaderboardRows,
    leaderboard,
)
from fusewire.analysis.reports.period import Period, parse_period, parse_periods
from fusewire.analysis.reports.pool import PoolRows, pool_report
from fusewire.analysis.reports.rows import add_known, plain
from fusewire.store.sums import bucket_bounds

NOW = datetime(2026, 11, 30, 0, 30, tzinfo=UTC)
BOUNDS = bucket_bounds()
PERIOD = Period(None, NOW.date())
RECENT, EARLIER = parse_periods("7d", "28d", NOW)

# -- periods ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("7d", date(2026, 11, 23)),
        ("24h", date(2026, 11, 29)),
        ("1h", date(2026, 11, 29)),
        (" 2W ", date(2026, 11, 16)),
        ("2026-11-01", date(2026, 11, 1)),
        ("2026-11-30", date(2026, 11, 30)),
        ("2026-11-29T23:59", date(2026, 11, 29)),
    ],
)
def test_a_period_begins_with_a_utc_day(text: str, day: date) -> None:
    assert parse_period(text, NOW) == Period(day, NOW.date())


def test_the_earlier_period_ends_where_the_recent_one_begins() -> None:
    assert Period(date(2026, 11, 23), date(2026, 11, 30)) == RECENT
    assert Period(date(2026, 10, 26), date(2026, 11, 22)) == EARLIER
    assert parse_periods("2026-11-20", "2026-11-01", NOW)[1] == Period(
        date(2026, 11, 1), date(2026, 11, 19)
    )


@pytest.mark.parametrize("vs", ["2026-11-23", "2026-11-28"])
def test_an_earlier_period_that_is_not_earlier_is_refused(vs: str) -> None:
    with pytest.raises(ValueError, match="must begin before 2026-11-23"):
        parse_periods("7d", vs, NOW)


# -- judge ------------------------------------------------------------------------------------


def test_a_planted_bias_is_found_and_none_is_seen_where_there_is_none() -> None:
    generator = np.random.default_rng(5)
    fair = [check_bias(int(generator.binomial(500, 0.5)), 500, 0.5) for _ in range(200)]
    biased = [check_bias(int(generator.binomial(500, 0.6)), 500, 0.5) for _ in range(200)]

    assert sum(test.finding == "no bias seen" for test in fair) >= 186
    assert sum(test.finding == "bias" for test in biased) >= 190


def test_of_few_verdicts_nothing_is_said() -> None:
    test = check_bias(29, 29, 0.5)
    assert (test.finding, test.rate.value) == ("too few", None)
    assert check_bias(30, 30, 0.5).finding == "bias"
    assert check_bias(30, 30, None).finding == "too few"


def bias_row(**changes: Any) -> dict[str, Any]:
    row = {
        "pool": "p", "judge_model": "j", "presentations": 300, "first_wins": 160,
        "fair_first_rate": 1 / 3, "swapped": 100, "flips": 20, "longer_wins": 75,
        "longer_shown": 200, "own_family_wins": 40, "own_family_shown": 60, "repaired": 3,
        "reasked": 0,
    }  # fmt: skip
    return row | changes


def test_a_rate_is_held_against_what_chance_gives_for_the_answers_that_were_shown() -> None:
    """Of three answers each is the longest once in three; of four two may be of the family."""
    verdicts = [
        {
            "pool": "p", "judge_model": "j", "fair_longer": 200 / 3, "fair_own_family": 30.0,
            "controls": 40, "control_wins": 1,
        }
    ]  # fmt: skip
    (row,) = judge_report(JudgeRows([bias_row()], verdicts)).judges

    assert row.place.fair_rate == pytest.approx(1 / 3)
    assert row.length.fair_rate == pytest.approx(1 / 3)
    assert (row.place.finding, row.length.finding) == ("bias", "no bias seen")
    assert (row.family.fair_rate, row.family.finding) == (0.5, "bias")
    assert (row.flips.count, row.flips.n, row.flips.value) == (20, 100, 0.2)
    assert (row.controls.count, row.controls.n) == (1, 40)
    assert (row.votes, row.labels) == (None, None)


def vote(choice: str, winner: str | None, agrees: bool | None) -> dict[str, Any]:
    return {
        "pool": "p", "judge_model": "j", "choice": choice, "winner": winner, "agrees": agrees,
    }  # fmt: skip


def test_people_agree_beyond_chance_or_not() -> None:
    votes = [
        *[vote("a", "a", True)] * 20,
        *[vote("fused", "a", True)] * 5,
        *[vote("b", "a", False)] * 5,
        *[vote("b", "b", True)] * 10,
        *[vote("a", "b", False)] * 10,
        *[vote("tie", "a", None)] * 7,
    ]
    (row,) = judge_report(JudgeRows([bias_row()], votes=votes)).judges

    assert row.votes
    assert (row.votes.rate.count, row.votes.rate.n) == (35, 50)
    # 0.7 observed; (30 · 35 + 20 · 15) / 2500 = 0.54 by chance.
    assert row.votes.kappa == pytest.approx((0.7 - 0.54) / 0.46)
    (few,) = judge_report(JudgeRows([bias_row()], votes=votes[:29])).judges
    assert few.votes
    assert (few.votes.kappa, few.votes.rate.value) == (None, None)


def test_a_judge_is_right_where_a_right_answer_was_there() -> None:
    label = {
        "pool": "p", "judge_model": "j", "n": 100, "accepted": 61, "oracle": 80,
        "accepted_of_oracle": 60,
    }  # fmt: skip
    (row,) = judge_report(JudgeRows([bias_row()], labels=[label])).judges

    assert row.labels
    assert (row.labels.accepted.value, row.labels.oracle.value) == (0.61, 0.8)
    assert row.labels.choice.value == 0.75


# -- leaderboard ------------------------------------------------------------------------------


def model_row(model: str, **changes: Any) -> dict[str, Any]:
    row = {
        "pool": "p", "model": model, "tier": "hosted", "asked": 100, "answered": 98, "failed": 2,
        "wins": 49, "labelled": 0, "rights": 0, "cost_usd": 0.98, "config_hash": "c1",
    }  # fmt: skip
    return row | changes


def pair_row(results: str, n: int, judge: str = "j") -> dict[str, Any]:
    return {"pool": "p", "judge_model": judge, "results": results, "n": n}


def options(**changes: Any) -> LeaderboardOptions:
    return LeaderboardOptions(PERIOD, BOUNDS, seed=1, resamples=100, **changes)


def test_days_are_added_up_and_an_unknown_cost_stays_unknown() -> None:
    rows = [model_row("a"), model_row("a"), model_row("b", cost_usd=None), model_row("b")]
    latencies = [
        {"pool": "p", "model": "a", "bucket_ms": 1000, "n": 95},
        {"pool": "p", "model": "a", "bucket_ms": 10_000, "n": 5},
    ]
    (board,) = leaderboard(LeaderboardRows(rows, latencies, []), options()).pools
    first, second = board.models

    assert (first.asked, first.wins, first.cost_usd) == (200, 98, 1.96)
    assert first.cost_per_win_usd == pytest.approx(0.02)
    assert first.p95_ms == pytest.approx(1000)
    assert (second.cost_usd, second.cost_per_win_usd, second.p50_ms) == (None, None, None)
    assert first.accuracy is None
    assert (first.failure.count, first.failure.n, first.failure.value) == (4, 200, 0.02)


def test_results_in_another_order_are_the_same() -> None:
    pairs = [pair_row("a>b,a>c", 40), pair_row("a>c,a>b", 20), pair_row("b=c", 10)]
    (board,) = leaderboard(LeaderboardRows([], [], pairs), options()).pools
    (judged,) = board.boards

    assert [(row.model, row.n) for row in judged.ranks] == [("a", 120), ("b", 70), ("c", 70)]
    cell = next(cell for cell in judged.cells if (cell.model, cell.opponent) == ("b", "c"))
    assert (cell.ties, cell.rate.n, cell.rate.count) == (10, 10, 5)


def test_each_judge_has_a_board_and_says_if_it_grades_itself_or_its_family() -> None:
    rows = LeaderboardRows(
        [],
        [],
        [pair_row("a>b", 40), pair_row("a>b", 40, "second")],
        deciders=[{"pool": "p", "model": "j"}, {"pool": "other", "model": "second"}],
    )
    families = {"j": "x", "a": "x", "b": "y", "second": "z"}
    (board,) = leaderboard(rows, options(families=families)).pools
    fusing, second = board.boards

    assert (fusing.judge, fusing.is_self_graded, fusing.has_own_family) == ("j", True, True)
    assert [row.is_own_family for row in fusing.ranks] == [True, False]
    assert (second.judge, second.is_self_graded, second.has_own_family) == ("second", False, False)


def test_a_jury_grades_itself_too() -> None:
    rows = LeaderboardRows([], [], [pair_row("a>b", 40)], deciders=[{"pool": "p", "model": "jury"}])
    (board,) = leaderboard(rows, options()).pools
    assert board.boards[0].is_self_graded


def test_the_family_shows_in_stored_verdicts_where_the_configuration_does_not_know_it() -> None:
    stored = [{"pool": "p", "judge_model": "j", "own_family_shown": 3}]
    rows = LeaderboardRows([], [], [pair_row("a>b", 40)], own_families=stored)
    (board,) = leaderboard(rows, options()).pools
    assert board.boards[0].has_own_family


def test_a_strength_is_compared_with_the_earlier_one() -> None:
    rows = LeaderboardRows(
        [], [], [pair_row("a>b", 300), pair_row("b>a", 100)],
        earlier_pairs=[pair_row("a>b", 200), pair_row("b>a", 200)],
    )  # fmt: skip
    (board,) = leaderboard(rows, options(earlier=EARLIER)).pools
    first = board.boards[0].ranks[0]

    assert first.earlier
    assert first.earlier.value == pytest.approx(1)
    assert first.ratio
    assert first.ratio.value == pytest.approx(3**0.5, rel=0.01)
    assert 1 < first.ratio.low < first.ratio.value < first.ratio.high


# -- cost -------------------------------------------------------------------------------------


def cost_row(**changes: Any) -> dict[str, Any]:
    row = {
        "key": "p", "outcomes": 100, "priced": 80, "usd": 8.0, "usd_squares": 0.9,
        "panel_usd": 6.0, "judge_usd": 2.0, "late_usd": None, "labelled": 40, "accepted": 20,
        "labelled_usd": 4.0,
    }  # fmt: skip
    return row | changes


def test_unpriced_outcomes_are_counted_apart() -> None:
    report = cost_report(CostRows([cost_row()], [cost_row()]), PERIOD, CostKey.pool)

    assert report.total
    assert (report.total.outcomes, report.total.unpriced, report.total.usd) == (100, 20, 8.0)
    assert report.total.judge_share == 0.25
    assert report.total.usd_per_outcome
    assert report.total.usd_per_outcome.value == pytest.approx(0.1)
    assert report.total.usd_per_accepted == pytest.approx(0.2)
    assert report.total.late_usd is None


def test_what_has_no_price_at_all_costs_nothing_that_is_known() -> None:
    row = cost_row(priced=0, usd=None, usd_squares=None, panel_usd=None, judge_usd=None,
                   labelled=0, accepted=0, labelled_usd=None)  # fmt: skip
    total = cost_report(CostRows([row]), PERIOD, CostKey.pool).total

    assert total
    assert (total.usd, total.judge_share, total.usd_per_outcome) == (None, None, None)
    assert (total.usd_per_accepted, total.unpriced) == (None, 100)


def test_few_labels_give_no_cost_per_accepted() -> None:
    total = cost_report(CostRows([cost_row(labelled=29)]), PERIOD, CostKey.pool).total
    assert total
    assert total.usd_per_accepted is None


def test_members_at_the_edge_and_hosted_ones_are_told_apart() -> None:
    members = [
        {"model": "a", "tier": "hosted", "calls": 10, "unpriced": 0, "usd": 2.0},
        {"model": "b", "tier": "hosted", "calls": 10, "unpriced": 10, "usd": 0.0},
        {"model": "c", "tier": "edge", "calls": 10, "unpriced": 10, "usd": None},
    ]
    judges = [{"model": "j", "calls": 5, "unpriced": 0, "usd": 3.0}]
    report = cost_report(
        CostRows([cost_row()], members=members, judges=judges), PERIOD, CostKey.model
    )

    assert (report.hosted_usd, report.edge_usd) == (2.0, None)
    assert [(row.role, row.model, row.usd) for row in report.calls] == [
        ("judge", "j", 3.0),
        ("member", "a", 2.0),
        ("member", "b", None),
        ("member", "c", None),
    ]


def test_no_outcomes_have_no_total() -> None:
    row = cost_row(outcomes=0, priced=0, usd=None)
    assert cost_report(CostRows([row]), PERIOD, CostKey.day).total is None


# -- drift ------------------------------------------------------------------------------------


def day_row(outcomes: int, accepted: int, config: str = "c1") -> dict[str, Any]:
    return {
        "pool": "p", "config_hash": config, "outcomes": outcomes, "labelled": outcomes,
        "accepted": accepted, "degraded": 0, "failed": 0, "fallbacks": 0, "disagreements": 0,
    }  # fmt: skip


def figure(recent: DriftRows, earlier: DriftRows, name: str) -> DriftFigure:
    report = drift_report(recent, earlier, periods=(RECENT, EARLIER), bounds=BOUNDS)
    return next(it for it in report.pools[0].figures if it.name == name)


def test_a_planted_drift_is_found_and_none_is_seen_where_there_is_none() -> None:
    generator = np.random.default_rng(6)

    def findings(recent_rate: float) -> list[str]:
        return [
            figure(
                DriftRows([day_row(400, int(generator.binomial(400, recent_rate)))]),
                DriftRows([day_row(1600, int(generator.binomial(1600, 0.7)))]),
                "accepted",
            ).finding
            for _ in range(200)
        ]

    assert findings(0.7).count("no difference seen") >= 186
    assert findings(0.58).count("differs") >= 190


def test_drift_of_p95_is_found_and_none_is_seen_where_there_is_none() -> None:
    generator = np.random.default_rng(7)

    def rows(scale: float, n: int) -> DriftRows:
        buckets = [
            BOUNDS[place]
            for place in np.searchsorted(BOUNDS, generator.lognormal(7 + scale, 0.5, n))
        ]
        latencies = [
            {"pool": "p", "stage": "total", "model": None, "bucket_ms": it, "n": 1}
            for it in buckets
        ]
        return DriftRows([day_row(n, 0)], latencies=latencies)

    def findings(scale: float) -> list[str]:
        return [figure(rows(scale, 400), rows(0.0, 800), "p95").finding for _ in range(100)]

    assert findings(0.0).count("no difference seen") >= 93
    assert findings(0.4).count("differs") >= 95


def test_drift_of_costs_is_found() -> None:
    def rows(usd: float, n: int) -> DriftRows:
        costs = [{"pool": "p", "priced": n, "usd": n * usd, "usd_squares": n * (usd**2 + 0.01)}]
        return DriftRows([day_row(n, 0)], costs=costs)

    assert figure(rows(0.5, 400), rows(0.4, 400), "cost").finding == "differs"
    assert figure(rows(0.4, 400), rows(0.4, 400), "cost").finding == "no difference seen"
    few = figure(rows(0.5, 29), rows(0.4, 400), "cost")
    assert (few.finding, few.recent.value, few.change) == ("too few", None, None)


def test_of_few_outcomes_no_drift_is_said() -> None:
    few = figure(DriftRows([day_row(29, 0)]), DriftRows([day_row(400, 400)]), "accepted")
    assert (few.finding, few.recent.value, few.recent.n, few.change) == ("too few", None, 29, None)


@pytest.mark.parametrize(
    ("configs", "is_reconfigured"), [(("c1",), False), (("c2",), True), (("c1", "c2"), True)]
)
def test_a_change_of_the_configuration_is_named(
    configs: tuple[str, ...], is_reconfigured: bool
) -> None:
    recent = DriftRows([day_row(50, 30, config) for config in configs])
    report = drift_report(
        recent, DriftRows([day_row(90, 50)]), periods=(RECENT, EARLIER), bounds=BOUNDS
    )
    (pool,) = report.pools
    assert pool.is_reconfigured is is_reconfigured
    assert pool.recent_configs == dict.fromkeys(configs, 50)
    assert pool.earlier_configs == {"c1": 90}


def test_the_win_share_of_each_model_is_compared() -> None:
    recent = DriftRows([day_row(100, 0)], [model_row("a", wins=20), model_row("b", wins=78)])
    earlier = DriftRows([day_row(100, 0)], [model_row("a", wins=50), model_row("b", wins=48)])
    report = drift_report(recent, earlier, periods=(RECENT, EARLIER), bounds=BOUNDS)
    shares = {it.model: it for it in report.pools[0].figures if it.name == "win share"}

    assert (shares["a"].finding, shares["b"].finding) == ("differs", "differs")
    assert shares["a"].change
    assert shares["a"].change.value == pytest.approx(-30 / 98)
    assert report.compared == 9


# -- pool -------------------------------------------------------------------------------------


def lift_row(n: int = 100, source: str = "gold") -> dict[str, Any]:
    return {
        "pool": "p", "audit_source": source, "n": n, "fused_score": 0.8,
        "best_fixed_single": "a", "best_single_score": 0.7, "oracle_score": 0.9, "lift": 0.1,
    }  # fmt: skip


def cells(
    both: int, fused: int, single: int, neither: int, model: str = "a"
) -> list[Mapping[str, Any]]:
    counts = {(1, 1): both, (1, 0): fused, (0, 1): single, (0, 0): neither}
    return [
        {"pool": "p", "model": model, "fused_right": f, "single_right": s, "n": n}
        for (f, s), n in counts.items()
    ]


def test_the_lift_is_paired_with_the_best_single_model() -> None:
    pairs = [*cells(65, 15, 5, 15), *cells(40, 40, 0, 20, "b")]
    (row,) = pool_report(PoolRows([day_row(200, 100)], [lift_row()], pairs)).pools
    (lift,) = row.lifts

    assert (lift.fused.count, lift.single.count, lift.oracle.count) == (80, 70, 90)
    assert lift.paired
    assert lift.paired.value == pytest.approx(0.1)
    assert lift.n_paired == 100
    assert 0 < lift.paired.low < 0.1 < lift.paired.high < 0.2


def test_votes_and_few_labels_have_no_paired_lift() -> None:
    lifts = [lift_row(29), lift_row(100, "votes")]
    (row,) = pool_report(PoolRows([day_row(200, 100)], lifts, cells(20, 5, 2, 2))).pools
    gold, votes = row.lifts

    assert (gold.lift, gold.paired, gold.fused.value, gold.n_paired) == (None, None, None, 29)
    assert (votes.lift, votes.paired, votes.fused.value) == (0.1, None, 0.8)


def test_the_rates_of_a_pool_are_of_all_its_days() -> None:
    closings = [
        {"pool": "p", "closed_by": "complete", "n": 90},
        {"pool": "p", "closed_by": "deadline", "n": 10},
    ]
    ablation = {
        "pool": "p", "model": "a", "n": 29, "score_loss": 0.1, "sole_best_rate": 0.2, "wins": 5,
        "sole_wins": 2, "cost_usd": None, "cost_per_point": 1.0,
    }  # fmt: skip
    days = [day_row(60, 0), day_row(40, 0) | {"degraded": 25}]
    (row,) = pool_report(PoolRows(days, ablations=[ablation], closings=closings)).pools

    assert (row.outcomes, row.degraded.value, row.closed_by["deadline"].value) == (100, 0.25, 0.1)
    (cell,) = row.ablations
    assert (cell.score_loss.value, cell.usd_per_point, cell.cost_usd) == (None, None, None)
    assert row.lifts == ()


# -- rows -------------------------------------------------------------------------------------


def test_a_sum_with_an_unknown_amount_is_unknown() -> None:
    assert add_known([{"usd": 1.0}, {"usd": None}], "usd") is None
    assert add_known([{"usd": 1.0}, {"usd": 0.0}], "usd") == 1.0
    assert add_known([], "usd") is None


def test_json_has_six_digits_and_iso_days() -> None:
    report = {"rate": Rate(1, 3, 1 / 3, 0.0, True), "period": RECENT, "names": ("a",)}
    assert plain(report) == {
        "rate": {"count": 1, "n": 3, "value": 0.333333, "low": 0.0, "high": True},
        "period": {"first": "2026-11-23", "last": "2026-11-30"},
        "names": ["a"],
    }
