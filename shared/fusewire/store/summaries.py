"""The summary tables: sums by day, so that views answer quickly on millions of outcomes.

`add` is the last step of the transaction that stores outcomes, `subtract` the first of one that
deletes them, and `rebuild_day` makes the sums of a day anew (docs/decisions/0045).
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import product
from typing import Any

from sqlalchemy import Connection, Date, Select, Table, TextClause, bindparam, func, select, text

from fusewire.store.summary_tables import (
    judge_days,
    latency_days,
    model_days,
    pair_days,
    pool_days,
)
from fusewire.store.sums import Row, StoredOutcome, add_up
from fusewire.store.tables import answers, outcomes, verdicts

SLOTS = 64
PAGE = 1000
"""How many outcomes are read at once."""

_TABLES = (pool_days, model_days, pair_days, judge_days, latency_days)
# Connections that write at the same time are different processes of PostgreSQL's server.
_SLOT = {"sqlite": "0", "postgresql": f"pg_backend_pid() % {SLOTS}"}


def _names(table: Table) -> list[str]:
    """The columns of a summary table in the order of keys and amounts, without the slot."""
    return [column.name for column in table.columns if column.name != "slot"]


def _upsert(table: Table, dialect: str) -> TextClause:
    """The statement that adds amounts to a row, or inserts it."""
    names = _names(table)
    keys = ", ".join(column.name for column in table.primary_key)
    amounts = [column.name for column in table.columns if not column.primary_key]
    changes = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in amounts)
    # As text: of a constructed statement, the key for the cache takes longer than the database.
    parameters = ", ".join(f":{name}" for name in names)
    return text(
        f"INSERT INTO {table.name} ({', '.join(names)}, slot)"
        f" VALUES ({parameters}, {_SLOT[dialect]})"
        f" ON CONFLICT ({keys}) DO UPDATE SET {changes}"
    ).bindparams(bindparam("day", type_=Date()))


_UPSERTS = {
    (dialect, table.name): _upsert(table, dialect) for dialect, table in product(_SLOT, _TABLES)
}
_COLUMNS = {table.name: _names(table) for table in _TABLES}


def add(connection: Connection, stored_outcomes: Sequence[StoredOutcome], sign: int = 1) -> None:
    """Add outcomes to the sums: the last statements of the transaction that stores them."""
    dialect = connection.dialect.name
    for name, sums in add_up(stored_outcomes, sign).items():
        columns = _COLUMNS[name]
        # All writers in the same order, or two of them could wait for each other.
        rows = [dict(zip(columns, (*key, *sums[key]), strict=True)) for key in sorted(sums)]
        if rows:
            connection.execute(_UPSERTS[dialect, name], rows)


def subtract(connection: Connection, fusion_ids: Collection[str]) -> None:
    """Take outcomes out of the sums, in the transaction that deletes them, before it does."""
    keys = sorted(fusion_ids)
    for start in range(0, len(keys), PAGE):
        add(connection, _read(connection, keys[start : start + PAGE]), sign=-1)


def days(connection: Connection) -> list[date]:
    """Return the days, in UTC, that have outcomes or sums."""
    first, last = connection.execute(
        select(func.min(outcomes.c.finished_at), func.max(outcomes.c.finished_at))
    ).one()
    all_days: set[date] = set()
    for table in _TABLES:
        all_days |= set(connection.execute(select(table.c.day).distinct()).scalars())
    if first is not None:
        n_days = (last.date() - first.date()).days + 1
        all_days |= {first.date() + timedelta(days=number) for number in range(n_days)}
    return sorted(all_days)


def rebuild_day(connection: Connection, day: date) -> None:
    """Make the sums of a UTC day anew, as `add` would have made them."""
    if connection.dialect.name == "postgresql":
        # Judges that have added to the sums commit first; others add to the new ones.
        names = ", ".join(table.name for table in _TABLES)
        connection.execute(text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    for table in _TABLES:
        connection.execute(table.delete().where(table.c.day == day))
    for keys in _pages_of_day(connection, day):
        add(connection, _read(connection, keys))


def rebuild(connection: Connection) -> None:
    """Make all sums anew."""
    for day in days(connection):
        rebuild_day(connection, day)


def _pages_of_day(connection: Connection, day: date) -> Iterator[list[str]]:
    """The ids of the outcomes of a UTC day, by pages."""
    since = datetime.combine(day, time(), UTC)
    of_day = outcomes.c.finished_at.between(since, since + timedelta(days=1, microseconds=-1))
    keys = list(connection.execute(select(outcomes.c.fusion_id).where(of_day)).scalars())
    for start in range(0, len(keys), PAGE):
        yield keys[start : start + PAGE]


def _columns(table: Table, names: str) -> Select[Any]:
    return select(*(table.columns[name] for name in names.split(" ")))


# Without texts, of which nothing is counted.
_OUTCOMES = _columns(
    outcomes,
    "fusion_id tenant finished_at pool mode config_hash is_replay accepted agreement answer_kind"
    " status judge_rung judge_model is_degraded cost_usd latency_ms panel_ms judge_ms",
)
_ANSWERS = _columns(
    answers,
    "fusion_id member model tier status is_winner is_right vote_group cost_usd tokens_in tokens_out"
    " latency_ms",
)


def _read(connection: Connection, fusion_ids: Sequence[str]) -> list[StoredOutcome]:
    """Read outcomes with their answers and verdicts."""
    answer_rows = _by_fusion(connection, _ANSWERS.where(answers.c.fusion_id.in_(fusion_ids)))
    verdict_rows = _by_fusion(
        connection, select(verdicts).where(verdicts.c.fusion_id.in_(fusion_ids))
    )
    outcome_rows = _by_fusion(connection, _OUTCOMES.where(outcomes.c.fusion_id.in_(fusion_ids)))
    return [
        StoredOutcome(row, answer_rows[fusion_id], verdict_rows[fusion_id])
        for fusion_id, (row,) in outcome_rows.items()
    ]


def _by_fusion(connection: Connection, query: Select[Any]) -> defaultdict[str, list[Row]]:
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        rows[row["fusion_id"]].append(dict(row))
    return rows
