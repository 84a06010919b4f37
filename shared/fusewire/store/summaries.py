"""Sums by day of what is stored of outcomes, so that views answer quickly on millions of them.

`add` is the last step of the transaction that stores outcomes, `subtract` the first of one that
deletes them, and `rebuild` makes the sums of a day anew. All three run the same SELECT on the
tables of outcomes, which is the definition of each sum (docs/decisions/0045).
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import Connection, Table, TextClause, bindparam, func, select, text

from fusewire.store.summary_tables import (
    judge_days,
    latency_days,
    model_days,
    pair_days,
    pool_days,
)
from fusewire.store.tables import UtcDateTime, outcomes

SLOTS = 64
BUCKETS_PER_DECADE = 10
LONGEST_MS = 10_000_000
"""The upper bound of the last latency bucket, which holds longer ones too: close to 3 hours."""


def bucket_bounds() -> list[int]:
    """Return the upper bounds of the latency buckets, in ms: ten for each power of ten.

    A quantile read from them is at most 26 % too high.
    """
    decades = len(str(LONGEST_MS)) - 1
    steps = range(decades * BUCKETS_PER_DECADE + 1)
    return sorted({round(10 ** (step / BUCKETS_PER_DECADE)) for step in steps})


def _bucket(column: str) -> str:
    """SQL for the upper bound of the bucket that holds a latency."""
    ladder = " ".join(f"WHEN {column} <= {bound} THEN {bound}" for bound in bucket_bounds())
    return f"CASE {ladder} ELSE {LONGEST_MS} END"


@dataclass(frozen=True)
class _Dialect:
    """What the two databases write differently."""

    day: str
    chosen: str
    """Whether an outcome is among `:ids`."""
    each_shown: str
    """A join with the members that a verdict `v` shows, as `shown.value`."""
    slot: str


_DIALECTS = {
    "sqlite": _Dialect(
        day="date(o.finished_at)",
        chosen="o.fusion_id IN (SELECT value FROM json_each(:ids))",
        each_shown="JOIN json_each(v.shown) AS shown",
        slot="0",
    ),
    "postgresql": _Dialect(
        day="CAST(o.finished_at AT TIME ZONE 'UTC' AS date)",
        chosen="o.fusion_id = ANY(CAST(:ids AS varchar[]))",
        each_shown="CROSS JOIN LATERAL json_array_elements_text(v.shown::json) AS shown(value)",
        # Connections that write at the same time are different processes of the server.
        slot=f"pg_backend_pid() % {SLOTS}",
    ),
}
_OF_A_DAY = "o.finished_at >= :since AND o.finished_at < :until"


def _count(condition: str) -> str:
    return f"SUM(CASE WHEN {condition} THEN 1 ELSE 0 END)"


_ANY_RIGHT = "SELECT 1 FROM answers a WHERE a.fusion_id = o.fusion_id AND a.is_right"
# Recorded answers that are judged again are not counted a second time: only their verdicts are new.
_POOL_DAYS = f"""
SELECT o.tenant, {{day}} AS day, o.pool, o.mode, COALESCE(o.config_hash, '') AS config_hash,
  COUNT(*) AS outcomes,
  {_count("o.status IN ('failed', 'expired')")} AS failed,
  {_count("o.status = 'cancelled'")} AS cancelled,
  {_count("o.judge_rung = 'fallback'")} AS fallbacks,
  {_count("o.is_degraded")} AS degraded,
  {_count("o.agreement < 1 AND o.answer_kind <> 'open'")} AS disagreements,
  {_count("o.judge_rung = 'repaired'")} AS repaired,
  {_count("o.accepted IS NOT NULL")} AS labelled,
  {_count("o.accepted")} AS accepted,
  {_count(f"o.accepted IS NOT NULL AND EXISTS ({_ANY_RIGHT})")} AS oracle_right,
  {_count("o.cost_usd IS NULL")} AS n_unpriced,
  COALESCE(SUM(o.cost_usd), 0) AS cost_usd
FROM outcomes o WHERE NOT o.is_replay AND {{which}}
GROUP BY 1, 2, 3, 4, 5
"""
_MODEL_DAYS = f"""
SELECT a.tenant, a.day, a.pool, a.model, a.tier,
  {_count("a.status <> 'unasked'")} AS asked,
  {_count("a.status = 'ok'")} AS answered,
  {_count("a.status IN ('error', 'missing')")} AS failed,
  {_count("a.is_winner")} AS wins,
  {_count("a.is_winner AND (a.vote_group IS NULL OR a.n_same = 1)")} AS sole_wins,
  {_count("a.accepted IS NOT NULL AND a.status <> 'unasked'")} AS labelled,
  {_count("a.accepted IS NOT NULL AND a.is_right")} AS rights,
  {_count("a.accepted IS NOT NULL AND a.is_right AND a.n_right = 1")} AS sole_rights,
  {_count("a.accepted AND a.is_right AND a.n_right = 1")} AS losses,
  {_count("a.status = 'ok' AND a.cost_usd IS NULL")} AS n_unpriced,
  COALESCE(SUM(a.tokens_in), 0) AS tokens_in,
  COALESCE(SUM(a.tokens_out), 0) AS tokens_out,
  COALESCE(SUM(a.cost_usd), 0) AS cost_usd
