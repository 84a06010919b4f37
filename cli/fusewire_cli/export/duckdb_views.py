"""The file `views.duckdb.sql`: DuckDB's views of an export, under the names of the database's.

The views of sums are defined over the views of rows, since files hold no sums that are kept up to
date. Each counts what `fusewire.store.summaries` counts.
"""

import os
from pathlib import Path

from fusewire.store.views import View, ViewColumn
from fusewire_cli.export import manifest, selects
from fusewire_cli.export.manifest import Manifest

NAME = "views.duckdb.sql"
_TYPES = {
    "text": "VARCHAR",
    "integer": "BIGINT",
    "real": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMPTZ",
}
_HEAD = """\
-- Views of this export for DuckDB 1.4 or newer; needs no extension and no network.
-- Paths are relative to where DuckDB runs: start it in this folder,
--   duckdb -init views.duckdb.sql
-- or say first where the folder is:
--   SET file_search_path = '/path/to/this/folder';
SET TimeZone = 'UTC';
"""

_POOL_DAY = """
  day, pool, strategy, config_hash,
  COUNT(*) AS outcomes,
  COUNT(*) FILTER (status IN ('failed', 'expired')) AS failed,
  COUNT(*) FILTER (status = 'cancelled') AS cancelled,
  COUNT(*) FILTER (verdict_parse = 'fallback') AS fallbacks,
  COUNT(*) FILTER (is_degraded) AS degraded,
  COUNT(*) FILTER (agreement < 1 AND answer_kind <> 'open') AS disagreements,
  COUNT(*) FILTER (verdict_parse = 'repaired') AS verdicts_repaired,
  CASE WHEN COUNT(cost_usd) = COUNT(*) THEN SUM(cost_usd) END AS cost_usd,
  COUNT(*) - COUNT(cost_usd) AS n_unpriced,
  COUNT(accepted) AS labelled,
  COUNT(*) FILTER (accepted) AS accepted,
  CASE WHEN COUNT(cost_usd) = COUNT(*) AND COUNT(accepted) = COUNT(*)
    THEN SUM(cost_usd) / NULLIF(COUNT(*) FILTER (accepted), 0) END AS cost_per_accepted_usd,
  COALESCE(SUM(cost_usd), 0) AS cost_priced_usd
FROM v_outcome WHERE NOT is_replay GROUP BY ALL"""

_TENANT_DAY = """
  day, tenant,
  COUNT(*) AS outcomes,
  COUNT(*) FILTER (status IN ('failed', 'expired')) AS failed,
  COUNT(*) FILTER (status = 'cancelled') AS cancelled,
  COUNT(*) FILTER (is_degraded) AS degraded,
  CASE WHEN COUNT(cost_usd) = COUNT(*) THEN SUM(cost_usd) END AS cost_usd,
  COUNT(*) - COUNT(cost_usd) AS n_unpriced,
  COALESCE(SUM(cost_usd), 0) AS cost_priced_usd
FROM v_outcome WHERE NOT is_replay GROUP BY ALL"""

_MODEL = """
  a.pool, a.model, a.tier,
  COUNT(*) FILTER (a.status <> 'unasked') AS asked,
  COUNT(*) FILTER (a.status = 'ok') AS answered,
  COUNT(*) FILTER (a.status IN ('error', 'missing')) AS failed,
  COUNT(*) FILTER (a.is_winner) AS wins,
  COUNT(*) FILTER (a.is_winner) / NULLIF(COUNT(*) FILTER (a.status = 'ok'), 0) AS win_share,
  COUNT(*) FILTER (a.status IN ('error', 'missing'))
    / NULLIF(COUNT(*) FILTER (a.status <> 'unasked'), 0) AS failure_rate,
  COUNT(*) FILTER (o.accepted IS NOT NULL AND a.status <> 'unasked') AS labelled,
  COUNT(*) FILTER (o.accepted IS NOT NULL AND a.is_right) AS rights,
  COUNT(*) FILTER (o.accepted IS NOT NULL AND a.is_right)
    / NULLIF(COUNT(*) FILTER (o.accepted IS NOT NULL AND a.status <> 'unasked'), 0) AS accuracy,
  CASE WHEN COUNT(*) FILTER (a.status = 'ok' AND a.cost_usd IS NULL) = 0
    THEN COALESCE(SUM(a.cost_usd), 0) END AS cost_usd,
  CASE WHEN COUNT(*) FILTER (a.status = 'ok' AND a.cost_usd IS NULL) = 0
    THEN COALESCE(SUM(a.cost_usd), 0) / NULLIF(COUNT(*) FILTER (a.is_winner), 0)
    END AS cost_per_win_usd,
  CAST(COALESCE(SUM(a.tokens_in), 0) AS BIGINT) AS tokens_in,
  CAST(COALESCE(SUM(a.tokens_out), 0) AS BIGINT) AS tokens_out,
  CAST(COALESCE(SUM(a.tokens_in), 0) + COALESCE(SUM(a.tokens_out), 0) AS BIGINT) AS tokens,
  COUNT(*) FILTER (a.status = 'ok' AND a.cost_usd IS NULL) AS n_unpriced,
  COALESCE(SUM(a.cost_usd), 0) AS cost_priced_usd
FROM v_answer a JOIN v_outcome o USING (outcome_id)
WHERE NOT o.is_replay"""

