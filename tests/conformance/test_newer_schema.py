"""Code on a schema that a newer release made, as after a rollback (docs/decisions/0050)."""

import shutil
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from structlog.testing import capture_logs

from fusewire.errors import EXIT_STORED, StartupError
from fusewire.settings import Database, Nats, Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.testing.command_line import bare
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client

NEXT = "9999"
NEXT_MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{{head}}"
{{oldest_code}}


def upgrade():
    op.add_column("outcomes", sa.Column("mood", sa.String(16)))
    op.create_table("moods", sa.Column("fusion_id", sa.String(27), primary_key=True))
"""
"""What a next release might add."""
MANY = 3

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
MigrateFurther = Callable[[Database, str], Awaitable[Store]]


@pytest.fixture
def migrate_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MigrateFurther:
    """Bring a database to the schema of the next release, whose migration has this line."""

    async def run(database: Database, oldest_code: str) -> Store:
        folder = tmp_path / "migrations"
        shutil.copytree(migrate.folder(), folder)
        migration = NEXT_MIGRATION.format(head=migrate.head(), oldest_code=oldest_code)
        (folder / "versions" / f"{NEXT}_moods.py").write_text(migration)
        store = Store(database)
        with monkeypatch.context() as next_release:
            next_release.setenv(migrate.MIGRATIONS_ENV, str(folder))
            assert (await migrate.upgrade(store))[1] == NEXT
        return store

    return run


async def test_services_run_on_a_newer_schema_that_lets_them(
    make_settings: MakeSettings,
    database: Database,
    running: Running,
    migrate_further: MigrateFurther,
    nats: NatsServer,
) -> None:
    store = await migrate_further(database, f'oldest_code = "{migrate.head()}"')
    settings = make_settings(database=database, nats=Nats(url=nats.url))

    with capture_logs() as logs:
        async with running(settings, "judge", "worker-remote", "dispatcher", "ingest") as client:
            shown = [
                await client.submit({"prompt": f"Why is the sky blue, {n}?"}, wait_s=250)
                for n in range(MANY)
            ]

    assert {fusion["status"] for fusion in shown} == {"selected"}
    warnings = [line for line in logs if line["event"] == "store.schema_newer"]
    assert {(line["schema"], line["code"]) for line in warnings} == {(NEXT, migrate.head())}
    async with store.read() as connection:
        (count,) = (await connection.execute(text("SELECT count(*) FROM outcomes"))).one()
    assert count == MANY
    await store.close()


async def test_an_upgrade_by_older_code_changes_nothing(
    database: Database, migrate_further: MigrateFurther, tmp_path: Path
) -> None:
    """It refuses, unless it is told that this is a rollback."""
    store = await migrate_further(database, f'oldest_code = "{migrate.head()}"')
    async with store.write() as connection:
        await connection.execute(text("DROP VIEW v_batch"))
    cli = bare(tmp_path, FUSEWIRE_DATABASE__URL=database.url)

    refusal = cli.run("db", "upgrade")
    success = cli.run("db", "upgrade", "--allow-newer")

    assert refusal.returncode == EXIT_STORED, refusal
    assert "newer than this code" in refusal.stderr
    assert (success.returncode, success.stdout) == (0, f"schema {NEXT}\n")
    async with store.read() as connection:
        views = await connection.run_sync(lambda synced: inspect(synced).get_view_names())
    assert "v_outcome" in views
    assert "v_batch" not in views
    await store.close()


@pytest.mark.parametrize("command", ["db sums", "erase --tenant default --yes"])
async def test_who_has_to_know_every_table_refuses_a_newer_schema(
    database: Database, migrate_further: MigrateFurther, tmp_path: Path, command: str
) -> None:
    store = await migrate_further(database, f'oldest_code = "{migrate.head()}"')

    await migrate.check(store)
    result = bare(tmp_path, FUSEWIRE_DATABASE__URL=database.url).run(*command.split())

    assert result.returncode == EXIT_STORED, result
    assert "newer than this code" in result.stderr
    await store.close()


@pytest.mark.parametrize("oldest_code", ["", f'oldest_code = "{NEXT}"'], ids=["none", "newer"])
async def test_a_newer_schema_that_does_not_let_this_code_run_is_refused(
    database: Database, migrate_further: MigrateFurther, oldest_code: str
) -> None:
    store = await migrate_further(database, oldest_code)

    for attempt in (migrate.check, partial(migrate.upgrade, allow_newer=True)):
        with pytest.raises(StartupError, match="newer than this code") as caught:
            await attempt(store)
        assert caught.value.exit_code == EXIT_STORED
    await store.close()


async def test_an_older_restriction_outlives_newer_migrations(
    database: Database, migrate_further: MigrateFurther
) -> None:
    """The next migration may let old code run; one before it, that did not, still counts."""
    store = await migrate_further(database, 'oldest_code = "0001"')

    async with store.read() as connection:
        query = text("SELECT oldest_code FROM schema_compatibility")
        assert (await connection.execute(query)).scalar_one() > "0001"
    await store.close()
