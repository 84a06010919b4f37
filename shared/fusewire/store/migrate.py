"""`fusewire db upgrade`: bring the schema to the version of this code."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, inspect, text

from fusewire.errors import StartupError
from fusewire.store.engine import Store
from fusewire.store.views import CONTRACT, VIEWS

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS_ENV = "FUSEWIRE_MIGRATIONS"


def folder() -> Path:
    """Where the migrations are: `$FUSEWIRE_MIGRATIONS`, else beside the source tree."""
    named = os.environ.get(MIGRATIONS_ENV)
    path = Path(named) if named else Path(__file__).resolve().parents[3] / "migrations"
    if not (path / "env.py").is_file():
        raise StartupError(f"no migrations at {path}", f"set {MIGRATIONS_ENV} to the folder that holds env.py")
    return path


def _config(connection: Connection) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - see `upgrade`

    config = Config()
    config.set_main_option("script_location", str(folder()))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest version that this code knows: the number that leads the newest migration's name."""
    return max(path.name.partition("_")[0] for path in (folder() / "versions").glob("[0-9]*_*.py"))


async def current(store: Store) -> str | None:
    """The version of the database; None for an empty one."""

    def ask(connection: Connection) -> str | None:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

    async with store.read() as connection:
        return await connection.run_sync(ask)


async def upgrade(store: Store) -> tuple[str | None, str | None]:
    """Migrate to the newest version and create the views anew; idempotent.

    Returns:
        The version before and after.
    """
    before = await current(store)

    def run(connection: Connection) -> None:
        # Two of these at once (a Job retried, two laptops): the second waits and finds nothing to do.
        if not store.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(7305737)"))
        if before != head():
            from alembic import command  # noqa: PLC0415 - takes a second or two that only a migration needs

            command.upgrade(_config(connection), "head")
        _create_views(connection)

    async with store.write() as connection:
        await connection.run_sync(run)
    return before, await current(store)


async def check(store: Store) -> None:
    """Raises StartupError unless the database answers and has the schema that this code needs."""
    await store.ping()
    have, want = await current(store), head()
    if have != want:
        raise StartupError(
            f"the database is at schema {have or 'none'}, this code needs {want}", "run `fusewire db upgrade`"
        )


def _create_views(connection: Connection) -> None:
    dialect = connection.dialect.name
    for view in reversed(VIEWS):
        connection.execute(text(f"DROP VIEW IF EXISTS {view.name}"))
    for view in VIEWS:
        connection.exec_driver_sql(view.create(dialect))
        if dialect == "postgresql":
            _comment(connection, view.name, view.comment, {c.name: c.comment for c in view.columns})


def _comment(connection: Connection, view: str, comment: str, columns: dict[str, str]) -> None:
    def quoted(value: str) -> Any:
        return "'" + value.replace("'", "''") + "'"

    connection.exec_driver_sql(f"COMMENT ON VIEW {view} IS {quoted(f'{comment} ({CONTRACT})')}")
    for name, words in columns.items():
        connection.exec_driver_sql(f"COMMENT ON COLUMN {view}.{name} IS {quoted(words)}")
