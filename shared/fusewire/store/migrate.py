"""`fusewire db upgrade`: bring the schema to the version of this code."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy import Connection, bindparam, delete, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError

from fusewire.errors import EXIT_STORED, StartupError, Transient
from fusewire.store import summaries
from fusewire.store.engine import Store
from fusewire.store.tables import schema_compatibility
from fusewire.store.views import CONTRACT, VIEWS, View

if TYPE_CHECKING:
    from alembic.config import Config

log = structlog.get_logger(__name__)

START_S = 30.0
"""How long a starting service waits for its database; to end and be restarted would take longer."""
RETRY_S = 0.5
MIGRATIONS_ENV = "FUSEWIRE_MIGRATIONS"
LOCK_S = 30
"""How long a migration waits for a lock on a table or view that is in use."""
FIRST_WITH_SUMS = "0015"
"""The first schema with summary tables, which are filled from what older ones stored."""
LOCK_NOT_AVAILABLE, DEPENDENTS = "55P03", "2BP01"
"""SQLSTATE codes: lock_not_available, dependent_objects_still_exist."""


def folder() -> Path:
    """The folder of the migrations: `$FUSEWIRE_MIGRATIONS`, else beside the source tree."""
    variable = os.environ.get(MIGRATIONS_ENV)
    path = Path(variable) if variable else Path(__file__).resolve().parents[3] / "migrations"
    if not (path / "env.py").is_file():
        raise StartupError(
            f"no migrations at {path}", f"set {MIGRATIONS_ENV} to the folder that holds env.py"
        )
    return path


def _config(connection: Connection) -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - see `upgrade`

    config = Config()
    config.set_main_option("script_location", str(folder()))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest version that this code knows: the number in the newest migration's name."""
    files = (folder() / "versions").glob("[0-9]*_*.py")
    return max(file.name.partition("_")[0] for file in files)


async def current(store: Store) -> str | None:
    """The version of the database; None for an empty one."""

    def query(connection: Connection) -> str | None:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

    async with store.read() as connection:
        return await connection.run_sync(query)


async def upgrade(store: Store, *, allow_newer: bool = False) -> tuple[str | None, str | None]:
    """Migrate to the newest version and update the views; idempotent.

    Args:
        store: the database.
        allow_newer: whether a newer schema on which this code may run is left as it is.

    Returns:
        The version before and after.

    Raises:
        StartupError: the schema is newer than this code, or other queries or views block the
            migration.
    """
    before = await current(store)
    if _is_newer(before):
        await _check_newer(store, before, is_allowed=allow_newer)
        return before, before

    def migrate(connection: Connection) -> None:
        if not store.is_sqlite:
            # If two migrations run at once, the second waits and then has nothing to do.
            connection.execute(text("SELECT pg_advisory_xact_lock(7305737)"))
            # A statement that waits for a long query blocks all later ones behind it, so the wait
            # is limited.
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_S}s'"))
        if before != head():
            _migrate(connection, before)
        _create_views(connection)

    try:
        async with store.write() as connection:
            await connection.run_sync(migrate)
    except Transient as exc:
        if _sqlstate(exc.__cause__) != LOCK_NOT_AVAILABLE:
            raise
        raise StartupError(
            f"a table or view that must change was in use for {LOCK_S} s",
            "end long queries (pg_stat_activity shows them), then run `fusewire db upgrade` again",
        ) from None
    return before, await current(store)


def _migrate(connection: Connection, before: str | None) -> None:
    from alembic import command  # noqa: PLC0415 - takes a second or two that only a migration needs

    config = _config(connection)
    command.upgrade(config, "head")
    _store_oldest_code(connection, config)
    if (before or "") < FIRST_WITH_SUMS:
        summaries.rebuild(connection)


def _store_oldest_code(connection: Connection, config: "Config") -> None:
    """Store the oldest code that may run on this schema.

    A migration names it as `oldest_code`; of one that names none, older code is refused.
    """
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see `_migrate`

    scripts = ScriptDirectory.from_config(config).walk_revisions()
    oldest_code = max(getattr(script.module, "oldest_code", script.revision) for script in scripts)
    schema_compatibility.create(connection, checkfirst=True)
    connection.execute(delete(schema_compatibility))
    connection.execute(insert(schema_compatibility).values(oldest_code=oldest_code))


def _is_newer(have: str | None) -> bool:
    return have is not None and have > head()


async def _check_newer(store: Store, have: str | None, *, is_allowed: bool) -> None:
    """Check that this code may run on a newer schema (docs/decisions/0050).

    Raises:
        StartupError: it may not, or it is not allowed here.
    """

    def query(connection: Connection) -> str | None:
        if not inspect(connection).has_table(schema_compatibility.name):
            return None
        return connection.execute(select(schema_compatibility.c.oldest_code)).scalar()

    async with store.read() as connection:
        oldest_code = await connection.run_sync(query)
    if is_allowed and oldest_code is not None and oldest_code <= head():
        return
    raise StartupError(
        f"the database is at schema {have}, which is newer than this code, which knows {head()}",
        "run the newer Fusewire; a schema does not go back by itself",
        EXIT_STORED,
    )


