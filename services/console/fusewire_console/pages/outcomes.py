"""The list of outcomes: filters that stand in the address, pages by time, and CSV."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire.analysis.period import parse_time
from fusewire_console.access import Visitor
from fusewire_console.pages import page
from fusewire_console.site import Site
from fusewire_console.views import Rows

PAGE_ROWS = 50
DEGRADED = {"yes": "o.is_degraded", "no": "NOT o.is_degraded"}
EQUAL_COLUMNS = ("pool", "status", "batch_id", "tenant")
STATUSES = ("fused", "selected", "voted", "single", "failed", "expired", "cancelled")
COLUMNS = """o.outcome_id, o.finished_at, o.tenant, o.pool, o.mode, o.status, o.is_degraded,
  o.degraded_reasons, o.winner_model, o.n_asked, o.n_answered, o.agreement, o.latency_ms,
  o.cost_usd, o.custom_id, o.batch_id"""


@dataclass(frozen=True)
class OutcomeFilter:
    """Which outcomes are listed; None or "" does not choose."""

    parameters: Mapping[str, str]
    """As they stand in the address."""
    conditions: tuple[str, ...] = ()
    values: Mapping[str, object] = field(default_factory=dict)
    error: str | None = None
    """What is wrong with a parameter, which then chooses nothing."""

    @property
    def where(self) -> str:
        """The conditions, to follow WHERE."""
        return " AND ".join(("{o.tenant}", *self.conditions))


def parse(parameters: Mapping[str, str], now: datetime) -> OutcomeFilter:
    """Read the filter from the parameters of an address."""
    filters = {name: value.strip() for name, value in parameters.items() if value.strip()}
    values: dict[str, object] = {name: filters[name] for name in EQUAL_COLUMNS if name in filters}
    conditions = [f"o.{name} = :{name}" for name in values]
    if condition := DEGRADED.get(filters.get("degraded", "")):
        conditions.append(condition)
    if "q" in filters:
        conditions.append("(o.outcome_id = :q OR o.custom_id = :q)")
        values["q"] = filters["q"]
    since, error = _time(filters.get("since"), now)
    if since:
        conditions.append("o.finished_at >= :since")
        values["since"] = since
    return OutcomeFilter(filters, tuple(conditions), values, error)


def _time(text: str | None, now: datetime) -> tuple[datetime | None, str | None]:
    """A time, or what is wrong with it."""
    try:
        return (parse_time(text, now), None) if text else (None, None)
    except ValueError as exc:
        return None, str(exc)


async def read(site: Site, visitor: Visitor, which: OutcomeFilter, before: str | None) -> Rows:
    """Read a page of outcomes, the newest first, and one more if there is one.

    Args:
        site: the parts.
        visitor: who asks.
        which: the filter.
        before: `TIME,ID` of the last outcome of the page before.
    """
    where, values = which.where, dict(which.values)
    if before and (position := page.position(before)):
        where += " AND (o.finished_at < :at OR o.finished_at = :at AND o.outcome_id < :id)"
        # Alone it would be enough for the index.
        where += " AND o.finished_at <= :at"
        values |= position
    return await site.views.of_tenant(
        visitor,
        f"""SELECT {COLUMNS} FROM v_outcome o WHERE {where}
        ORDER BY o.finished_at DESC, o.outcome_id DESC LIMIT {PAGE_ROWS + 1}""",
        values,
    )


def _pools(site: Site, visitor: Visitor) -> list[str]:
    """The names of the pools that the visitor may know."""
    pools = site.settings.pools
    if visitor.is_operator:
        return sorted(pools)
    return sorted(site.settings.tenant(visitor.tenant).usable_pools(pools))


def routes(site: Site) -> list[Route]:
    """`/outcomes`."""

    async def show(request: Request, visitor: Visitor) -> Response:
        which = parse(request.query_params, site.clock())
        before = request.query_params.get("before")
        rows = await read(site, visitor, which, before)
        more = rows[PAGE_ROWS - 1] if len(rows) > PAGE_ROWS else None
        return page.render(
            site,
            "outcomes.html",
            visitor,
            outcomes=rows[:PAGE_ROWS],
            which=which,
            next_before=more and f"{more['finished_at'].isoformat()},{more['outcome_id']}",
            is_first=not before,
            pools=_pools(site, visitor),
            statuses=STATUSES,
        )

    return [page.route(site, "/outcomes", show)]
