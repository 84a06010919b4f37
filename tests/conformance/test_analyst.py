"""The analysts' read-only connection, on SQLite and on PostgreSQL."""

import asyncio
import contextlib
import datetime as dt
import re
import sqlite3
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from fusewire.settings import Database
from fusewire.store.analyst import Analyst, QueryFailed, QueryRefused, QueryTimeout, sqlite
from fusewire.store.analyst.result import size
from fusewire.store.analyst.saved import built_in
from fusewire.store.audit import Action, insert_action
from fusewire.store.engine import Store
from fusewire.store.tables import metadata
from fusewire.store.views import VIEWS
from fusewire.testing.analyst_role import as_analyst
from fusewire.testing.planted import Truth, fill

NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
SECRET = "the s3cr3t prompt"


async def plant(database: Database, count: int) -> None:
    store = Store(database)
    await fill(store, Truth(now=NOW), count, 7)
    await store.close()


@pytest.fixture
async def analyst(database: Database) -> AsyncIterator[Analyst]:
    """On a database with planted outcomes."""
    await plant(database, 200)
    async with Analyst(await as_analyst(database), timeout_s=20) as analyst:
        yield analyst


@dataclass
class Escape:
    """A statement that no analyst may get anything by."""

    sql: str
    ends: str = "refused"
    """refused (also by an error of the database), timeout, harmless (it gives a result), or any of
    them, as long as its chunks are small."""


def refused(*statements: str) -> list[Escape]:
    return [Escape(sql) for sql in statements]


