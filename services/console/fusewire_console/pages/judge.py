"""Whether the judges of a pool can be trusted."""

from itertools import chain

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusewire.analysis.reports.judge import JudgeReport, JudgeRows, judge_report
from fusewire_console.access import Visitor
from fusewire_console.charts import Axis, axis
from fusewire_console.figures.judge import (
    agreement_figures,
    bias_figures,
    care_figures,
    with_recent,
)
from fusewire_console.pages import page, pool_choice
from fusewire_console.pages.pool_choice import RECENT_OUTCOMES
from fusewire_console.site import Site

MOST_VOTES = 5000
"""Votes that are read, the newest first."""
_RECENT = f"""(SELECT outcome_id, pool, judge_model, accepted FROM v_outcome
  WHERE pool = :pool ORDER BY finished_at DESC LIMIT {RECENT_OUTCOMES}) r"""
# As the sums by day define it (fusewire.store.sums): verdicts that could be read, without control.
_COUNTS = "v.control IS NULL AND v.winner IS NOT NULL"
_HAS_LONGEST = f"{_COUNTS} AND v.longest_position IS NOT NULL"
_HAS_FAMILY = f"{_COUNTS} AND v.n_own_family BETWEEN 1 AND v.n_shown - 1"
VERDICTS = f"""
SELECT v.pool, v.judge_model,
  SUM(CASE WHEN {_HAS_LONGEST} THEN 1 ELSE 0 END) AS longer_shown,
  SUM(CASE WHEN {_HAS_LONGEST} AND v.winner_position = v.longest_position
    THEN 1 ELSE 0 END) AS longer_wins,
  SUM(CASE WHEN {_HAS_LONGEST} THEN 1.0 / v.n_shown ELSE 0.0 END) AS fair_longer,
  SUM(CASE WHEN {_HAS_FAMILY} THEN 1 ELSE 0 END) AS own_family_shown,
  SUM(CASE WHEN {_HAS_FAMILY} AND v.is_own_family_winner THEN 1 ELSE 0 END) AS own_family_wins,
  SUM(CASE WHEN {_HAS_FAMILY} THEN 1.0 * v.n_own_family / v.n_shown ELSE 0.0 END)
    AS fair_own_family,
  SUM(CASE WHEN v.control IS NOT NULL THEN 1 ELSE 0 END) AS controls,
  SUM(CASE WHEN v.is_control_winner THEN 1 ELSE 0 END) AS control_wins
FROM {_RECENT} JOIN v_verdict v ON v.outcome_id = r.outcome_id GROUP BY v.pool, v.judge_model
"""
LABELS = f"""
SELECT pool, judge_model, COUNT(*) AS n, SUM(is_accepted) AS accepted,
  SUM(has_right) AS oracle, SUM(is_accepted * has_right) AS accepted_of_oracle
FROM (
  SELECT r.pool, r.judge_model, CASE WHEN r.accepted THEN 1 ELSE 0 END AS is_accepted,
    CASE WHEN EXISTS (
      SELECT 1 FROM v_answer a WHERE a.outcome_id = r.outcome_id AND a.is_right
    ) THEN 1 ELSE 0 END AS has_right
  FROM {_RECENT} WHERE r.accepted IS NOT NULL AND r.judge_model IS NOT NULL
) judged GROUP BY pool, judge_model
"""
# Votes are few and outcomes many: `|| ''` keeps a database from beginning with the pool's index.
VOTES = f"""SELECT pool, judge_model, choice, winner, agrees FROM v_vote
WHERE pool || '' = :pool AND judge_model IS NOT NULL ORDER BY changed_at DESC LIMIT {MOST_VOTES}"""
FALLBACKS = """SELECT pool, SUM(outcomes) AS outcomes, SUM(fallbacks) AS fallbacks FROM v_pool_day
WHERE pool = :pool GROUP BY pool"""


async def read(site: Site, visitor: Visitor, pool: str) -> JudgeReport:
    """Check each judge of a pool.

    Place, flips and parsing are of all verdicts; length, family, controls and labels are of the
    newest outcomes, for which no sums hold what would be fair.
    """
    values = {"pool": pool}

    async def fetch(sql: str) -> list[dict[str, object]]:
        return await site.views.of_all(visitor, sql, values)

    biases = await fetch("SELECT * FROM v_judge_bias WHERE pool = :pool")
    verdicts = await fetch(VERDICTS) if biases else []
    return judge_report(
        JudgeRows(
            biases=with_recent(biases, verdicts),
            verdicts=verdicts,
            votes=await fetch(VOTES),
            labels=await fetch(LABELS) if biases else [],
            days=await fetch(FALLBACKS),
        )
    )


def routes(site: Site) -> list[Route]:
    """`/judge`."""

    async def show(request: Request, visitor: Visitor) -> Response:
        choice = await pool_choice.read(site, visitor, request.query_params)
        report = await read(site, visitor, choice.pool)
        judges = [
            (row, bias_figures(row), care_figures(row), agreement_figures(row))
            for row in report.judges
        ]
        biases = chain.from_iterable(figures for _, figures, _, _ in judges)
        return page.render(
            site,
            "judge.html",
            visitor,
            choice=choice,
            judges=judges,
            fallbacks=report.pools[0].fallbacks if report.pools else None,
            tests=report.tests,
            bias_axis=axis([rate.high for figure in biases if (rate := figure.rate) and rate.n]),
            whole_axis=Axis(0.0, 1.0),
            n_recent=RECENT_OUTCOMES,
        )

    return [page.route(site, "/judge", show)]