_SUMS: dict[str, tuple[tuple[str, ...], str]] = {
    "v_pool_day": (
        ("v_outcome",),
        f"SELECT{_POOL_DAY}",
    ),
    "v_tenant_day": (
        ("v_outcome",),
        f"SELECT{_TENANT_DAY}",
    ),
    "v_model_day": (
        ("v_outcome", "v_answer"),
        f"SELECT o.day,{_MODEL}\nGROUP BY o.day, a.pool, a.model, a.tier HAVING asked > 0",
    ),
    "v_model": (
        ("v_outcome", "v_answer"),
        f"SELECT{_MODEL}\nGROUP BY a.pool, a.model, a.tier HAVING asked > 0",
    ),
    "v_win_matrix": (
        ("v_answer", "v_verdict", "v_pair"),
        """\
WITH wins AS (
  SELECT pool, judge_model,
    CASE verdict WHEN 'A' THEN model_a ELSE model_b END AS winner,
    CASE verdict WHEN 'A' THEN model_b ELSE model_a END AS loser
  FROM v_pair
  WHERE model_a <> model_b AND (is_by_margin OR (is_consistent AND call < swap_of))
), ties AS (
  SELECT DISTINCT p.outcome_id, p.call, p.pool, p.judge_model, w.model AS winner, l.model AS loser
  FROM v_pair p
  JOIN v_verdict v ON v.outcome_id = p.outcome_id AND v.call = p.call
  JOIN v_verdict s ON s.outcome_id = p.outcome_id AND s.call = p.swap_of
  JOIN v_answer w ON w.outcome_id = p.outcome_id AND w.member = v.winner
  JOIN v_answer l ON l.outcome_id = p.outcome_id AND l.member = s.winner
  WHERE NOT p.is_consistent AND p.call < p.swap_of AND w.model <> l.model
), sides AS (
  SELECT pool, judge_model, winner AS model, loser AS opponent, 1 AS win, 0 AS tie FROM wins
  UNION ALL SELECT pool, judge_model, loser, winner, 0, 0 FROM wins
  UNION ALL SELECT pool, judge_model, winner, loser, 0, 1 FROM ties
  UNION ALL SELECT pool, judge_model, loser, winner, 0, 1 FROM ties
)
SELECT pool, judge_model, model, opponent, COUNT(*) AS n, CAST(SUM(win) AS BIGINT) AS wins,
  CAST(SUM(tie) AS BIGINT) AS ties, SUM(win + 0.5 * tie) / COUNT(*) AS win_rate
FROM sides GROUP BY ALL""",
    ),
    "v_judge_bias": (
        ("v_verdict",),
        """\
SELECT pool, judge_model,
  COUNT(*) AS presentations,
  COUNT(*) FILTER (winner_position = 1) AS first_wins,
  COUNT(*) FILTER (winner_position = 2) AS second_wins,
  COUNT(*) FILTER (winner_position = 1) / COUNT(*) AS first_win_rate,
  SUM(CAST(1 AS DOUBLE) / n_shown) / COUNT(*) AS fair_first_rate,
  COUNT(is_consistent) // 2 AS swapped,
  COUNT(*) FILTER (NOT is_consistent) // 2 AS flips,
  COUNT(*) FILTER (winner_position = longest_position) AS longer_wins,
  COUNT(longest_position) AS longer_shown,
  COUNT(*) FILTER (is_own_family_winner AND n_own_family < n_shown) AS own_family_wins,
  COUNT(*) FILTER (n_own_family BETWEEN 1 AND n_shown - 1) AS own_family_shown,
  COUNT(*) FILTER (verdict_parse = 'repaired') AS repaired,
  COUNT(*) FILTER (verdict_parse = 'reasked') AS reasked
FROM v_verdict WHERE winner IS NOT NULL AND control IS NULL GROUP BY ALL""",
    ),
    "v_latency": (
        ("v_outcome", "v_answer"),
        """\
-- Exact percentiles in ms; NULL where fewer than 30 were measured. v_latency_hist has buckets.
WITH times AS (
  SELECT pool, 'total' AS stage, CAST(NULL AS VARCHAR) AS model, latency_ms AS ms
  FROM v_outcome WHERE NOT is_replay
  UNION ALL SELECT pool, 'panel', NULL, panel_ms FROM v_outcome WHERE NOT is_replay
  UNION ALL SELECT pool, 'judge', judge_model, judge_ms FROM v_outcome WHERE NOT is_replay
  UNION ALL SELECT a.pool, 'call', a.model, a.latency_ms
  FROM v_answer a JOIN v_outcome o USING (outcome_id) WHERE NOT o.is_replay
)
SELECT pool, stage, model, COUNT(*) AS n,
  CASE WHEN COUNT(*) >= 30 THEN quantile_cont(ms, 0.5) END AS p50_ms,
  CASE WHEN COUNT(*) >= 30 THEN quantile_cont(ms, 0.9) END AS p90_ms,
  CASE WHEN COUNT(*) >= 30 THEN quantile_cont(ms, 0.95) END AS p95_ms,
  CASE WHEN COUNT(*) >= 30 THEN quantile_cont(ms, 0.99) END AS p99_ms
FROM times WHERE ms IS NOT NULL GROUP BY ALL""",
    ),
}