# What both databases are asked.
ESCAPES = [
    *refused(
        "DELETE FROM outcomes",
        "INSERT INTO votes SELECT * FROM votes",
        "UPDATE prompts SET pool = 'x'",
        "DROP VIEW v_outcome",
        "DROP TABLE outcomes",
        "CREATE TABLE t (a integer)",
        "CREATE TEMP TABLE t AS SELECT 1",
        "CREATE VIEW mine AS SELECT * FROM prompts",
        "ALTER TABLE prompts ADD COLUMN x text",
        "SELECT * FROM prompts",
        "SELECT body FROM prompts LIMIT 1",
        "SELECT hash FROM api_keys",
        "SELECT count(*) FROM api_keys",
        "SELECT 1 FROM api_keys",
        "SELECT EXISTS (SELECT 1 FROM api_keys)",
        "SELECT body FROM candidates",
        "SELECT * FROM v_outcome o JOIN prompts p ON p.fusion_id = o.outcome_id",
        "SELECT (SELECT max(body) FROM prompts) FROM v_outcome",
        "SELECT outcome_id FROM v_outcome UNION ALL SELECT body FROM prompts",
        "SELECT * FROM (SELECT * FROM prompts) AS v_event",
        "WITH v_event AS (SELECT * FROM prompts) SELECT body FROM v_event",
        "WITH v_outcome AS (SELECT body FROM prompts) SELECT * FROM v_outcome, v_event",
        "WITH x AS (DELETE FROM votes RETURNING *) SELECT * FROM x",
        "WITH x AS (SELECT 1) DELETE FROM outcomes",
        "EXPLAIN DELETE FROM outcomes",
        "SELECT 1; DELETE FROM outcomes",
        "SELECT 1;\nSELECT 2",
        "/* SELECT */ DELETE FROM outcomes",
        "-- SELECT\nDELETE FROM outcomes",
        "SELECT 1 /* */; --\nDELETE FROM outcomes",
        "SELECT 1) AS q; DELETE FROM outcomes; SELECT * FROM (SELECT 1",
        "(DELETE FROM outcomes)",
        "BEGIN",
        "COMMIT",
        "SAVEPOINT a",
        "VACUUM",
        "ANALYZE",
        "REINDEX",
        "",
        "-- nothing",
    ),
    Escape(
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
        "timeout",
    ),
    Escape("SELECT count(*) FROM v_answer a, v_answer b, v_answer c, v_answer d", "timeout"),
    Escape("SELECT 'DELETE FROM outcomes; DROP TABLE prompts' AS a", "harmless"),
]
SQLITE_ESCAPES = [
    *refused(
        "ATTACH 'other.db' AS other",
        "DETACH main",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "SELECT * FROM pragma_table_info('prompts')",
        "SELECT count(*) FROM pragma_database_list",
        "SELECT load_extension('evil')",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('evil', 'x')",
        "SELECT edit('x')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT * FROM sqlite_master",
        "SELECT sql FROM sqlite_schema",
        "SELECT sql FROM sqlite_temp_master",
        "SELECT sql FROM temp.sqlite_schema",
        "SELECT count(*) FROM sqlite_schema",
        "SELECT * FROM main.prompts",
        "SELECT * FROM main.v_event",
        "SELECT rowid FROM prompts",
        "SELECT * FROM sqlite_stat1",
        "SELECT * FROM sqlite_dbpage",
        "SELECT * FROM dbstat",
        "VACUUM INTO 'copy.db'",
        "EXPLAIN SELECT * FROM prompts",
        "REPLACE INTO votes SELECT * FROM votes",
        'WITH "v_event_0" AS (SELECT * FROM prompts) SELECT * FROM "v_event_0"',
        "SELECT zeroblob(2000000000)",
        "SELECT hex(zeroblob(16000000))",
        "SELECT group_concat(content, replace(printf('%1000000d', 1), ' ', 'x')) FROM v_answer",
    ),
    Escape("SELECT zeroblob(10000000) AS a FROM v_answer LIMIT 8", "harmless"),
    Escape("SELECT printf('%2000000000d', 1)", "harmless"),
]
POSTGRESQL_ESCAPES = [
    *refused(
        "COPY outcomes TO PROGRAM 'cat'",
        "COPY (SELECT 1) TO '/tmp/evil'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT pg_ls_dir('/')",
        "SELECT lo_export(1, '/tmp/evil')",
        "SELECT lo_import('/etc/passwd')",
        "SELECT dblink('dbname=postgres', 'DELETE FROM outcomes')",
        "SET ROLE fusewire",
        "RESET ROLE",
        "SET SESSION AUTHORIZATION fusewire",
        "SELECT set_config('role', 'fusewire', false)",
        "SELECT set_config('session_authorization', 'fusewire', false)",
        "SELECT set_config('transaction_read_only', 'off', true), nextval('s')",
        "SELECT query_to_xml('SELECT body FROM prompts', true, false, '')",
        "SELECT table_to_xml('prompts', true, false, '')",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'fusewire'",
        "DO $$ BEGIN DELETE FROM outcomes; END $$",
        "CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "LISTEN x",
        "NOTIFY x",
        "SELECT * FROM pg_catalog.pg_authid",
        "SELECT passwd FROM pg_shadow",
        "SELECT * INTO t FROM v_outcome",
        "SELECT * INTO TEMP t FROM v_outcome",
        "SELECT * FROM v_outcome FOR UPDATE",
        "SELECT * FROM public.prompts",
        "SELECT nextval('s')",
        "SELECT setval('s', 7)",
        "SELECT currval('s')",
        "SELECT * FROM s",
        "SELECT * FROM pg_statistic",
        "SELECT pg_reload_conf()",
        "SELECT pg_switch_wal()",
        "SELECT pg_create_restore_point('x')",
        "TABLE prompts",
        "SHOW ALL",
        "CALL f()",
        "EXPLAIN ANALYZE DELETE FROM outcomes",
        "EXPLAIN ANALYZE SELECT * FROM prompts",
        "PREPARE x AS DELETE FROM outcomes",
        "GRANT SELECT ON prompts TO PUBLIC",
    ),
    Escape("SELECT pg_sleep(100)", "timeout"),
    Escape("SELECT set_config('statement_timeout', '0', false), pg_sleep(100)", "timeout"),
    Escape("SELECT most_common_vals::text FROM pg_stats WHERE tablename = 'prompts'", "harmless"),
    Escape("SELECT query FROM pg_stat_activity WHERE usename = 'fusewire'", "harmless"),
    Escape("SELECT lo_from_bytea(0, 'abc')", "harmless"),
    Escape("SELECT pg_advisory_lock(7305737)", "harmless"),
    # Only what the role can read.
    Escape("SELECT database_to_xml(true, false, '')", "harmless"),
    Escape("SELECT pg_notify('x', 'y')", "harmless"),
    Escape("SELECT repeat('x', 10000000) AS a FROM generate_series(1, 30)", "any"),
    Escape("SELECT repeat('x', 40000000) AS a", "any"),
    Escape("SELECT repeat('x', 1500000000) AS a", "any"),
    Escape("SELECT array_agg(repeat('x', 1000000)) AS a FROM generate_series(1, 50)", "any"),
]