FROM (
  SELECT o.tenant, {{day}} AS day, o.pool, o.accepted, a.model, a.tier, a.status, a.is_winner,
    a.is_right, a.vote_group, a.cost_usd, a.tokens_in, a.tokens_out,
    {_count("a.is_right")} OVER (PARTITION BY a.fusion_id) AS n_right,
    COUNT(*) OVER (PARTITION BY a.fusion_id, a.vote_group) AS n_same
  FROM outcomes o JOIN answers a ON a.fusion_id = o.fusion_id
  WHERE NOT o.is_replay AND {{which}}
) a
GROUP BY 1, 2, 3, 4, 5
"""
# A judge that named the same answer in both orders says one thing, not two, so one of the two
# verdicts counts. One that did not, made no difference between the two that it named.
_PAIR_DAYS = """
WITH pairs AS (
  SELECT o.tenant, {day} AS day, o.pool, v.judge_model, w.model AS winner, l.model AS loser,
    0 AS is_tie
  FROM outcomes o JOIN verdicts v ON v.fusion_id = o.fusion_id
  {each_shown}
  JOIN answers w ON w.fusion_id = v.fusion_id AND w.member = v.winner
  JOIN answers l ON l.fusion_id = v.fusion_id AND l.member = shown.value
  WHERE {which} AND v.void IS NULL AND v.kind <> 'guard' AND w.model <> l.model
    AND (v.is_by_margin OR (v.is_consistent AND v.call < v.swap_of))
  UNION ALL
  SELECT o.tenant, {day}, o.pool, v.judge_model, w.model, l.model, 1
  FROM outcomes o JOIN verdicts v ON v.fusion_id = o.fusion_id
  JOIN verdicts s ON s.fusion_id = v.fusion_id AND s.call = v.swap_of
  JOIN answers w ON w.fusion_id = v.fusion_id AND w.member = v.winner
  JOIN answers l ON l.fusion_id = v.fusion_id AND l.member = s.winner
  WHERE {which} AND v.void IS NULL AND v.kind <> 'guard' AND w.model <> l.model
    AND NOT v.is_consistent AND v.call < v.swap_of
)
SELECT tenant, day, pool, judge_model, model, opponent,
  COUNT(*) AS n, SUM(wins) AS wins, SUM(is_tie) AS ties
FROM (
  SELECT tenant, day, pool, judge_model, winner AS model, loser AS opponent, 1 - is_tie AS wins,
    is_tie FROM pairs
  UNION ALL
  SELECT tenant, day, pool, judge_model, loser, winner, 0, is_tie FROM pairs
) sides
GROUP BY 1, 2, 3, 4, 5, 6
"""
_JUDGE_DAYS = f"""
SELECT o.tenant, {{day}} AS day, o.pool, v.judge_model,
  COUNT(*) AS presentations,
  {_count("v.winner_position = 1")} AS first_wins,
  {_count("v.winner_position = 2")} AS second_wins,
  {_count("v.is_consistent IS NOT NULL")} AS swapped,
  {_count("NOT v.is_consistent")} AS flipped,
  {_count("v.winner_position = v.longest_position")} AS longer_wins,
  {_count("v.longest_position IS NOT NULL")} AS longer_shown,
  {_count("v.is_own_family_winner AND v.n_own_family < v.n_shown")} AS own_family_wins,
  {_count("v.n_own_family BETWEEN 1 AND v.n_shown - 1")} AS own_family_shown,
  {_count("v.rung = 'repaired'")} AS repaired,
  {_count("v.rung = 'reasked'")} AS reasked,
  SUM(1.0 / v.n_shown) AS fair_firsts
