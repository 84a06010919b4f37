"""Runs the reports: reads, computes, draws."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from fusewire.analysis.reports.cost import CostKey, cost_report
from fusewire.analysis.reports.drift import DriftRows, drift_report
from fusewire.analysis.reports.judge import judge_report
from fusewire.analysis.reports.leaderboard import LeaderboardOptions, leaderboard
from fusewire.analysis.reports.period import Period, parse_period, parse_periods
from fusewire.analysis.reports.pool import pool_report
from fusewire.analysis.reports.rows import plain
from fusewire.settings import Settings
from fusewire.store.analyst import Analyst, QueryError
from fusewire.store.sums import bucket_bounds
from fusewire_cli.report import reading, show, show_cost
from fusewire_cli.report.page import Page
from fusewire_cli.report.reading import ReportFilter
from fusewire_cli.screen import EXIT_FAULT, fail, note
from fusewire_cli.session import settings
from fusewire_cli.since import read as read_since

SEED = 20261201
"""Of the bootstrap, so that the same outcomes give the same report."""
TIMEOUT_S = 300.0

T = TypeVar("T")


@dataclass(frozen=True)
class ReportOptions:
    """What the user asked for."""

    pool: str | None = None
    judge: str | None = None
    since: str | None = None
    vs: str | None = None
    as_json: bool = False


def run_leaderboard(options: ReportOptions) -> None:
    """`fusewire report leaderboard`."""
    period, earlier = _period(options.since), None
    if options.vs is not None:
        if options.since is None:
            fail("--vs needs a period to compare with", "give --since too, such as 7d")
        period, earlier = _periods(options.since, options.vs)
    config = settings()
    which = ReportFilter(options.pool, options.judge, period)
    rows = _read(config, lambda analyst: reading.read_leaderboard(analyst, which, earlier))
    extras = LeaderboardOptions(period, bucket_bounds(), _families(config), earlier, SEED)
    try:
        report = leaderboard(rows, extras)
    except ModuleNotFoundError as exc:
        fail(f"strengths need the library {exc.name}", "install fusewire-cli[analyst]", EXIT_FAULT)
    _finish(report, options, show.show_leaderboard, is_empty=not report.pools)


def run_judge(options: ReportOptions) -> None:
    """`fusewire report judge`."""
    which = ReportFilter(options.pool, options.judge)
    report = judge_report(_read(settings(), lambda analyst: reading.read_judge(analyst, which)))
    _finish(report, options, show.show_judge, is_empty=not report.judges, what="verdicts")


def run_cost(options: ReportOptions, by: CostKey) -> None:
    """`fusewire report cost`."""
    which = ReportFilter(options.pool, period=_period(options.since))
    assert which.period is not None
    rows = _read(settings(), lambda analyst: reading.read_costs(analyst, which, by))
    report = cost_report(rows, which.period, by)
    _finish(report, options, show_cost.show_cost, is_empty=report.total is None)


def run_drift(options: ReportOptions) -> None:
    """`fusewire report drift`."""
    periods = _periods(options.since or "7d", options.vs or "28d")
    which = ReportFilter(options.pool)

    async def read(analyst: Analyst) -> tuple[DriftRows, ...]:
        filters = [replace(which, period=period) for period in periods]
        return tuple([await reading.read_drift(analyst, each) for each in filters])

    recent, earlier = _read(settings(), read)
    report = drift_report(recent, earlier, periods=periods, bounds=bucket_bounds())
    _finish(report, options, show_cost.show_drift, is_empty=not report.pools)


def run_pool(options: ReportOptions) -> None:
    """`fusewire report pool`."""
    which = ReportFilter(options.pool)
    report = pool_report(_read(settings(), lambda analyst: reading.read_pool(analyst, which)))
    _finish(report, options, show.show_pool, is_empty=not report.pools)


def _period(since: str | None) -> Period:
    return read_since(lambda now: parse_period(since, now))


def _periods(since: str, vs: str) -> tuple[Period, Period]:
    return read_since(lambda now: parse_periods(since, vs, now))


def _families(config: Settings) -> dict[str, str]:
    from fusewire_dispatcher.pools import build_catalogue

    return {name: model.family for name, model in build_catalogue(config).models.items()}


def _read(config: Settings, read: Callable[[Analyst], Awaitable[T]]) -> T:
    async def run() -> T:
        async with Analyst(config.database, timeout_s=TIMEOUT_S, trusted=True) as analyst:
            return await read(analyst)

    try:
        return asyncio.run(run())
    except QueryError as exc:
        fail(exc.what, exc.mend, EXIT_FAULT)


def _finish(
    report: T,
    options: ReportOptions,
    show_report: Callable[[T, Page], None],
    *,
    is_empty: bool,
    what: str = "outcomes",
) -> None:
    """Print a report, or say on stderr that there is nothing to report; neither is a fault."""
    if options.as_json:
        print(json.dumps(plain(report), ensure_ascii=False))
    elif not is_empty:
        show_report(report, Page())
    if is_empty:
        pools = _read(settings(), reading.read_pools)
        note(f"there are no {what} in this period and pool")
        mend = "run prompts first, as by `fusewire ask` or `fusewire batch run`"
        if pools:
            mend = f"leave out --pool or give an earlier --since; pools: {', '.join(pools)}"
        note(f"  to mend it: {mend}")