async def attempt(analyst: Analyst, sql: str) -> tuple[str, int]:
    """How a statement ends, and the most bytes of a chunk."""
    largest = 0
    try:
        async with analyst.stream(sql) as rows:
            async for chunk in rows:
                assert SECRET not in str(chunk)[:100_000]
                largest = max(largest, sum(map(size, chunk)))
    except QueryTimeout:
        return "timeout", largest
    except (QueryRefused, QueryFailed) as exc:
        return "told" if SECRET in str(exc) else "refused", largest
    return "harmless", largest


async def contents(store: Store) -> dict[str, object]:
    """All that is in the database, as a digest of each table, and what else there could be."""
    digests: dict[str, object] = {}
    async with store.read() as connection:
        for table in metadata.sorted_tables:
            rows = (await connection.execute(table.select())).all()
            digests[table.name] = hash(tuple(sorted(map(str, rows))))
        extras = ["SELECT name, sql FROM sqlite_schema ORDER BY 1"]
        if not store.is_sqlite:
            extras = [
                "SELECT relname FROM pg_class WHERE relkind <> 'i' ORDER BY 1",
                "SELECT query FROM pg_stat_activity WHERE usename LIKE 'analyst%'",
                "SELECT oid FROM pg_largeobject_metadata",
                "SELECT last_value, is_called FROM s",
                "SELECT objid FROM pg_locks WHERE locktype = 'advisory'",
                "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
                "SELECT relacl::text FROM pg_class WHERE relname = 'prompts'",
            ]
        for sql in extras:
            digests[sql] = (await connection.execute(text(sql))).all()
    return digests


async def test_no_statement_gets_out(database: Database) -> None:
    await plant(database, 60)
    store = Store(database)
    async with store.write() as connection:
        await connection.execute(text(f"UPDATE prompts SET body = '{SECRET}'"))
        if not store.is_sqlite:
            await connection.execute(text("CREATE SEQUENCE s"))
            await connection.execute(text("SELECT nextval('s')"))
    if not store.is_sqlite:
        async with store.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("ANALYZE prompts"))
    before = await contents(store)
    escapes = ESCAPES + (SQLITE_ESCAPES if store.is_sqlite else POSTGRESQL_ESCAPES)
    assert len(escapes) > 70

    wrong = []
    async with Analyst(await as_analyst(database), timeout_s=1) as analyst:
        for escape in escapes:
            end, largest = await attempt(analyst, escape.sql)
            if escape.ends not in (end, "any") or largest > 40_000_000:
                wrong.append((escape.sql, end, largest))
        assert wrong == [], "\n".join(map(str, wrong))

        await asyncio.sleep(0.2)  # a connection that was ended ends at the server a moment later
        assert await contents(store) == before
        (record,) = await analyst.fetch("SELECT count(*) AS n FROM v_outcome")
        assert record == {"n": 60}
    await store.close()


async def test_each_column_of_each_view_is_of_its_type(database: Database) -> None:
    await plant(database, 300)
    async with Analyst(await as_analyst(database)) as analyst:
        for view in VIEWS:
            async with analyst.stream(f"SELECT * FROM {view.name}") as rows:
                async for chunk in rows:
                    assert chunk
                assert [(c.name, c.type) for c in rows.columns] == [
                    (c.name, c.type) for c in view.columns
                ]
            kinds = {"text": str, "integer": int, "real": float, "boolean": bool}
            kinds |= {"date": dt.date, "timestamp": dt.datetime}
            for record in await analyst.fetch(f"SELECT * FROM {view.name}"):
                for column in view.columns:
                    value = record[column.name]
                    assert value is None or type(value) is kinds[column.type], column


