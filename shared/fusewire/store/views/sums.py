"""Views of sums by day, pool, model and judge, from the summary tables.

Sums are cast, since PostgreSQL's SUM of whole numbers is a decimal.
"""

from fusewire.store.views.view import View, ViewColumn, integer, real, text

_DAY = ViewColumn("day", "UTC day on which outcomes were decided", "t.day", type="date")


def _sum(column: str) -> str:
    return f"CAST(SUM(t.{column}) AS bigint)"


def _count(name: str, comment: str, column: str | None = None) -> ViewColumn:
    return integer(name, comment, _sum(column or name))


def _share(numerator: str, denominator: str) -> str:
    """SQL for a share; NULL of nothing."""
    return f"CAST(SUM({numerator}) AS double precision) / NULLIF(SUM(t.{denominator}), 0)"


_COST = "CASE WHEN SUM(t.n_unpriced) = 0 THEN SUM(t.cost_usd) END"
_PRICED_COST = real(
    "cost_priced_usd",
    "the same, without what has no known price",
    "SUM(t.cost_usd)",
)
_TIER = "CASE t.tier WHEN 'remote' THEN 'hosted' ELSE t.tier END"

V_POOL_DAY = View(
    "v_pool_day",
    "One row per day, pool, mode and configuration. Replays are left out.",
    (
        _DAY,
        text("pool", "the pool", "t.pool"),
        text("strategy", "best-of, merge, debate or verify", "t.mode"),
        text("config_hash", "equal for equal pool and models", "NULLIF(t.config_hash, '')"),
        _count("outcomes", "outcomes"),
        _count("failed", "those that failed or expired"),
        _count("cancelled", "those that were cancelled"),
        _count("fallbacks", "those that a rule decided because the judge could not"),
        _count("degraded", "those in which something was missing or failed"),
        _count("disagreements", "those with closed answers that were not all the same"),
        _count(
            "verdicts_repaired", "those whose verdict was mended before it was read", "repaired"
        ),
        real("cost_usd", "of members and judges; NULL when any price is unknown", _COST),
        _count("n_unpriced", "outcomes whose cost is unknown"),
        _count("labelled", "outcomes with a gold label"),
        _count("accepted", "those that are right by it"),
        real(
            "cost_per_accepted_usd",
            "cost_usd / accepted; NULL unless every outcome has a label",
            "CASE WHEN SUM(t.n_unpriced) = 0 AND SUM(t.labelled) = SUM(t.outcomes)"
            " THEN SUM(t.cost_usd) / NULLIF(SUM(t.accepted), 0) END",
        ),
        _PRICED_COST,
    ),
    "pool_days t GROUP BY t.day, t.pool, t.mode, t.config_hash HAVING SUM(t.outcomes) > 0",
)

V_TENANT_DAY = View(
    "v_tenant_day",
    "One row per day and tenant. Replays are left out.",
    (
        _DAY,
        text("tenant", "who submitted the prompts", "t.tenant"),
        _count("outcomes", "outcomes"),
        _count("failed", "those that failed or expired"),
        _count("cancelled", "those that were cancelled"),
        _count("degraded", "those in which something was missing or failed"),
        real("cost_usd", "of members and judges; NULL when any price is unknown", _COST),
        _count("n_unpriced", "outcomes whose cost is unknown"),
        _PRICED_COST,
    ),
    "pool_days t GROUP BY t.day, t.tenant HAVING SUM(t.outcomes) > 0",
)

_MODEL_COLUMNS = (
    text("pool", "the pool", "t.pool"),
    text("model", "the model's configured name", "t.model"),
    text("tier", "edge or hosted", _TIER),
    _count("asked", "times it was asked"),
    _count("answered", "times it answered in time"),
    _count("failed", "times it did not"),
    _count("wins", "outcomes that are its answer, as judged or voted"),
    real("win_share", "wins / answered", _share("t.wins", "answered")),
    real("failure_rate", "failed / asked", _share("t.failed", "asked")),
    _count("labelled", "times it was asked for something with a gold label"),
    _count("rights", "those in which its first answer was right"),
    real("accuracy", "rights / labelled", _share("t.rights", "labelled")),
    real("cost_usd", "of its answers; NULL when any price is unknown", _COST),
    real(
        "cost_per_win_usd",
        "cost_usd / wins",
        "CASE WHEN SUM(t.n_unpriced) = 0 THEN SUM(t.cost_usd) / NULLIF(SUM(t.wins), 0) END",
    ),
    _count("tokens_in", "prompt tokens, as far as they were counted"),
    _count("tokens_out", "completion tokens, likewise"),
    integer("tokens", "both", "CAST(SUM(t.tokens_in + t.tokens_out) AS bigint)"),
    _count("n_unpriced", "answers whose cost is unknown"),
    _PRICED_COST,
)
V_MODEL_DAY = View(
    "v_model_day",
    "One row per day, pool and model. Replays are left out.",
    (_DAY, *_MODEL_COLUMNS),
    "model_days t GROUP BY t.day, t.pool, t.model, t.tier HAVING SUM(t.asked) > 0",
)
V_MODEL = View(
    "v_model",
    "One row per pool and model. Replays are left out.",
    _MODEL_COLUMNS,
    "model_days t GROUP BY t.pool, t.model, t.tier HAVING SUM(t.asked) > 0",
)