def _sqlstate(exc: BaseException | None) -> str | None:
    return getattr(getattr(exc, "orig", None), "sqlstate", None)


async def check(store: Store, *, wait_s: float = 0.0, exact: bool = False) -> None:
    """Check that the database answers and has a schema on which this code may run.

    Args:
        store: the database.
        wait_s: how long to wait for its answer.
        exact: whether a newer schema is refused though this code may run on it, because who calls
            has to know every table.

    Raises:
        StartupError: it does not answer, or has another schema.
    """
    await _wait_for_answer(store, wait_s)
    have, want = await current(store), head()
    if _is_newer(have):
        await _check_newer(store, have, is_allowed=not exact)
        log.warning("store.schema_newer", schema=have, code=want)
    elif have != want:
        raise StartupError(
            f"the database is at schema {have or 'none'}, this code needs {want}",
            "run `fusewire db upgrade`",
        )


async def _wait_for_answer(store: Store, wait_s: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while True:
        try:
            await store.ping()
        except StartupError as exc:
            if exc.exit_code == EXIT_STORED or loop.time() >= until:
                raise
            log.warning("store.awaited")
            await asyncio.sleep(RETRY_S)
        else:
            return


def _create_views(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        _create_views_beside_users(connection)
        return
    for view in reversed(VIEWS):
        connection.execute(text(f"DROP VIEW IF EXISTS {view.name}"))
    for view in VIEWS:
        connection.exec_driver_sql(view.create("sqlite"))


def _create_views_beside_users(connection: Connection) -> None:
    """Update only the views that have changed, and keep their grants.

    Analysts have rights on our views, and views of their own that depend on them
    (docs/decisions/0010).
    """
    rows = connection.execute(_COMMENTS, {"names": [view.name for view in VIEWS]})
    comments = {row.relname: row.comment for row in rows}
    views = [view for view in VIEWS if comments.get(view.name) != _comment_text(view)]
    if not views:
        return
    try:
        with connection.begin_nested():
            for view in views:
                connection.exec_driver_sql(
                    view.create("postgresql").replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1)
                )
    except DBAPIError as exc:
        if _sqlstate(exc) == LOCK_NOT_AVAILABLE:
            raise
        # A column was removed or moved, so the view must be dropped. Views depend on each other, so
        # all are recreated.
        views = list(VIEWS)
        _recreate_views(connection)
    for view in views:
        _comment(connection, view)


def _recreate_views(connection: Connection) -> None:
    """Drop and create all views, and grant again the rights that others had on them."""
    names = [view.name for view in VIEWS]
    grants = connection.execute(_GRANTS, {"names": names}).all()
    for name in reversed(names):
        _drop_view(connection, name)
    for view in VIEWS:
        connection.exec_driver_sql(view.create("postgresql"))
    for name, grantee, right in grants:
        role = grantee if grantee == "PUBLIC" else '"' + grantee.replace('"', '""') + '"'
        connection.exec_driver_sql(f"GRANT {right} ON {name} TO {role}")


def _drop_view(connection: Connection, name: str) -> None:
    try:
        connection.execute(text(f"DROP VIEW IF EXISTS {name}"))
    except DBAPIError as exc:
        if _sqlstate(exc) != DEPENDENTS:
            raise
        raise StartupError(
            f"{name} has other columns in this version, and a view of somebody else's stands on it",
            "drop that view, run `fusewire db upgrade`, and make it again",
        ) from None


_COMMENTS = text(
    "SELECT relname, obj_description(oid, 'pg_class') AS comment FROM pg_class "
    "WHERE relname IN :names AND relkind = 'v' AND relnamespace = current_schema()::regnamespace"
).bindparams(bindparam("names", expanding=True))
_GRANTS = text(
    "SELECT table_name, grantee, privilege_type FROM information_schema.table_privileges "
    "WHERE table_name IN :names AND table_schema = current_schema() AND grantee <> current_user"
).bindparams(bindparam("names", expanding=True))


def _comment_text(view: View) -> str:
    """The comment of a view, which ends with a hash of its definition, to detect other versions."""
    parts = [view.create("postgresql"), *(column.comment for column in view.columns)]
    digest = hashlib.sha256(chr(0).join(parts).encode()).hexdigest()
    return f"{view.comment} ({CONTRACT} {digest[:12]})"


def _comment(connection: Connection, view: View) -> None:
    def quote(value: str) -> Any:
        return "'" + value.replace("'", "''") + "'"

    connection.exec_driver_sql(f"COMMENT ON VIEW {view.name} IS {quote(_comment_text(view))}")
    for column in view.columns:
        connection.exec_driver_sql(
            f"COMMENT ON COLUMN {view.name}.{column.name} IS {quote(column.comment)}"
        )
