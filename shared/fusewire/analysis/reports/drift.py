"""What differs between a recent period and an earlier one, and whether the configuration did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from fusewire.analysis.measures import LEAST_N, Interval, difference, wilson
from fusewire.analysis.quantiles import quantile_interval
from fusewire.analysis.reports.cost import cost_per_outcome
from fusewire.analysis.reports.period import Period
from fusewire.analysis.reports.rows import Row, Rows, add, count, group, histograms

DriftFinding = Literal["differs", "no difference seen", "too few"]
Unit = Literal["share", "usd", "ms"]


@dataclass(frozen=True)
class Estimate:
    """A figure of one period. `value` is None under LEAST_N."""

    n: int
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class DriftFigure:
    """A figure in both periods, and its difference. `cost` is the mean of an outcome."""

    name: str
    model: str | None
    """Of which model it is; None of the pool's own."""
    unit: Unit
    recent: Estimate
    earlier: Estimate
    change: Interval | None
    """recent - earlier, with its 95 % interval; None if either has too few."""
    finding: DriftFinding


@dataclass(frozen=True)
class PoolDrift:
    """The figures of a pool, and how many outcomes each configuration had."""

    pool: str
    is_reconfigured: bool
    """Whether a configuration is in one period and not in the other: then a difference is a change
    that somebody made, and no drift."""
    recent_configs: dict[str, int]
    earlier_configs: dict[str, int]
    figures: tuple[DriftFigure, ...]


@dataclass(frozen=True)
class DriftReport:
    """`fusewire report drift`."""

    recent: Period
    earlier: Period
    compared: int
    """Figures with enough observations in both periods. One of 20 differs by chance alone."""
    pools: tuple[PoolDrift, ...]


@dataclass(frozen=True)
class DriftRows:
    """What is known of one period; all with pool."""

    days: Rows
    """`v_pool_day`."""
    models: Rows = ()
    """`v_model_day`."""
    latencies: Rows = ()
    """`v_latency_hist` of the stages total and call."""
    costs: Rows = ()
    """priced, usd and usd_squares of each pool."""


_SHARES = {
    "accepted": "labelled",
    "degraded": "outcomes",
    "failed": "outcomes",
    "fallbacks": "outcomes",
    "disagreements": "outcomes",
}
"""Counts of `v_pool_day`, and what they are shares of."""
_MODEL_SHARES = {"wins": "answered", "failed": "asked"}
_NAMES = {"fallbacks": "fallback", "disagreements": "disagreement", "wins": "win share"}

_Key = tuple[str, str | None, Unit]
_Figures = dict[_Key, tuple[int, Interval | None]]
"""n and interval by name, model and unit. An interval is None where n allows none."""


def drift_report(
    recent: DriftRows,
    earlier: DriftRows,
    *,
    periods: tuple[Period, Period],
    bounds: Sequence[int],
) -> DriftReport:
    """Compare two periods, pool by pool.

    Rates are compared by Newcombe's hybrid score interval, mean costs by Welch's, and p95 by the
    intervals of the two quantiles (see `measures.difference`). Shares of outcomes are of all
    outcomes; that of the accepted is of those with a label, that of the disagreements counts
    outcomes with closed answers.

    Args:
        recent: rows of the recent period.
        earlier: rows of the earlier one.
        periods: recent and earlier.
        bounds: of the latency buckets, in ms.
    """
    pools = sorted({str(row["pool"]) for row in (*recent.days, *earlier.days)})
    drifts = tuple(
        _pool_drift(pool, _select(recent, pool), _select(earlier, pool), bounds) for pool in pools
    )
    figures = chain.from_iterable(drift.figures for drift in drifts)
    n_changes = sum(figure.change is not None for figure in figures)
    return DriftReport(*periods, n_changes, drifts)


def _select(rows: DriftRows, pool: str) -> DriftRows:
    def choose(part: Rows) -> list[Row]:
        return [row for row in part if row["pool"] == pool]

    return DriftRows(
        choose(rows.days), choose(rows.models), choose(rows.latencies), choose(rows.costs)
    )


def _pool_drift(
    pool: str, recent: DriftRows, earlier: DriftRows, bounds: Sequence[int]
) -> PoolDrift:
    now, before = _figures(recent, bounds), _figures(earlier, bounds)
    figures = tuple(
        _compare(key, now.get(key, (0, None)), before.get(key, (0, None)))
        for key in dict.fromkeys((*now, *before))
    )
    configs, earlier_configs = _configs(recent.days), _configs(earlier.days)
    is_reconfigured = bool(configs and earlier_configs) and configs.keys() != earlier_configs.keys()
    return PoolDrift(pool, is_reconfigured, configs, earlier_configs, figures)


def _configs(days: Rows) -> dict[str, int]:
    return {
        "unknown" if name == "None" else name: add(rows, "outcomes")
        for (name,), rows in group(days, "config_hash").items()
    }


def _figures(rows: DriftRows, bounds: Sequence[int]) -> _Figures:
    figures = _shares(rows.days, _SHARES, None)
    for row in rows.costs:
        figures["cost", None, "usd"] = count(row, "priced"), cost_per_outcome(row)
    totals = histograms([row for row in rows.latencies if row["stage"] == "total"], "pool")
    for latencies in totals.values():
        figures["p95", None, "ms"] = _p95(latencies, bounds)
    calls = histograms([row for row in rows.latencies if row["stage"] == "call"], "model")
    for (model,), model_rows in group(rows.models, "model").items():
        figures |= _shares(model_rows, _MODEL_SHARES, model)
        if model in calls:
            figures["p95", model, "ms"] = _p95(calls[model], bounds)
    return figures


def _shares(rows: Rows, shares: Mapping[str, str], model: str | None) -> _Figures:
    figures: _Figures = {}
    for name, whole in shares.items():
        n = add(rows, whole)
        if n:
            figures[_NAMES.get(name, name), model, "share"] = n, wilson(add(rows, name), n)
    return figures


def _p95(latencies: Mapping[int, int], bounds: Sequence[int]) -> tuple[int, Interval | None]:
    return sum(latencies.values()), quantile_interval(latencies, 0.95, bounds)


def _compare(
    key: _Key, recent: tuple[int, Interval | None], earlier: tuple[int, Interval | None]
) -> DriftFigure:
    name, model, unit = key
    now, before = _estimate(*recent), _estimate(*earlier)
    change: Interval | None = None
    finding: DriftFinding = "too few"
    if now.value is not None and before.value is not None and recent[1] and earlier[1]:
        change = difference(recent[1], earlier[1])
        finding = "no difference seen" if change.low <= 0 <= change.high else "differs"
    return DriftFigure(name, model, unit, now, before, change, finding)


def _estimate(n: int, interval: Interval | None) -> Estimate:
    if interval is None:
        return Estimate(n, None, None, None)
    return Estimate(n, interval.value if n >= LEAST_N else None, interval.low, interval.high)
