"""Migrations and views, on SQLite and on PostgreSQL."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from fusewire.errors import StartupError, Transient
from fusewire.settings import Database
from fusewire.store import engine, migrate
from fusewire.store.engine import Store
from fusewire.store.tables import metadata
from fusewire.store.views import CONTRACT, VIEWS, View
from fusewire.store.views.batches import V_BATCH
from fusewire.store.views.outcomes import V_ANSWER, V_OUTCOME

# The contract that analysts rely on. A name may be added here, never taken away.
OUTCOME_COLUMNS = """
    outcome_id batch_id custom_id tenant submitted_at finished_at day pool strategy config_hash \
prompt_hash
    judge_model status winner_model n_asked n_answered is_degraded is_fallback fallback_reason \
agreement verdict_parse
    swap_consistent latency_ms panel_ms judge_ms tokens_in tokens_out tokens_cached tokens_thought \
cost_panel_usd
    cost_judge_usd cost_usd price_version accepted
"""
ANSWER_COLUMNS = """
    answer_id outcome_id day pool strategy model provider tier shown_position status error_code \
attempts latency_ms
    tokens_in tokens_out cost_usd is_winner
"""

BATCH_COLUMNS = """
    batch_id name status total completed failed created_at eta_at cost_usd max_cost_usd
"""

# What SQLAlchemy and Alembic say of ix_outcomes_day: they cannot read an index on an expression
# back from SQLite.
UNREAD = pytest.mark.filterwarnings(
    "ignore:Skipped unsupported reflection:sqlalchemy.exc.SAWarning",
    "ignore:autogenerate skipping:UserWarning",
)


@pytest.fixture
async def empty(empty_database: Database) -> Store:
    return Store(empty_database)


async def columns(store: Store, name: str) -> list[str]:
    async with store.read() as connection:
        return list((await connection.execute(text(f"SELECT * FROM {name}"))).keys())


@UNREAD
async def test_the_migrations_make_the_tables_that_the_code_knows(store: Store) -> None:
    def differences(connection: Connection) -> list[object]:
        views = {view.name for view in VIEWS}

        def included(
            _object: object, name: str | None, kind: str, _reflected: bool, _to: object
        ) -> bool:
            return not (kind == "table" and name in views)

        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "compare_server_default": True, "include_object": included},
        )
        return list(compare_metadata(context, metadata))

    async with store.read() as connection:
        assert await connection.run_sync(differences) == []


@UNREAD
async def test_an_index_has_its_condition_on_both_databases(store: Store) -> None:
    """Alembic does not compare an index's WHERE; without it the sweeps would read every row."""

    def conditions(connection: Connection) -> dict[str, str]:
        found = {}
        for table in metadata.tables:
            for index in inspect(connection).get_indexes(table):
                where = index.get("dialect_options", {}).get(f"{connection.dialect.name}_where")
                if index["name"] and where is not None:
                    found[index["name"]] = str(where).strip("()").lower()
        return found

    async with store.read() as connection:
        found = await connection.run_sync(conditions)

    assert set(found) == {
        "ix_prompts_unpublished",
        "ix_prompts_request",
        "ix_prompts_cancelled",
        "ix_fusions_due",
        "ix_fusions_unpublished",
        "ix_outcomes_texts",
        "ix_verdicts_control",
        "ix_candidates_late",
        "ix_batch_lines_held",
        "ix_batch_lines_flying",
    }
    assert found["ix_verdicts_control"] == "control is not null"
    assert found["ix_prompts_unpublished"] == "published_at is null"
    assert "is_done" in found["ix_fusions_due"]


async def test_upgrade_tells_the_version_before_and_after_and_does_nothing_twice(
    empty: Store,
) -> None:
    assert await migrate.current(empty) is None

    assert await migrate.upgrade(empty) == (None, migrate.head())
    assert await migrate.upgrade(empty) == (migrate.head(), migrate.head())
    await migrate.check(empty)
    await empty.close()


def test_the_newest_migration_is_the_one_that_alembic_ends_with() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.folder()))

    assert ScriptDirectory.from_config(config).get_current_head() == migrate.head()