V_ABLATION = View(
    "v_ablation",
    "One row per pool and model: what would be lost without it, from labelled prompts."
    " `fusewire ablate` decides each outcome again.",
    (
        text("pool", "the pool", "t.pool"),
        text("model", "the model's configured name", "t.model"),
        _count("n", "prompts with a gold label that it was asked", "labelled"),
        real(
            "score_loss",
            "share of n whose outcome is right, and whose only right answer is this model's",
            _share("t.losses", "labelled"),
        ),
        real(
            "sole_best_rate",
            "share of n whose only right answer is this model's: the loss of a perfect judge",
            _share("t.sole_rights", "labelled"),
        ),
        _count("wins", "outcomes that are its answer"),
        _count("sole_wins", "those in which no other member said the same"),
        real("cost_usd", "of its answers; NULL when any price is unknown", _COST),
        real(
            "cost_per_point",
            "cost_usd per percentage point of score_loss",
            "CASE WHEN SUM(t.n_unpriced) = 0 THEN SUM(t.cost_usd) * SUM(t.labelled)"
            " / NULLIF(100.0 * SUM(t.losses), 0) END",
        ),
    ),
    "model_days t GROUP BY t.pool, t.model HAVING SUM(t.asked) > 0",
)

V_WIN_MATRIX = View(
    "v_win_matrix",
    "One row per pool, judge and two models, in both directions, as that judge judged: answers"
    " that it compared in both orders, or by margin. It is a tie if each order had another winner.",
    (
        text("pool", "the pool", "t.pool"),
        text("judge_model", "who judged", "t.judge_model"),
        text("model", "the model", "t.model"),
        text("opponent", "the other one", "t.opponent"),
        _count("n", "comparisons"),
        _count("wins", "those that the model won"),
        _count("ties", "ties"),
        real("win_rate", "wins and half of the ties, of n", _share("t.wins + 0.5 * t.ties", "n")),
    ),
    "pair_days t GROUP BY t.pool, t.judge_model, t.model, t.opponent HAVING SUM(t.n) > 0",
)

V_JUDGE_BIAS = View(
    "v_judge_bias",
    "One row per pool and judge: counts to see by whether its verdicts follow place, length or"
    " family. Verdicts that could be read and held no control.",
    (
        text("pool", "the pool", "t.pool"),
        text("judge_model", "who judged", "t.judge_model"),
        _count("presentations", "verdicts"),
        _count("first_wins", "those for the first shown"),
        _count("second_wins", "those for the second shown"),
        real(
            "first_win_rate",
            "first_wins / presentations; 1 / n_shown were fair",
            _share("t.first_wins", "presentations"),
        ),
        real(
            "fair_first_rate",
            "what first_win_rate would be without a bias",
            _share("t.fair_firsts", "presentations"),
        ),
        integer("swapped", "pairs judged in both orders", "CAST(SUM(t.swapped) / 2 AS bigint)"),
        integer("flips", "those with another winner each", "CAST(SUM(t.flipped) / 2 AS bigint)"),
        _count("longer_wins", "verdicts for the one longest answer"),
        _count("longer_shown", "verdicts among which one was longest"),
        _count("own_family_wins", "verdicts for the judge's own family"),
        _count("own_family_shown", "verdicts with own family and others"),
        _count("repaired", "verdicts mended before they could be read"),
        _count("reasked", "verdicts asked for a second time"),
    ),
    "judge_days t GROUP BY t.pool, t.judge_model HAVING SUM(t.presentations) > 0",
)

