"""Who wins, as each judge sees it, and what a win costs."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fusewire.analysis.measures import Interval, Rate, difference, rate
from fusewire.analysis.quantiles import quantile
from fusewire.analysis.ranking import (
    RESAMPLES,
    MatrixCell,
    PairGroup,
    PairResult,
    Strength,
    count_pairs,
    cycles,
    matrix,
    strengths,
)
from fusewire.analysis.reports.period import Period
from fusewire.analysis.reports.rows import Row, Rows, add, add_known, count, group, histograms

JURY = "jury"
"""What an outcome has as its judge where several judged."""


@dataclass(frozen=True)
class ModelRow:
    """What is known of a model in a pool without a judge's word. Latencies are of its calls."""

    model: str
    tier: str
    asked: int
    failure: Rate
    accuracy: Rate | None
    """Share of its labelled answers that are right; None without labels."""
    wins: int
    win_share: Rate
    """Outcomes that are its answer, of those that it answered."""
    cost_usd: float | None
    cost_per_win_usd: float | None
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True)
class RankRow:
    """A model's strength as a judge sees it."""

    model: str
    n: int
    strength: Interval | None
    is_own_family: bool
    """Whether it is of the judge's own family."""
    earlier: Interval | None = None
    """Its strength in the earlier period."""
    ratio: Interval | None = None
    """By how much its strength grew: 1 if it did not."""


@dataclass(frozen=True)
class JudgeBoard:
    """A ranking as judged by one judge."""

    judge: str
    is_self_graded: bool
    """Whether the judge graded outcomes that it decided itself."""
    has_own_family: bool
    """Whether its own family is among the models."""
    ranks: tuple[RankRow, ...]
    cells: tuple[MatrixCell, ...]
    cycles: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PoolBoard:
    """The models of a pool, and a ranking for each judge."""

    pool: str
    models: tuple[ModelRow, ...]
    boards: tuple[JudgeBoard, ...]


@dataclass(frozen=True)
class LeaderboardReport:
    """`fusewire report leaderboard`."""

    period: Period
    earlier: Period | None
    pools: tuple[PoolBoard, ...]


@dataclass(frozen=True)
class LeaderboardRows:
    """What a leaderboard is made of."""

    models: Rows
    """`v_model_day`."""
    latencies: Rows
    """`v_latency_hist` of stage `call`."""
    pairs: Rows
    """pool, judge_model, results (`a>b,a=c`: won or tied, of one outcome) and n, of how many."""
    own_families: Rows = ()
    """`v_judge_bias`: pool, judge_model and own_family_shown."""
    deciders: Rows = ()
    """pool and model: who decided outcomes of a pool."""
    earlier_pairs: Rows = ()
    """`pairs` of the earlier period."""


@dataclass(frozen=True)
class LeaderboardOptions:
    """What does not come from rows."""

    period: Period
    bounds: Sequence[int]
    """Of the latency buckets, in ms."""
    families: Mapping[str, str] = field(default_factory=dict)
    """The family of each configured model."""
    earlier: Period | None = None
    seed: int = 0
    resamples: int = RESAMPLES


def leaderboard(rows: LeaderboardRows, options: LeaderboardOptions) -> LeaderboardReport:
    """Rank the models of each pool.

    Raises:
        ModuleNotFoundError: evalica is not installed.
    """
    pools = sorted({str(row["pool"]) for row in (*rows.models, *rows.pairs)})
    boards = tuple(_pool_board(pool, rows, options) for pool in pools)
    return LeaderboardReport(options.period, options.earlier, boards)


def parse_pair_groups(rows: Rows) -> tuple[PairGroup, ...]:
    """Groups of outcomes from their results as text, such as `a>b,a=c`.

    Databases name the results of an outcome in any order; groups with the same ones are put
    together.
    """
    sums: dict[tuple[str, ...], int] = defaultdict(int)
    for row in rows:
        sums[tuple(sorted(str(row["results"]).split(",")))] += count(row, "n")
    return tuple(PairGroup(tuple(map(_parse_result, texts)), n) for texts, n in sums.items())


def _parse_result(text: str) -> PairResult:
    is_tie = "=" in text
    winner, loser = text.split("=" if is_tie else ">")
    return PairResult(winner, loser, is_tie)


def _of_pool(rows: Rows, pool: str) -> list[Row]:
    return [row for row in rows if row["pool"] == pool]