async def test_two_upgrades_at_once_are_one(empty_database: Database) -> None:
    stores = [Store(empty_database) for _ in range(4)]

    results = await asyncio.gather(*(migrate.upgrade(store) for store in stores))

    assert {after for _, after in results} == {migrate.head()}
    assert await columns(stores[0], "v_outcome")
    for store in stores:
        await store.close()


async def test_a_new_file_is_opened_while_another_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "fusewire.db"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store = Store(Database(url=f"sqlite+aiosqlite:///{file}"))
    opening = asyncio.create_task(store.ping())

    await asyncio.sleep(0.3)
    assert not opening.done(), "it waits as long as somebody writes"
    other.close()
    await opening
    await store.close()


async def test_a_schema_that_is_newer_than_the_code_is_told_as_such(store: Store) -> None:
    async with store.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await connection.execute(text("UPDATE schema_compatibility SET oldest_code = '9999'"))

    for ask in (migrate.check, migrate.upgrade):
        with pytest.raises(StartupError, match="newer than this code") as caught:
            await ask(store)
        assert "run the newer Fusewire" in caught.value.mend


# -- beside those who use the views ------------------------------------------------------------


@pytest.fixture
async def used(postgres_database: Database) -> AsyncIterator[Store]:
    """PostgreSQL, with an analyst who may read `v_batch`."""
    store = Store(postgres_database)
    await migrate.upgrade(store)
    await run(
        store,
        "DO $$ BEGIN CREATE ROLE analyst; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT SELECT ON v_batch TO analyst",
        "GRANT SELECT ON v_batch TO PUBLIC",
    )
    yield store
    await store.close()


async def run(store: Store, *statements: str) -> None:
    async with store.write() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


OLD = (
    "DROP VIEW v_batch",
    "CREATE VIEW v_batch AS SELECT batch_id AS another, status FROM batches",
    "GRANT SELECT ON v_batch TO analyst",
    "GRANT SELECT ON v_batch TO PUBLIC",
)
"""As a version before might have had it."""


async def granted(store: Store) -> set[str]:
    query = "SELECT grantee FROM information_schema.table_privileges WHERE table_name = 'v_batch'"
    async with store.read() as connection:
        return set((await connection.execute(text(query))).scalars()) & {"analyst", "PUBLIC"}


async def test_views_that_have_not_changed_are_left_alone(used: Store) -> None:
    """An analyst's query may run for hours; it neither waits nor is waited for."""
    async with used.read() as reader:
        await reader.execute(text("SELECT count(*) FROM v_outcome"))

        assert await migrate.upgrade(used) == (migrate.head(), migrate.head())

    assert await granted(used) == {"analyst", "PUBLIC"}


async def test_who_may_read_a_view_may_read_the_next_version_of_it(used: Store) -> None:
    await run(used, *OLD)

    await migrate.upgrade(used)

    assert await columns(used, "v_batch") == [column.name for column in V_BATCH.columns]
    assert await granted(used) == {"analyst", "PUBLIC"}


async def test_a_column_more_is_added_beneath_views_that_stand_on_it(used: Store) -> None:
    fewer = V_BATCH.create("postgresql").replace(f",\n  {_last(V_BATCH)}", "", 1)
    await run(
        used, "DROP VIEW v_batch", fewer, "CREATE VIEW theirs AS SELECT batch_id FROM v_batch"
    )
    assert fewer != V_BATCH.create("postgresql")

    await migrate.upgrade(used)

    assert await columns(used, "v_batch") == [column.name for column in V_BATCH.columns]
    assert await columns(used, "theirs") == ["batch_id"]


def _last(view: View) -> str:
    column = view.columns[-1]
    return f"{column.postgresql or column.sql} AS {column.name}"


async def test_a_view_that_stands_in_the_way_is_named(used: Store) -> None:
    await run(used, *OLD, "CREATE VIEW theirs AS SELECT another FROM v_batch")

    with pytest.raises(StartupError, match="v_batch has other columns") as caught:
        await migrate.upgrade(used)

    assert "make it again" in caught.value.mend
    assert await columns(used, "theirs") == ["another"]