FROM outcomes o JOIN verdicts v ON v.fusion_id = o.fusion_id
WHERE {{which}} AND v.winner IS NOT NULL AND v.control IS NULL
GROUP BY 1, 2, 3, 4
"""
_LATENCY_DAYS = f"""
SELECT tenant, day, pool, stage, model, {_bucket("ms")} AS bucket_ms, COUNT(*) AS n
FROM (
  SELECT o.tenant, {{day}} AS day, o.pool, 'total' AS stage, '' AS model, o.latency_ms AS ms
  FROM outcomes o WHERE NOT o.is_replay AND {{which}}
  UNION ALL
  SELECT o.tenant, {{day}}, o.pool, 'panel', '', o.panel_ms
  FROM outcomes o WHERE NOT o.is_replay AND o.panel_ms IS NOT NULL AND {{which}}
  UNION ALL
  SELECT o.tenant, {{day}}, o.pool, 'judge', COALESCE(o.judge_model, ''), o.judge_ms
  FROM outcomes o WHERE NOT o.is_replay AND o.judge_ms IS NOT NULL AND {{which}}
  UNION ALL
  SELECT o.tenant, {{day}}, o.pool, 'call', a.model, a.latency_ms
  FROM outcomes o JOIN answers a ON a.fusion_id = o.fusion_id
  WHERE NOT o.is_replay AND a.latency_ms IS NOT NULL AND {{which}}
) times
GROUP BY 1, 2, 3, 4, 5, 6
"""

_SELECTS: tuple[tuple[Table, str], ...] = (
    (pool_days, _POOL_DAYS),
    (model_days, _MODEL_DAYS),
    (pair_days, _PAIR_DAYS),
    (judge_days, _JUDGE_DAYS),
    (latency_days, _LATENCY_DAYS),
)


def _upsert(table: Table, sums: str, dialect: str, *, by_id: bool) -> TextClause:
    """The statement that adds the sums of some outcomes to a table, `:sign` times."""
    words = _DIALECTS[dialect]
    which = words.chosen if by_id else _OF_A_DAY
    inner = sums.format(day=words.day, which=which, each_shown=words.each_shown)
    keys = [column.name for column in table.primary_key if column.name != "slot"]
    amounts = [column.name for column in table.columns if not column.primary_key]
    signed = ", ".join(f"CAST(:sign AS integer) * {amount}" for amount in amounts)
    added = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in amounts)
    statement = (
        f"INSERT INTO {table.name} ({', '.join([*keys, 'slot', *amounts])})"
        f" SELECT {', '.join(keys)}, {words.slot}, {signed} FROM ({inner}) sums"
        # All writers in the same order, or two of them could wait for each other. The condition
        # keeps SQLite from reading ON CONFLICT as a join's.
        f" WHERE true ORDER BY {', '.join(keys)}"
        f" ON CONFLICT ({', '.join([*keys, 'slot'])}) DO UPDATE SET {added}"
    )
    if by_id:
        return text(statement)
    return text(statement).bindparams(
        bindparam("since", type_=UtcDateTime()), bindparam("until", type_=UtcDateTime())
    )


# Built once, as building a statement takes longer than running it.
_ADD_BY_ID = {
    dialect: [_upsert(table, sums, dialect, by_id=True) for table, sums in _SELECTS]
    for dialect in _DIALECTS
}
_ADD_DAY = {
    dialect: [_upsert(table, sums, dialect, by_id=False) for table, sums in _SELECTS]
    for dialect in _DIALECTS
}


def add(connection: Connection, fusion_ids: Collection[str]) -> None:
    """Add stored outcomes to the sums: the last statements of the transaction that stored them."""
    _change(connection, fusion_ids, 1)


def subtract(connection: Connection, fusion_ids: Collection[str]) -> None:
    """Take outcomes out of the sums, in the transaction that deletes them, before it does."""
    _change(connection, fusion_ids, -1)


def _change(connection: Connection, fusion_ids: Collection[str], sign: int) -> None:
    if not fusion_ids:
        return
    dialect = connection.dialect.name
    ids: Any = sorted(fusion_ids)
    if dialect == "sqlite":
        ids = json.dumps(ids)
    for statement in _ADD_BY_ID[dialect]:
        connection.execute(statement, {"ids": ids, "sign": sign})


def days(connection: Connection) -> list[date]:
    """Return the days, in UTC, that have outcomes or sums."""
    first, last = connection.execute(
        select(func.min(outcomes.c.finished_at), func.max(outcomes.c.finished_at))
    ).one()
    with_sums = set()
    for table, _ in _SELECTS:
        with_sums |= set(connection.execute(select(table.c.day).distinct()).scalars())
    if first is None:
        return sorted(with_sums)
    n_days = (last.date() - first.date()).days + 1
    return sorted(with_sums | {first.date() + timedelta(days=number) for number in range(n_days)})


def rebuild_day(connection: Connection, day: date) -> None:
    """Make the sums of a UTC day anew, as `add` would have made them."""
    dialect = connection.dialect.name
    if dialect == "postgresql":
        # Judges that have added to the sums commit first; others add to the new ones.
        names = ", ".join(table.name for table, _ in _SELECTS)
        connection.execute(text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    for table, _ in _SELECTS:
        connection.execute(table.delete().where(table.c.day == day))
    since = datetime.combine(day, time(), UTC)
    period = {"since": since, "until": since + timedelta(days=1), "sign": 1}
    for statement in _ADD_DAY[dialect]:
        connection.execute(statement, period)


def rebuild(connection: Connection) -> None:
    """Make all sums anew."""
    for day in days(connection):
        rebuild_day(connection, day)
