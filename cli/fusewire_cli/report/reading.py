"""What the reports read: statements on the views, the same on both databases."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

from fusewire.analysis.reports.cost import CostKey, CostRows
from fusewire.analysis.reports.drift import DriftRows
from fusewire.analysis.reports.judge import JudgeRows
from fusewire.analysis.reports.leaderboard import LeaderboardRows
from fusewire.analysis.reports.period import Period
from fusewire.analysis.reports.pool import PoolRows
from fusewire.store.analyst import Analyst

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ReportFilter:
    """Which outcomes a report is about; None: all."""

    pool: str | None = None
    judge: str | None = None
    period: Period | None = None

    def equals(self, prefix: str = "", judge: str = "judge_model") -> "Condition":
        """The condition on pool and judge; `judge` is the column of the latter, "" for none."""
        condition = Condition()
        if self.pool is not None:
            condition = condition.also(f"{prefix}pool = :pool", pool=self.pool)
        if self.judge is not None and judge:
            condition = condition.also(f"{prefix}{judge} = :judge", judge=self.judge)
        return condition

    def days(self) -> "Condition":
        """The condition on pool and `day`, of views of sums by day."""
        condition = self.equals(judge="")
        if self.period is None:
            return condition
        condition = condition.also("day <= :last_day", last_day=self.period.last)
        if self.period.first is not None:
            condition = condition.also("day >= :first_day", first_day=self.period.first)
        return condition

    def times(self, column: str = "finished_at") -> "Condition":
        """The condition on the time of an outcome, for which there is an index."""
        if self.period is None:
            return Condition()
        end = datetime.combine(self.period.last + timedelta(days=1), time(), UTC)
        condition = Condition().also(f"{column} < :end_at", end_at=end)
        if self.period.first is not None:
            begin = datetime.combine(self.period.first, time(), UTC)
            condition = condition.also(f"{column} >= :begin_at", begin_at=begin)
        return condition


@dataclass(frozen=True)
class Condition:
    """What stands after WHERE, and its parameters."""

    parts: tuple[str, ...] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)

    def also(self, part: str, **parameters: object) -> "Condition":
        """This condition and one more."""
        return replace(
            self, parts=(*self.parts, part), parameters={**self.parameters, **parameters}
        )

    def join(self, other: "Condition") -> "Condition":
        """This condition and another one."""
        parameters = {**self.parameters, **other.parameters}
        return Condition((*self.parts, *other.parts), parameters)

    @property
    def sql(self) -> str:
        """The WHERE clause."""
        return f"WHERE {' AND '.join(self.parts)}" if self.parts else ""


async def _fetch(analyst: Analyst, sql: str, condition: Condition) -> Rows:
    return await analyst.fetch(sql.replace("{where}", condition.sql), condition.parameters)


async def read_pools(analyst: Analyst) -> list[str]:
    """The pools that have outcomes or judged replays."""
    records = await analyst.fetch(
        "SELECT pool FROM v_pool_day UNION SELECT pool FROM v_judge_bias ORDER BY pool"
    )
    return [record["pool"] for record in records]


# -- leaderboard ------------------------------------------------------------------------------

# As the sums by day define it (fusewire.store.sums): of a judge that named the same answer in
# both orders one verdict counts, and of one that did not, a tie of the two that it named.
_PAIRS = """
SELECT pool, judge_model, results, COUNT(*) AS n FROM (
  SELECT pool, judge_model, outcome_id, {concat}(result, ',') AS results FROM (
    SELECT p.pool, p.judge_model, p.outcome_id,
      CASE WHEN p.verdict = 'A' THEN p.model_a ELSE p.model_b END
      || CASE WHEN p.is_by_margin OR p.is_consistent THEN '>' ELSE '=' END
      || CASE WHEN p.verdict = 'A' THEN p.model_b ELSE p.model_a END AS result
    FROM v_outcome o JOIN v_pair p ON p.outcome_id = o.outcome_id
    LEFT JOIN v_verdict s ON s.outcome_id = p.outcome_id AND s.call = p.swap_of
    {where}
  ) comparisons GROUP BY pool, judge_model, outcome_id
) outcomes GROUP BY pool, judge_model, results
"""
_COUNTED = """(p.is_by_margin OR (p.call < p.swap_of AND (p.is_consistent
  OR s.winner = CASE WHEN p.verdict = 'A' THEN p.member_b ELSE p.member_a END)))"""


async def read_pairs(analyst: Analyst, which: ReportFilter) -> Rows:
    """Comparisons of each outcome, as counts of outcomes with the same ones."""
    condition = which.equals("p.").join(which.times("o.finished_at"))
    condition = condition.also("p.model_a <> p.model_b").also(_COUNTED)
    concat = "group_concat" if analyst.is_sqlite else "string_agg"
    return await _fetch(analyst, _PAIRS.replace("{concat}", concat), condition)


async def read_leaderboard(
    analyst: Analyst, which: ReportFilter, earlier: Period | None
) -> LeaderboardRows:
    """Rows of the leaderboard, with the comparisons of an earlier period."""
    earlier_pairs: Rows = []
    if earlier:
        earlier_pairs = await read_pairs(analyst, replace(which, period=earlier))
    calls = which.days().also("stage = 'call'")
    return LeaderboardRows(
        models=await _fetch(analyst, "SELECT * FROM v_model_day {where}", which.days()),
        latencies=await _fetch(
            analyst,
            "SELECT pool, model, bucket_ms, SUM(n) AS n FROM v_latency_hist {where}"
            " GROUP BY pool, model, bucket_ms",
            calls,
        ),
        pairs=await read_pairs(analyst, which),
        own_families=await _fetch(
            analyst,
            "SELECT pool, judge_model, own_family_shown FROM v_judge_bias {where}",
            which.equals(),
        ),
        deciders=await analyst.fetch(
            "SELECT DISTINCT pool, model FROM v_latency_hist WHERE stage = 'judge'"
        ),
        earlier_pairs=earlier_pairs,
    )


# -- judge ------------------------------------------------------------------------------------

_VERDICTS = """
SELECT pool, judge_model,
  SUM(CASE WHEN control IS NULL AND winner IS NOT NULL AND longest_position IS NOT NULL
    THEN 1.0 / n_shown ELSE 0.0 END) AS fair_longer,
  SUM(CASE WHEN control IS NULL AND winner IS NOT NULL
    AND n_own_family BETWEEN 1 AND n_shown - 1
    THEN 1.0 * n_own_family / n_shown ELSE 0.0 END) AS fair_own_family,
  SUM(CASE WHEN control IS NOT NULL THEN 1 ELSE 0 END) AS controls,
  SUM(CASE WHEN is_control_winner THEN 1 ELSE 0 END) AS control_wins