async def test_a_query_that_stands_in_the_way_is_not_waited_for_without_end(
    used: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_S", 1)
    await run(used, *OLD)
    async with used.read() as reader:
        await reader.execute(text("SELECT count(*) FROM v_batch"))

        with pytest.raises(StartupError, match="was in use for 1 s"):
            await migrate.upgrade(used)


async def test_upgrade_mends_views_that_are_missing_or_old(store: Store) -> None:
    async with store.write() as connection:
        await connection.execute(text("DROP VIEW v_answer"))
        await connection.execute(text("DROP VIEW v_outcome"))
        await connection.execute(text("CREATE VIEW v_outcome AS SELECT 1 AS one"))

    await migrate.upgrade(store)

    assert len(await columns(store, "v_outcome")) == len(V_OUTCOME.columns)
    assert await columns(store, "v_answer")


async def test_a_failed_upgrade_leaves_nothing_half_done(
    empty: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_connection: Connection) -> None:
        raise RuntimeError("the machine went away")

    with monkeypatch.context() as broken:
        broken.setattr(migrate, "_create_views", fail)
        with pytest.raises(RuntimeError):
            await migrate.upgrade(empty)

    assert await migrate.current(empty) is None
    assert await migrate.upgrade(empty) == (None, migrate.head())
    await empty.close()


async def test_a_database_that_was_not_migrated_is_refused_with_what_to_do(empty: Store) -> None:
    with pytest.raises(StartupError) as caught:
        await migrate.check(empty)

    assert caught.value.what == f"the database is at schema none, this code needs {migrate.head()}"
    assert "fusewire db upgrade" in caught.value.mend
    await empty.close()


async def test_views_have_the_columns_of_the_contract(store: Store) -> None:
    for view, contract in (
        (V_OUTCOME, OUTCOME_COLUMNS),
        (V_ANSWER, ANSWER_COLUMNS),
        (V_BATCH, BATCH_COLUMNS),
    ):
        found = await columns(store, view.name)

        assert found == [c.name for c in view.columns]
        assert set(contract.split()) <= set(found)


async def test_what_is_degraded_stands_first(store: Store) -> None:
    assert (await columns(store, "v_outcome"))[:3] == ["is_degraded", "degraded_reasons", "status"]


async def test_every_column_says_what_it_means(store: Store) -> None:
    for view in VIEWS:
        assert all(column.comment for column in view.columns)
    if store.is_sqlite:
        return  # it keeps no comments; the reference is written from the same data
    async with store.read() as connection:
        query = (
            "SELECT obj_description('v_outcome'::regclass), "
            "col_description('v_outcome'::regclass, 1)"
        )
        whole, first = (await connection.execute(text(query))).one()
    assert whole.startswith(f"{V_OUTCOME.comment} ({CONTRACT} ")
    assert first == V_OUTCOME.columns[0].comment


# -- what is down -----------------------------------------------------------------------------


async def test_a_database_that_does_not_answer_is_named_with_what_to_do() -> None:
    store = Store(Database(url="postgresql+asyncpg://nobody@127.0.0.1:1/none"))

    with pytest.raises(StartupError) as caught:
        await store.ping()

    assert (
        "no database answers at postgresql+asyncpg://nobody@127.0.0.1:1/none" in caught.value.what
    )
    assert "FUSEWIRE_DATABASE__URL" in caught.value.mend


def test_a_file_that_cannot_be_made_is_named_with_what_to_do() -> None:
    with pytest.raises(StartupError) as caught:
        Store(Database(url="sqlite+aiosqlite:////dev/null/folder/fusewire.db"))

    assert "/dev/null/folder cannot be made: Not a directory" in caught.value.what
    assert "FUSEWIRE_DATABASE__URL" in caught.value.mend


async def test_a_file_that_is_no_database_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "fusewire.db").write_text(
        "This is no database, but it is long enough to look at. " * 100
    )
    store = Store(Database(url=f"sqlite+aiosqlite:///{tmp_path / 'fusewire.db'}"))

    with pytest.raises(StartupError, match="the database file is damaged"):
        await store.ping()
    assert store.unready() == ["the database file is damaged (file is not a database)"]
    await store.close()


async def test_a_password_is_never_told() -> None:
    with pytest.raises(StartupError) as caught:
        await Store(Database(url="postgresql+asyncpg://me:s3cr3t@127.0.0.1:1/none")).ping()

    assert "s3cr3t" not in str(caught.value)


