"""Who wins in a pool, as each judge sees it, and what a win costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire.analysis.reports.leaderboard import ModelRow, rank_by_wins
from fusewire.analysis.reports.period import Period, parse_period
from fusewire.store.sums import bucket_bounds
from fusewire_console.access import Visitor
from fusewire_console.charts import Axis, axis
from fusewire_console.figures.win_matrix import WinMatrix, describe, shade, win_matrices
from fusewire_console.pages import page, pool_choice
from fusewire_console.site import Site


@dataclass(frozen=True)
class PeriodChoice:
    """The days that the address names with `since`."""

    since: str
    """As it stands in the address."""
    period: Period
    error: str | None = None
    """What is wrong with it; then the period is all days."""


def parse(parameters: Mapping[str, str], now: datetime) -> PeriodChoice:
    """Read the period from the parameters of an address."""
    since = parameters.get("since", "").strip()
    try:
        return PeriodChoice(since, parse_period(since or None, now))
    except ValueError as exc:
        return PeriodChoice(since, parse_period(None, now), str(exc))


async def read_models(
    site: Site, visitor: Visitor, pool: str, period: Period
) -> tuple[ModelRow, ...]:
    """The models of a pool in a period."""
    days = "pool = :pool AND day <= :last_day"
    values: dict[str, object] = {"pool": pool, "last_day": period.last}
    if period.first is not None:
        days += " AND day >= :first_day"
        values["first_day"] = period.first
    models = await site.views.of_all(
        visitor,
        f"""SELECT model, tier, SUM(asked) AS asked, SUM(answered) AS answered,
          SUM(failed) AS failed, SUM(wins) AS wins, SUM(labelled) AS labelled,
          SUM(rights) AS rights, CASE WHEN COUNT(*) = COUNT(cost_usd) THEN SUM(cost_usd) END
            AS cost_usd
        FROM v_model_day WHERE {days} GROUP BY model, tier""",
        values,
    )
    latencies = await site.views.of_all(
        visitor,
        f"""SELECT model, bucket_ms, SUM(n) AS n FROM v_latency_hist
        WHERE {days} AND stage = 'call' GROUP BY model, bucket_ms""",
        values,
    )
    return rank_by_wins(models, latencies, bucket_bounds())


async def read_matrices(site: Site, visitor: Visitor, pool: str) -> tuple[WinMatrix, ...]:
    """The win matrix of each judge of a pool, of all days."""
    values = {"pool": pool}
    pairs = await site.views.of_all(
        visitor, "SELECT * FROM v_win_matrix WHERE pool = :pool", values
    )
    biases = await site.views.of_all(
        visitor,
        "SELECT judge_model, own_family_shown FROM v_judge_bias WHERE pool = :pool",
        values,
    )
    deciders = await site.views.of_all(
        visitor,
        "SELECT DISTINCT model FROM v_latency_hist WHERE pool = :pool AND stage = 'judge'",
        values,
    )
    return win_matrices(pairs, biases, deciders)


def win_axis(models: tuple[ModelRow, ...]) -> Axis:
    """One axis for the win shares of all models."""
    return axis([row.win_share.high for row in models if row.win_share.n])


def routes(site: Site) -> list[Route]:
    """`/leaderboard`."""

    async def show(request: Request, visitor: Visitor) -> Response:
        choice = await pool_choice.read(site, visitor, request.query_params)
        which = parse(request.query_params, site.clock())
        models = await read_models(site, visitor, choice.pool, which.period)
        return page.render(
            site,
            "leaderboard.html",
            visitor,
            choice=choice,
            which=which,
            models=models,
            win_axis=win_axis(models),
            whole_axis=Axis(0.0, 1.0),
            matrices=await read_matrices(site, visitor, choice.pool),
            shade=shade,
            describe=describe,
        )

    return [page.route(site, "/leaderboard", show)]