GAPS = """
UPDATE outcomes SET judge_rung = 'fallback', reason = 'first', error = 'x', guard = 'passed',
  tool_calls = '[]' WHERE fusion_id = :first;
UPDATE candidates SET is_late = TRUE WHERE fusion_id = :first;
UPDATE answers SET error_status = 429, provider_code = 'slow', provider_param = 'n'
  WHERE fusion_id = :first;
UPDATE fusions SET plan = replace(
  plan, '{"v":1,', '{"v":1,"route":{"reason":"predicted","loss_points":0.4},')
  WHERE fusion_id = :first;
UPDATE verdicts SET control = 'null', void = 'control'
  WHERE fusion_id = (SELECT max(fusion_id) FROM verdicts);
UPDATE batches SET status = 'in_progress', stop_reason = 'budget', waiting_for = 'a',
  max_cost_usd = 1, options = '{"metadata": {"name": "a", "retry_of": "b"}}'
  WHERE batch_id = (SELECT max(batch_id) FROM batches);
INSERT INTO votes (fusion_id, voter_hash, choice, created_at, changed_at)
  SELECT fusion_id, 'v', 'fused', finished_at, finished_at FROM outcomes
  WHERE fusion_id = (
    SELECT min(fusion_id) FROM outcomes WHERE judge_model IS NOT NULL AND winner IS NOT NULL)
"""
"""Statements that make the planted outcomes have what a judge seldom stores."""


async def test_no_column_of_a_view_is_always_null(database: Database) -> None:
    store = Store(database)
    await fill(store, Truth(now=NOW, gold_share=1.0, batch_size=100), 400, 7)
    async with store.write() as connection:
        first = (await connection.execute(text("SELECT min(fusion_id) FROM outcomes"))).scalar()
        for sql in GAPS.split(";"):
            parameters = {"first": first} if ":first" in sql else {}
            statement = text(re.sub(r"(?<=\"):", r"\\:", sql))
            assert (await connection.execute(statement, parameters)).rowcount
        action = Action(NOW, "operator:ada", "key.revoked", "t", target="0abc", detail={"n": 1})
        await connection.execute(insert_action(action))
    await store.close()
    async with Analyst(await as_analyst(database)) as analyst:
        for view in VIEWS:
            records = await analyst.fetch(f"SELECT * FROM {view.name}")
            empty = [
                column.name
                for column in view.columns
                if all(record[column.name] is None for record in records)
            ]
            assert empty == [], view.name


async def test_parameters_are_bound_by_name(analyst: Analyst) -> None:
    sql = (
        "SELECT count(*) AS n, min(day) AS d, ':no' AS text FROM v_outcome -- :nor this\n"
        "WHERE finished_at >= :since AND day <= :day AND n_asked >= :n AND pool = :pool"
        " AND is_degraded IN (:yes, :no)"
    )
    values = {
        "since": NOW - dt.timedelta(days=10),
        "day": NOW.date(),
        "n": 3,
        "pool": "default",
        "yes": True,
        "no": False,
    }
    (record,) = await analyst.fetch(sql, values)
    (count,) = await analyst.fetch("SELECT count(*) AS n FROM v_outcome WHERE day >= '2026-11-20'")
    assert 0 < record["n"] <= count["n"] < 200
    assert record["text"] == ":no"
    texts = values | {"since": "2026-11-20T00:00:00Z", "day": "2026-11-30", "yes": 1, "no": 0}
    assert (await analyst.fetch(sql, texts))[0]["n"] == record["n"]
    # Before the year 1 in UTC: no time, which is refused or found nowhere, and is no crash.
    with contextlib.suppress(QueryFailed, QueryRefused):
        odd = texts | {"since": "0001-01-01T00:00:00+23:59"}
        assert (await analyst.fetch(sql, odd))[0]["n"] >= 0
    with pytest.raises(QueryRefused, match=":pool has no value"):
        await analyst.fetch("SELECT 1 FROM v_outcome WHERE pool = :pool")
    with pytest.raises(QueryRefused, match="no parameter :pool"):
        await analyst.fetch("SELECT ':pool' AS a", {"pool": 1})


