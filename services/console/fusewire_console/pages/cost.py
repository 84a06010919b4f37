"""What outcomes cost and how long they take, over a period, of all pools or of one."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire.analysis.reports.period import Period, parse_period
from fusewire.store.sums import BOUNDS_MS
from fusewire_console.access import Visitor
from fusewire_console.figures.costs import add_up, cost_sums
from fusewire_console.figures.latency import bucket_axis, latency_rows
from fusewire_console.pages import page
from fusewire_console.site import Site

SINCE = "30d"

_OUTCOMES = """
SELECT {key} AS key, SUM(outcomes) AS n, SUM(n_unpriced) AS unpriced, SUM(cost_priced_usd) AS usd
FROM v_pool_day {where} GROUP BY {key} ORDER BY {order}
"""
_ANSWERS = """
SELECT {keys}, SUM(answered) AS n, SUM(n_unpriced) AS unpriced, SUM(cost_priced_usd) AS usd,
  SUM(tokens) AS tokens
FROM v_model_day {where} GROUP BY {keys} ORDER BY SUM(cost_priced_usd) DESC, {keys}
"""
_LATENCIES = """
SELECT stage, model, bucket_ms, SUM(n) AS n FROM v_latency_hist {where}
GROUP BY stage, model, bucket_ms
"""


def condition(period: Period, pool: str | None) -> tuple[str, dict[str, object]]:
    """What chooses rows of the views of sums, and its values."""
    conditions = ["day <= :last"]
    values: dict[str, object] = {"last": period.last}
    if period.first is not None:
        conditions.append("day >= :first")
        values["first"] = period.first
    if pool:
        conditions.append("pool = :pool")
        values["pool"] = pool
    return f"WHERE {' AND '.join(conditions)}", values


async def read(site: Site, visitor: Visitor, period: Period, pool: str | None) -> Mapping[str, Any]:
    """Read the sums. Raises OperatorsOnlyError and QueryError."""
    where, values = condition(period, pool)

    async def fetch(sql: str, **words: str) -> Any:
        for name, word in {**words, "where": where}.items():
            sql = sql.replace(f"{{{name}}}", word)
        return await site.views.of_all(visitor, sql, values)

    by_day = cost_sums(await fetch(_OUTCOMES, key="day", order="day"), "key")
    pools = await fetch(_OUTCOMES, key="pool", order="SUM(cost_priced_usd) DESC, pool")
    models = await fetch(_ANSWERS, keys="model, tier")
    tiers = await fetch(_ANSWERS, keys="tier")
    latencies = latency_rows(await fetch(_LATENCIES), BOUNDS_MS)
    return {
        "by_day": by_day,
        "total": add_up(by_day, "all"),
        "by_pool": cost_sums(pools, "key"),
        "by_model": cost_sums(models, "model", "tier"),
        "by_tier": cost_sums(tiers, "tier"),
        "latencies": latencies,
        "axis": bucket_axis(latencies, BOUNDS_MS),
    }


def seconds(day: str) -> int:
    """The begin of a UTC day, in seconds since 1970."""
    return int(datetime.combine(date.fromisoformat(day), time(), UTC).timestamp())


def routes(site: Site) -> list[Route]:
    """`/cost`."""

    async def show(request: Request, visitor: Visitor) -> Response:
        parameters = {name: value.strip() for name, value in request.query_params.items()}
        since, error = parameters.get("since") or SINCE, None
        now = site.clock()
        try:
            period = parse_period(since, now)
        except ValueError as exc:
            period, error = parse_period(SINCE, now), str(exc)
        pool = parameters.get("pool") or None
        return page.render(
            site,
            "cost.html",
            visitor,
            **await read(site, visitor, period, pool),
            since=since,
            pool=pool,
            pools=sorted({*site.settings.pools, *([pool] if pool else ())}),
            period=period,
            error=error,
            seconds=seconds,
            periods=("1d", "7d", "30d", "90d"),
        )

    return [page.route(site, "/cost", show)]