def statements(content: Manifest) -> str:
    """The file's text: views of the files of a manifest, and of sums over them."""
    parts = [_HEAD]
    for name, files in content.views.items():
        select = _select(selects.BY_NAME[name], content.format, is_empty=not files.files)
        parts.append(f"CREATE OR REPLACE VIEW {name} AS\n{select};\n")
    for name, (sources, sql) in _SUMS.items():
        if name not in content.views and all(source in content.views for source in sources):
            parts.append(f"CREATE OR REPLACE VIEW {name} AS\n{sql};\n")
    return "\n".join(parts)


def _select(view: View, form: str, *, is_empty: bool) -> str:
    if is_empty:
        # DuckDB refuses to read no file.
        nothing = ", ".join(f"CAST(NULL AS {_TYPES[c.type]}) AS {c.name}" for c in view.columns)
        return f"SELECT {nothing} WHERE false"
    names = ", ".join(column.name for column in view.columns)
    is_partitioned = view.name in selects.BY_DAY
    path = f"'{view.name}/{'day=*/' if is_partitioned else ''}part-0.{form}'"
    columns = "{" + ", ".join(_column_type(column) for column in view.columns) + "}"
    if form == "parquet":
        hive = ", hive_partitioning = true, hive_types = {day: DATE}" if is_partitioned else ""
        return f"SELECT {names} FROM read_parquet({path}, union_by_name = true{hive})"
    if form == "csv":
        rules = "header = true, delim = ',', quote = '\"', escape = '\"', auto_detect = false"
        nulls = "nullstr = '', allow_quoted_nulls = false, hive_partitioning = false"
        return f"SELECT {names} FROM read_csv({path}, {rules}, {nulls}, columns = {columns})"
    rules = "format = 'newline_delimited', hive_partitioning = false"
    return f"SELECT {names} FROM read_json({path}, {rules}, columns = {columns})"


def _column_type(column: ViewColumn) -> str:
    return f"{column.name}: '{_TYPES[column.type]}'"


def write(folder: Path, content: Manifest, temporary: Path) -> None:
    """Replace the file in a folder."""
    path = temporary / NAME
    with path.open("w", encoding="utf-8") as file:
        file.write(statements(content))
        file.flush()
        os.fsync(file.fileno())
    manifest.replace(path, folder / NAME)