async def test_chunks_are_small_and_complete(analyst: Analyst) -> None:
    async with analyst.stream("SELECT * FROM v_answer", chunk_rows=50) as rows:
        sizes = [len(chunk) async for chunk in rows]
    assert sum(sizes) == 600
    assert max(sizes) <= 50


def _round(record: dict[str, object]) -> dict[str, object]:
    """A row whose sums are the same in whatever order they were added up."""
    return {
        name: float(f"{value:.9g}") if isinstance(value, float) else value
        for name, value in record.items()
    }


async def test_each_query_that_ships_gives_the_same_on_both(
    sqlite_database: Database, postgres_database: Database
) -> None:
    results = []
    for database in (sqlite_database, postgres_database):
        await plant(database, 400)
        async with Analyst(await as_analyst(database)) as analyst:
            results.append({q.name: await analyst.fetch(q.sql) for q in built_in()})
    assert len(results[0]) >= 10
    for query in built_in():
        assert query.sql.startswith("-- "), query.name
        assert query.about.endswith((".", "?")), query.name
        for row, other in zip(*(result[query.name] for result in results), strict=True):
            assert _round(row) == _round(other), query.name
    assert [name for name, rows in results[0].items() if not rows] in ([], ["judge-flips"])


async def test_without_a_role_postgresql_runs_only_what_is_ours(
    postgres_database: Database,
) -> None:
    with pytest.raises(QueryRefused, match="analyst_url is not set"):
        async with Analyst(postgres_database):
            pass
    async with Analyst(postgres_database, trusted=True) as analyst:
        assert await analyst.fetch("SELECT 1 AS a") == [{"a": 1}]
        with pytest.raises(QueryRefused, match="read-only"):
            await analyst.fetch("SELECT * FROM v_vote FOR UPDATE")
        with pytest.raises(QueryRefused, match="only a statement that reads"):
            await analyst.fetch("LISTEN x")


async def test_a_database_that_is_not_there_is_no_missing_table(tmp_path: Path) -> None:
    path = tmp_path / "fusewire.db"
    database = Database(url=f"sqlite+aiosqlite:///{path}")
    for _ in range(2):
        async with Analyst(database) as analyst:
            with pytest.raises(QueryRefused, match="nothing has been stored yet") as refusal:
                await analyst.fetch("SELECT * FROM v_outcome")
            assert "fusewire up" in refusal.value.mend
        path.touch()


async def test_a_value_that_is_too_long_is_told(database: Database) -> None:
    long_text = "hex(zeroblob(9000000))" if "sqlite" in database.url else "repeat('x', 17000000)"
    async with Analyst(await as_analyst(database)) as analyst:
        with pytest.raises(QueryFailed, match="longer than 16 MB"):
            await analyst.fetch(f"SELECT {long_text} AS a FROM (SELECT 1) b; -- the end")
        assert await analyst.fetch("SELECT 'x' AS a, 1 AS a; -- the end") == [{"a": "x", "a_2": 1}]


async def test_a_statement_that_is_cancelled_before_it_begins_ends(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread connects when it is cancelled, so that there is nothing to interrupt so far."""
    opening, interrupted = threading.Event(), threading.Event()
    connect, interrupt = sqlite._open, sqlite._Statement.interrupt

    def wait_and_connect(path: Path) -> sqlite3.Connection:
        opening.set()
        interrupted.wait()
        return connect(path)

    def interrupt_and_go_on(statement: sqlite._Statement) -> None:
        interrupt(statement)
        interrupted.set()

    monkeypatch.setattr(sqlite, "_open", wait_and_connect)
    monkeypatch.setattr(sqlite._Statement, "interrupt", interrupt_and_go_on)
    async with Analyst(sqlite_database, timeout_s=3600) as analyst:
        statement = asyncio.ensure_future(analyst.fetch(ENDLESS))
        await asyncio.to_thread(opening.wait)
        statement.cancel()
        with pytest.raises(asyncio.CancelledError):
            await statement