def _pool_board(pool: str, rows: LeaderboardRows, options: LeaderboardOptions) -> PoolBoard:
    latencies = _of_pool(rows.latencies, pool)
    boards = [
        _judge_board(pool, judge, rows, options)
        for (judge,) in group(_of_pool(rows.pairs, pool), "judge_model")
    ]
    models = rank_by_wins(_of_pool(rows.models, pool), latencies, options.bounds)
    return PoolBoard(pool, models, tuple(boards))


def rank_by_wins(models: Rows, latencies: Rows, bounds: Sequence[int]) -> tuple[ModelRow, ...]:
    """Add up the models of one pool, the one with the largest win share first.

    Args:
        models: rows of `v_model_day`, or sums of them by model and tier.
        latencies: rows of `v_latency_hist` of stage `call`.
        bounds: of the latency buckets, in ms.
    """
    counts = histograms(latencies, "model")
    rows = [
        _model_row(model_rows, counts.get(model, {}), bounds)
        for (model,), model_rows in group(models, "model").items()
    ]
    return tuple(sorted(rows, key=lambda row: (-(row.win_share.value or 0.0), row.model)))


def is_self_graded(judge: str, deciders: Rows) -> bool:
    """Whether a judge graded outcomes that it decided itself.

    Args:
        judge: its model.
        deciders: rows with `model`: who decided outcomes of the pool.
    """
    return not {str(row["model"]) for row in deciders}.isdisjoint({judge, JURY})


def _model_row(rows: Rows, latencies: Mapping[int, int], bounds: Sequence[int]) -> ModelRow:
    n_asked, wins, n_labels = (add(rows, name) for name in ("asked", "wins", "labelled"))
    cost_usd = add_known(rows, "cost_usd")
    return ModelRow(
        model=str(rows[0]["model"]),
        tier=str(rows[0]["tier"]),
        asked=n_asked,
        failure=rate(add(rows, "failed"), n_asked),
        accuracy=rate(add(rows, "rights"), n_labels) if n_labels else None,
        wins=wins,
        win_share=rate(wins, add(rows, "answered")),
        cost_usd=cost_usd,
        cost_per_win_usd=cost_usd / wins if cost_usd is not None and wins else None,
        p50_ms=quantile(latencies, 0.5, bounds),
        p95_ms=quantile(latencies, 0.95, bounds),
    )


def _judge_board(
    pool: str, judge: str, rows: LeaderboardRows, options: LeaderboardOptions
) -> JudgeBoard:
    groups = _groups(rows.pairs, pool, judge)
    pairs = count_pairs(groups)
    earlier = _groups(rows.earlier_pairs, pool, judge)
    earlier_ranks = _strengths(earlier, options)
    family = options.families.get(judge, judge)
    ranks = tuple(
        _rank_row(
            rank,
            earlier_ranks.get(rank.model),
            is_own_family=options.families.get(rank.model, rank.model) == family,
        )
        for rank in _strengths(groups, options).values()
    )
    own_family_shown = sum(
        count(row, "own_family_shown")
        for row in _of_pool(rows.own_families, pool)
        if row["judge_model"] == judge
    )
    return JudgeBoard(
        judge=judge,
        is_self_graded=is_self_graded(judge, _of_pool(rows.deciders, pool)),
        has_own_family=own_family_shown > 0 or any(row.is_own_family for row in ranks),
        ranks=ranks,
        cells=matrix(pairs),
        cycles=cycles(pairs),
    )


def _groups(rows: Rows, pool: str, judge: str) -> tuple[PairGroup, ...]:
    return parse_pair_groups([row for row in _of_pool(rows, pool) if row["judge_model"] == judge])


def _strengths(groups: Sequence[PairGroup], options: LeaderboardOptions) -> dict[str, Strength]:
    ranks = strengths(groups, seed=options.seed, resamples=options.resamples)
    return {rank.model: rank for rank in ranks}


def _rank_row(rank: Strength, earlier: Strength | None, *, is_own_family: bool) -> RankRow:
    before = earlier.interval if earlier else None
    ratio = None
    if rank.interval and before:
        log_ratio = difference(_transform(rank.interval, math.log), _transform(before, math.log))
        ratio = _transform(log_ratio, math.exp)
    return RankRow(rank.model, rank.n, rank.interval, is_own_family, before, ratio)


def _transform(interval: Interval, function: Callable[[float], float]) -> Interval:
    return Interval(function(interval.value), function(interval.low), function(interval.high))