FROM v_verdict {where} GROUP BY pool, judge_model
"""
_LABELS = """
SELECT pool, judge_model, COUNT(*) AS n, SUM(is_accepted) AS accepted, SUM(has_right) AS oracle,
  SUM(is_accepted * has_right) AS accepted_of_oracle
FROM (
  SELECT o.pool, o.judge_model, CASE WHEN o.accepted THEN 1 ELSE 0 END AS is_accepted,
    CASE WHEN EXISTS (
      SELECT 1 FROM v_answer a WHERE a.outcome_id = o.outcome_id AND a.is_right
    ) THEN 1 ELSE 0 END AS has_right
  FROM v_outcome o {where}
) judged GROUP BY pool, judge_model
"""


async def read_judge(analyst: Analyst, which: ReportFilter) -> JudgeRows:
    """Rows of the report on judges."""
    label_condition = (
        which.equals("o.").also("o.accepted IS NOT NULL").also("o.judge_model IS NOT NULL")
    )
    vote_condition = which.equals().also("judge_model IS NOT NULL")
    return JudgeRows(
        biases=await _fetch(analyst, "SELECT * FROM v_judge_bias {where}", which.equals()),
        verdicts=await _fetch(analyst, _VERDICTS, which.equals()),
        votes=await _fetch(
            analyst,
            "SELECT pool, judge_model, choice, winner, agrees FROM v_vote {where}",
            vote_condition,
        ),
        labels=await _fetch(analyst, _LABELS, label_condition),
        days=await _fetch(
            analyst,
            "SELECT pool, SUM(outcomes) AS outcomes, SUM(fallbacks) AS fallbacks"
            " FROM v_pool_day {where} GROUP BY pool",
            which.equals(judge=""),
        ),
    )


# -- cost -------------------------------------------------------------------------------------

_COSTS = """
SELECT {key} AS key, COUNT(*) AS outcomes, COUNT(cost_usd) AS priced, SUM(cost_usd) AS usd,
  SUM(cost_usd * cost_usd) AS usd_squares,
  SUM(CASE WHEN cost_usd IS NOT NULL THEN cost_panel_usd END) AS panel_usd,
  SUM(CASE WHEN cost_usd IS NOT NULL THEN cost_judge_usd END) AS judge_usd,
  SUM(cost_late_usd) AS late_usd,
  SUM(CASE WHEN accepted IS NOT NULL AND cost_usd IS NOT NULL THEN 1 ELSE 0 END) AS labelled,
  SUM(CASE WHEN accepted AND cost_usd IS NOT NULL THEN 1 ELSE 0 END) AS accepted,
  SUM(CASE WHEN accepted IS NOT NULL THEN cost_usd END) AS labelled_usd
