"""The overview: what runs, how fast, what it costs, what went wrong, and the newest outcomes."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire.store.analyst import QueryError
from fusewire_console.access import Visitor
from fusewire_console.api import ApiError
from fusewire_console.figures import activity
from fusewire_console.pages import page
from fusewire_console.site import Site
from fusewire_console.views import Rows

MINUTES = 15
DAYS = 14
WEEK_DAYS = 7
NEWEST = 10
SAMPLE = 1000
"""Of so many of the newest outcomes the reasons of failures are read."""
MOST_REASONS = 8
EDGE_MINUTES = 5
EDGE_SAMPLE = 2000
"""So many outcomes at most are read for the speed of edge models."""

_DAYS = """
SELECT day, SUM(outcomes) AS outcomes, SUM(failed) AS failed, SUM(degraded) AS degraded,
  SUM(n_unpriced) AS n_unpriced, SUM(cost_priced_usd) AS cost_priced_usd
FROM v_tenant_day WHERE {tenant} AND day >= :first GROUP BY day
"""
_MINUTES = """
SELECT minute, COUNT(*) AS outcomes FROM (
  SELECT {text} AS minute FROM v_outcome o WHERE {o.tenant} AND o.finished_at >= :since
) minutes GROUP BY minute
"""
_NEWEST = f"""
SELECT o.outcome_id, o.finished_at, o.tenant, o.pool, o.status, o.is_degraded, o.winner_model,
  o.latency_ms, o.cost_usd
FROM v_outcome o WHERE {{o.tenant}} ORDER BY o.finished_at DESC, o.outcome_id DESC LIMIT {NEWEST}
"""
_REASONS = f"""
SELECT status, error, degraded_reasons, COUNT(*) AS n FROM (
  SELECT o.status, o.error, o.degraded_reasons, o.is_degraded FROM v_outcome o
  WHERE {{o.tenant}} ORDER BY o.finished_at DESC LIMIT {SAMPLE}
) newest
WHERE is_degraded OR status IN ('failed', 'expired') GROUP BY status, error, degraded_reasons
"""
_EDGE = f"""
WITH newest AS (
  SELECT o.outcome_id, o.finished_at FROM v_outcome o
  WHERE {{o.tenant}} AND o.finished_at >= :since ORDER BY o.finished_at DESC LIMIT {EDGE_SAMPLE}
)
SELECT SUM(a.tokens_out) AS tokens, (SELECT COUNT(*) FROM newest) AS outcomes,
  (SELECT MIN(finished_at) FROM newest) AS first_at
FROM newest n JOIN v_answer a ON a.outcome_id = n.outcome_id WHERE a.tier = 'edge'
"""


@dataclass(frozen=True)
class StoredStatistics:
    """What the database says."""

    days: list[activity.DayCount]
    minutes: list[activity.TimeCount]
    newest: Rows
    reasons: list[activity.ReasonCount]
    edge_tokens_per_s: float | None

    @property
    def per_minute(self) -> float:
        """Outcomes per minute, of the whole minutes."""
        return sum(minute.outcomes for minute in self.minutes[:-1]) / MINUTES


@dataclass
class PageContent:
    """What the page shows; None is what did not answer, and `faults` say why."""

    statistics: StoredStatistics | None = None
    status: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever fused."""
        return self.statistics is not None and not self.statistics.newest


async def read_stored(site: Site, visitor: Visitor, now: datetime) -> StoredStatistics:
    """Read the views. One statement after the other: each has a connection of its own."""
    fetch = site.views.of_tenant
    today = now.date()
    minute_text = "substr(o.finished_at, 1, 16)"
    if not site.views.is_sqlite:
        minute_text = "to_char(o.finished_at, 'YYYY-MM-DD HH24:MI')"
    first_minute = now.replace(second=0, microsecond=0) - timedelta(minutes=MINUTES)
    edge_since = now - timedelta(minutes=EDGE_MINUTES)

    days = await fetch(visitor, _DAYS, {"first": today - timedelta(days=DAYS - 1)})
    minutes_sql = _MINUTES.replace("{text}", minute_text)
    minutes = await fetch(visitor, minutes_sql, {"since": first_minute})
    newest = await fetch(visitor, _NEWEST)
    reasons = await fetch(visitor, _REASONS)
    edge = await fetch(visitor, _EDGE, {"since": edge_since})
    return StoredStatistics(
        activity.day_counts(days, today, DAYS),
        activity.minute_counts(minutes, now, MINUTES),
        newest,
        activity.reason_counts(reasons),
        activity.tokens_per_s(edge[0], now, edge_since, EDGE_SAMPLE),
    )


async def read(site: Site, visitor: Visitor, now: datetime, *, with_budget: bool) -> PageContent:
    """Read all that answers. Raises ApiError where the visitor's key is valid no more."""
    overview = PageContent()

    async def ask_database() -> None:
        try:
            overview.statistics = await read_stored(site, visitor, now)
        except QueryError as exc:
            overview.faults.append(f"The database gave no result: {exc}.")

    async def ask_api() -> None:
        try:
            overview.status = await site.api.get(visitor.key, "/v1/status")
            if with_budget:
                overview.budget = await read_budget(site, visitor)
        except ApiError as exc:
            if exc.status == 401:
                raise
            overview.faults.append(f"The API did not tell what runs: {exc.message}.")

    await asyncio.gather(ask_database(), ask_api())
    return overview


async def read_budget(site: Site, visitor: Visitor) -> dict[str, Any]:
    """The limit of the visitor's key or tenant, and what is spent of it. Raises ApiError."""
    reply = await site.api.get(visitor.key, "/api/v1/key")
    budget: dict[str, Any] = reply["data"]
    return budget


def routes(site: Site) -> list[Route]:
    """`/`; htmx asks for the live part, and seldom for that of the budget."""

    async def show(request: Request, visitor: Visitor) -> Response:
        is_part = page.is_part(request)
        if is_part and request.query_params.get("part") == "budget":
            return page.render(
                site, "overview_budget.html", visitor, budget=await read_budget(site, visitor)
            )
        # The API reads all outcomes of a tenant for what was spent, so not every few seconds.
        overview = await read(site, visitor, site.clock(), with_budget=not is_part)
        response = page.render(
            site,
            "overview_live.html" if is_part else "overview.html",
            visitor,
            overview=overview,
            budget=overview.budget,
            today=overview.statistics and overview.statistics.days[-1],
            degraded_today=overview.statistics
            and activity.degraded_rate(overview.statistics.days[-1:]),
            degraded_week=overview.statistics
            and activity.degraded_rate(overview.statistics.days[-WEEK_DAYS:]),
            queues=activity.queue_sums((overview.status or {}).get("queues") or ()),
            api_url=str(site.settings.console.api_url).rstrip("/"),
            limits={"reasons": MOST_REASONS, "sample": SAMPLE, "minutes": MINUTES, "days": DAYS},
        )
        if is_part and request.query_params.get("new") and not overview.is_new:
            # The first outcome is there: the page has another form now.
            response.headers["hx-refresh"] = "true"
        return response

    return [page.route(site, "/", show)]