V_LATENCY_HIST = View(
    "v_latency_hist",
    "One row per day, pool, stage, model and bucket of latencies. Buckets are the same for ever,"
    " so rows can be added up. Replays are left out.",
    (
        _DAY,
        text("pool", "the pool", "t.pool"),
        text(
            "stage",
            "total, panel (until the last answer used), judge (from its first call on), or call (of"
            " one member)",
            "t.stage",
        ),
        text("model", "the model of a judge or call", "NULLIF(t.model, '')"),
        integer("bucket_ms", "the bucket's upper bound: ten for each power of ten", "t.bucket_ms"),
        _count("n", "outcomes or calls in it"),
    ),
    "latency_days t GROUP BY t.day, t.pool, t.stage, t.model, t.bucket_ms HAVING SUM(t.n) > 0",
)


def _real_sum(number: str) -> str:
    """SQL for a sum that is divided: neither a decimal number nor a whole one."""
    return f"CAST(SUM({number}) AS double precision)"


def _times(condition: str) -> str:
    """SQL for how many rows meet a condition, as a real number."""
    return _real_sum(f"CASE WHEN {condition} THEN 1 ELSE 0 END")


# The choice that most voters of an outcome made; none where two were made as often. A vote for the
# outcome's own answer is one for the winner, whose answer that is; a merge has no winner.
_PLURALITIES = """
    SELECT r.fusion_id, r.choice FROM (
      SELECT s.fusion_id, s.choice, COUNT(*) AS n,
        ROW_NUMBER() OVER (PARTITION BY s.fusion_id ORDER BY COUNT(*) DESC) AS place,
        LEAD(COUNT(*)) OVER (PARTITION BY s.fusion_id ORDER BY COUNT(*) DESC) AS next_n
      FROM (
        SELECT t.fusion_id,
          CASE t.choice WHEN 'fused' THEN COALESCE(o.winner, 'fused') ELSE t.choice END AS choice
        FROM votes t JOIN outcomes o ON o.fusion_id = t.fusion_id WHERE NOT o.is_replay
      ) s GROUP BY s.fusion_id, s.choice
    ) r WHERE r.place = 1 AND r.choice <> 'tie' AND (r.next_n IS NULL OR r.next_n < r.n)"""
_CHOSEN_TIMES = _times("c.choice = a.member")


V_LIFT = View(
    "v_lift",
    "One row per pool and source of truth: is the pool right more often than its best model?",
    (
        text("pool", "the pool", "t.pool"),
        text("audit_source", "gold (labels) or votes (of people)", "t.audit_source"),
        integer("n", "outcomes with a label, or with a choice that most voters made", "t.n"),
        real("fused_score", "share of n whose outcome is right, or was chosen", "t.fused / t.n"),
        text("best_fixed_single", "the model that is right or chosen most often", "t.model"),
        real("best_single_score", "its share of n", "t.single / t.n"),
        real("oracle_score", "share of n with any right or chosen answer", "t.oracle / t.n"),
        real("lift", "fused_score - best_single_score", "(t.fused - t.single) / t.n"),
        real(
            "gap_to_oracle",
            "oracle_score - fused_score; below 0 where merges were right alone",
            "(t.oracle - t.fused) / t.n",
        ),
    ),
    f"""(
  SELECT 'gold' AS audit_source, p.pool, p.n, p.fused, p.oracle, m.model, m.single
  FROM (
    SELECT pool, CAST(SUM(labelled) AS bigint) AS n, {_real_sum("accepted")} AS fused,
      {_real_sum("oracle_right")} AS oracle
    FROM pool_days GROUP BY pool HAVING SUM(labelled) > 0
  ) p JOIN (
    SELECT pool, model, {_real_sum("rights")} AS single,
      ROW_NUMBER() OVER (PARTITION BY pool ORDER BY SUM(rights) DESC, model) AS place
    FROM model_days GROUP BY pool, model HAVING SUM(asked) > 0
  ) m ON m.pool = p.pool AND m.place = 1
  UNION ALL
  SELECT 'votes', p.pool, p.n, p.fused, p.oracle, m.model, m.single
  FROM (
    SELECT o.pool, COUNT(*) AS n,
      {_times("c.choice = 'fused' OR c.choice = o.winner")} AS fused,
      {_times("c.choice <> 'none'")} AS oracle
    FROM ({_PLURALITIES}) c JOIN outcomes o ON o.fusion_id = c.fusion_id GROUP BY o.pool
  ) p JOIN (
    SELECT o.pool, a.model,
      {_CHOSEN_TIMES} AS single,
      ROW_NUMBER() OVER (PARTITION BY o.pool ORDER BY {_CHOSEN_TIMES} DESC, a.model) AS place
    FROM ({_PLURALITIES}) c JOIN outcomes o ON o.fusion_id = c.fusion_id
      JOIN answers a ON a.fusion_id = c.fusion_id
    GROUP BY o.pool, a.model
  ) m ON m.pool = p.pool AND m.place = 1
) t""",
)
