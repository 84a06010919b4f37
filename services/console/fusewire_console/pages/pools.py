"""What fusing gives over the best single model, and what each member of a pool adds."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire.analysis.reports.pool import PoolRow, PoolRows, pool_report
from fusewire_console.access import Visitor
from fusewire_console.charts import Axis
from fusewire_console.figures.pool_value import (
    CLOSING_MEANINGS,
    MemberValue,
    describe_lift,
    member_values,
    value_plot,
)
from fusewire_console.pages import page, pool_choice
from fusewire_console.pages.pool_choice import RECENT_OUTCOMES
from fusewire_console.site import Site

TOTALS = """
SELECT pool, SUM(outcomes) AS outcomes, SUM(degraded) AS degraded, SUM(failed) AS failed,
  SUM(fallbacks) AS fallbacks, SUM(disagreements) AS disagreements
FROM v_pool_day WHERE pool = :pool GROUP BY pool
"""
_RECENT = f"""(SELECT outcome_id, pool, accepted, closed_by FROM v_outcome
  WHERE pool = :pool AND NOT is_replay ORDER BY finished_at DESC LIMIT {RECENT_OUTCOMES}) r"""
CLOSINGS = f"""SELECT r.pool, r.closed_by, COUNT(*) AS n FROM {_RECENT}
WHERE r.closed_by IS NOT NULL GROUP BY r.pool, r.closed_by"""
# A model that is several members of a pool is right where any of them is. What was not asked for a
# prompt is neither right nor wrong.
RIGHTS = f"""
SELECT pool, model, fused_right, single_right, COUNT(*) AS n FROM (
  SELECT r.pool, a.model, r.outcome_id, MAX(CASE WHEN r.accepted THEN 1 ELSE 0 END) AS fused_right,
    MAX(CASE WHEN a.is_right THEN 1 ELSE 0 END) AS single_right
  FROM {_RECENT} JOIN v_answer a ON a.outcome_id = r.outcome_id
  WHERE r.accepted IS NOT NULL AND a.status <> 'unasked' GROUP BY r.pool, a.model, r.outcome_id
) rights GROUP BY pool, model, fused_right, single_right
"""


async def read(site: Site, visitor: Visitor, pool: str) -> PoolRow | None:
    """What a pool gives; None if it has no outcomes.

    Sums are of all outcomes; how panels closed, and the paired lift, of the newest ones.
    """
    values = {"pool": pool}

    async def fetch(sql: str) -> list[dict[str, object]]:
        return await site.views.of_all(visitor, sql, values)

    totals = await fetch(TOTALS)
    if not totals:
        return None
    report = pool_report(
        PoolRows(
            days=totals,
            lifts=await fetch("SELECT * FROM v_lift WHERE pool = :pool"),
            pairs=await fetch(RIGHTS),
            ablations=await fetch("SELECT * FROM v_ablation WHERE pool = :pool"),
            closings=await fetch(CLOSINGS),
        )
    )
    return report.pools[0]


async def read_members(
    site: Site, visitor: Visitor, row: PoolRow | None
) -> tuple[MemberValue, ...]:
    """What each model of a pool adds, and costs per outcome."""
    if row is None:
        return ()
    counts = await site.views.of_all(
        visitor,
        "SELECT model, SUM(asked) AS asked FROM v_model WHERE pool = :pool GROUP BY model",
        {"pool": row.pool},
    )
    return member_values(row.ablations, {it["model"]: int(it["asked"]) for it in counts})


def routes(site: Site) -> list[Route]:
    """`/pools`."""

    async def show(request: Request, visitor: Visitor) -> Response:
        choice = await pool_choice.read(site, visitor, request.query_params)
        row = await read(site, visitor, choice.pool)
        members = await read_members(site, visitor, row)
        plot, not_drawn = value_plot(members)
        return page.render(
            site,
            "pools.html",
            visitor,
            choice=choice,
            row=row,
            lifts={lift.audit_source: lift for lift in row.lifts} if row else {},
            describe_lift=describe_lift,
            closings=CLOSING_MEANINGS,
            members=members,
            plot=plot,
            not_drawn=not_drawn,
            whole_axis=Axis(0.0, 1.0),
            n_recent=RECENT_OUTCOMES,
        )

    return [page.route(site, "/pools", show)]