def test_an_address_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(StartupError, match="sqlite\\+aiosqlite") as caught:
        Store(Database(url="postgresql+asyncpg://me:s3cr3t@x:port/y"))

    assert "s3cr3t" not in str(caught.value)


async def test_a_write_that_waits_too_long_for_another_is_transient(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PRAGMAS", ("PRAGMA busy_timeout = 1",))
    store = Store(sqlite_database)

    # As another process would: writers of one process stand in line.
    with contextlib.closing(
        sqlite3.connect(str(store.url.database), isolation_level=None)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Transient):
            async with store.write():
                pass

    await store.close()


async def test_an_error_s_text_holds_no_parameters(store: Store) -> None:
    async def fail() -> None:
        async with store.write() as connection:
            query = text("INSERT INTO fusions (fusion_id, plan) VALUES (:id, :plan)")
            await connection.execute(query, {"id": "f1", "plan": "s3cr3t"})

    with pytest.raises(IntegrityError) as caught:
        await fail()

    assert "[SQL parameters hidden" in str(caught.value)


async def test_sqlite_readers_do_not_wait_for_a_writer(sqlite_database: Database) -> None:
    one, two = Store(sqlite_database), Store(sqlite_database)

    async with one.write() as writer:
        await writer.execute(text("DELETE FROM prompts"))
        async with two.read() as reader:
            assert (await reader.execute(text("SELECT count(*) FROM prompts"))).scalar() == 0

    await one.close()
    await two.close()


async def test_sqlite_syncs_every_commit(sqlite_database: Database) -> None:
    store = Store(sqlite_database)

    async with store.read() as connection:
        found = [
            (await connection.exec_driver_sql(f"PRAGMA {p}")).scalar()
            for p in ("journal_mode", "synchronous")
        ]

    assert found == ["wal", 2]
    await store.close()


async def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    insert = "INSERT INTO fusions (fusion_id, is_done) VALUES ('f1', FALSE)"

    async def twice() -> None:
        async with store.write() as connection:
            await connection.execute(text(insert))
            await connection.execute(text(insert))

    with pytest.raises(IntegrityError):
        await twice()

    async with store.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM fusions"))).scalar() == 0


OURS = ["SELECT 1 / 0", "SELECT none_such", "SELECT CAST(:value AS text)", "SELECT 'x'::integer"]


@pytest.mark.parametrize("statement", OURS, ids=["arithmetic", "name", "NUL", "type"])
async def test_a_fault_of_a_statement_is_no_outage(
    postgres_database: Database, statement: str
) -> None:
    """Else whoever runs it would try for ever, and tell that the database is down."""
    store = Store(postgres_database)

    async def run() -> None:
        async with store.read() as connection:
            await connection.execute(
                text(statement), {"value": "a\x00b"} if ":value" in statement else {}
            )

    with pytest.raises(DBAPIError):
        await run()
    await store.close()


async def test_a_connection_that_was_cut_is_transient_and_the_next_one_works(
    postgres_database: Database,
) -> None:
    store = Store(postgres_database)

    async def run(statement: str) -> object:
        async with store.read() as connection:
            return (await connection.exec_driver_sql(statement)).scalar()

    with pytest.raises(Transient):
        await run("SELECT pg_terminate_backend(pg_backend_pid())")
    assert await run("SELECT 1") == 1
    await store.close()


async def test_a_deadlock_is_transient_for_one_and_done_for_the_other(
    postgres_database: Database,
) -> None:
    store = Store(postgres_database)
    async with store.write() as connection:
        await connection.execute(
            text("INSERT INTO fusions (fusion_id, is_done) VALUES ('a', FALSE), ('b', FALSE)")
        )
    both = asyncio.Barrier(2)

    async def lock(first: str, second: str) -> None:
        async with store.write() as connection:
            query = text("SELECT 1 FROM fusions WHERE fusion_id = :id FOR UPDATE")
            await connection.execute(query, {"id": first})
            await both.wait()
            await connection.execute(query, {"id": second})

    results = await asyncio.gather(lock("a", "b"), lock("b", "a"), return_exceptions=True)

    assert sorted(type(r).__name__ for r in results) == ["NoneType", "Transient"]
    await store.close()