FROM v_outcome {where}
"""
_MEMBER_COSTS = """
SELECT a.model, a.tier, SUM(CASE WHEN a.status = 'ok' THEN 1 ELSE 0 END) AS calls,
  SUM(CASE WHEN a.status = 'ok' AND a.cost_usd IS NULL THEN 1 ELSE 0 END) AS unpriced,
  SUM(a.cost_usd) AS usd
FROM v_outcome o JOIN v_answer a ON a.outcome_id = o.outcome_id {where}
GROUP BY a.model, a.tier
"""
_JUDGE_COSTS = """
SELECT judge_model AS model, COUNT(*) AS calls, COUNT(*) - COUNT(cost_judge_usd) AS unpriced,
  SUM(cost_judge_usd) AS usd
FROM v_outcome {where} GROUP BY judge_model
"""


async def read_costs(analyst: Analyst, which: ReportFilter, by: CostKey) -> CostRows:
    """Rows of the report on costs."""
    plain = which.equals(judge="").join(which.times()).also("NOT is_replay")
    answer_condition = which.equals("o.", judge="").join(which.times("o.finished_at"))
    groups: Rows = []
    if by is not CostKey.model:
        by_key = _COSTS.replace("{key}", by.value) + f"GROUP BY {by.value} ORDER BY {by.value}"
        groups = await _fetch(analyst, by_key, plain)
    return CostRows(
        totals=await _fetch(analyst, _COSTS.replace("{key}", "'all'"), plain),
        groups=groups,
        members=await _fetch(analyst, _MEMBER_COSTS, answer_condition.also("NOT o.is_replay")),
        judges=await _fetch(analyst, _JUDGE_COSTS, plain.also("judge_model IS NOT NULL")),
    )


# -- drift ------------------------------------------------------------------------------------


async def read_drift(analyst: Analyst, which: ReportFilter) -> DriftRows:
    """Rows of one period."""
    plain = which.equals(judge="").join(which.times()).also("NOT is_replay")
    return DriftRows(
        days=await _fetch(analyst, "SELECT * FROM v_pool_day {where}", which.days()),
        models=await _fetch(analyst, "SELECT * FROM v_model_day {where}", which.days()),
        latencies=await _fetch(
            analyst,
            "SELECT pool, stage, model, bucket_ms, SUM(n) AS n FROM v_latency_hist {where}"
            " GROUP BY pool, stage, model, bucket_ms",
            which.days().also("stage IN ('total', 'call')"),
        ),
        costs=await _fetch(
            analyst,
            "SELECT pool, COUNT(cost_usd) AS priced, SUM(cost_usd) AS usd,"
            " SUM(cost_usd * cost_usd) AS usd_squares FROM v_outcome {where} GROUP BY pool",
            plain,
        ),
    )


# -- pool -------------------------------------------------------------------------------------

# A model that is several members of a pool is right where any of them is. What was not asked for a
# prompt is neither right nor wrong.
_RIGHTS = """
SELECT pool, model, fused_right, single_right, COUNT(*) AS n FROM (
  SELECT o.pool, a.model, o.outcome_id, MAX(CASE WHEN o.accepted THEN 1 ELSE 0 END) AS fused_right,
    MAX(CASE WHEN a.is_right THEN 1 ELSE 0 END) AS single_right
  FROM v_outcome o JOIN v_answer a ON a.outcome_id = o.outcome_id {where}
  GROUP BY o.pool, a.model, o.outcome_id
) rights GROUP BY pool, model, fused_right, single_right
"""


async def read_pool(analyst: Analyst, which: ReportFilter) -> PoolRows:
    """Rows of the report on pools."""
    own, answer_condition = which.equals(judge=""), which.equals("o.", judge="")
    answer_condition = answer_condition.also("o.accepted IS NOT NULL").also("NOT o.is_replay")
    return PoolRows(
        days=await _fetch(analyst, "SELECT * FROM v_pool_day {where}", own),
        lifts=await _fetch(analyst, "SELECT * FROM v_lift {where}", own),
        pairs=await _fetch(analyst, _RIGHTS, answer_condition.also("a.status <> 'unasked'")),
        ablations=await _fetch(analyst, "SELECT * FROM v_ablation {where}", own),
        closings=await _fetch(
            analyst,
            "SELECT pool, closed_by, COUNT(*) AS n FROM v_outcome {where} GROUP BY pool, closed_by",
            own.also("NOT is_replay").also("closed_by IS NOT NULL"),
        ),
    )
