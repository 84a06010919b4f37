"""Rewrites a database's files, so that what was deleted is not in them any more."""

import asyncio
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BindParameter, Table, TextClause, bindparam, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.errors import Transient
from fusewire.store.engine import Store

BUSY_S = 30
"""How long to wait for others who use the database, s."""
INSUFFICIENT_PRIVILEGE, LOCK_NOT_AVAILABLE = "42501", "55P03"
"""SQLSTATE codes."""


async def rewrite_files(store: Store, tables: Sequence[Table]) -> list[str]:
    """Rewrite the files of tables; on SQLite, of the whole database.

    Others wait for it: on PostgreSQL each table is locked while it is rewritten. What was written
    to PostgreSQL's write-ahead log stays in its old segments until the server uses them again, and
    in whatever archive or backup has them.

    Returns:
        What could not be done, and who can do it.

    Raises:
        Transient: the database was in use for `BUSY_S`.
    """
    if store.is_sqlite:
        if file := store.url.database:
            await asyncio.to_thread(_rewrite_file, file)
        return []
    async with store.engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        return await _rewrite_tables(connection, tables)


def _rewrite_file(file: str) -> None:
    connection = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)
    try:
        connection.execute("VACUUM")
        deadline = time.monotonic() + BUSY_S
        while True:
            # It is busy while anybody still reads what the log has.
            (is_busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not is_busy:
                return
            if time.monotonic() > deadline:
                raise Transient(f"others have read the database for {BUSY_S} s")
            time.sleep(0.1)
    except sqlite3.OperationalError as exc:
        raise Transient(f"the database's file could not be rewritten ({exc})") from None
    finally:
        connection.close()


_NAMES: BindParameter[list[str]] = bindparam("names", expanding=True)
_FOREIGN = text(
    "SELECT relname FROM pg_class WHERE relname IN :names AND relkind = 'r'"
    " AND relnamespace = current_schema()::regnamespace"
    " AND NOT pg_has_role(relowner, 'USAGE') ORDER BY relname"
).bindparams(_NAMES)
# The statistics of columns quote values, and those of a table that is empty now would stay.
_FORGET = text(
    "DELETE FROM pg_catalog.pg_statistic WHERE starelid IN (SELECT oid FROM pg_class"
    " WHERE relname IN :names AND relnamespace = current_schema()::regnamespace)"
).bindparams(_NAMES)
_AS_SUPERUSER = (
    # For others it is skipped.
    ("VACUUM FULL pg_catalog.pg_statistic", "old statistics of columns"),
    ("SELECT pg_switch_wal()", "the current segment of the write-ahead log"),
    ("CHECKPOINT", "old segments of the write-ahead log"),
)


async def _rewrite_tables(connection: AsyncConnection, tables: Sequence[Table]) -> list[str]:
    await connection.execute(text(f"SET lock_timeout = '{BUSY_S}s'"))
    names = {"names": [table.name for table in tables]}
    # PostgreSQL skips these with no more than a warning.
    foreign_names = list((await connection.execute(_FOREIGN, names)).scalars())
    undone = []
    if foreign_names:
        listing = ", ".join(foreign_names)
        undone.append(f"tables {listing}: their owner can run `VACUUM (FULL, ANALYZE)` on each")
    if not await _try(connection, _FORGET, names):
        undone.append(
            "statistics of columns, which quote values: a superuser of PostgreSQL can delete the"
            " rows of these tables from pg_statistic"
        )
    try:
        for table in tables:
            await connection.execute(text(f'VACUUM (FULL, ANALYZE) "{table.name}"'))
    except DBAPIError as exc:
        if _sqlstate(exc) != LOCK_NOT_AVAILABLE:
            raise
        raise Transient(f"a table was in use for {BUSY_S} s; end long queries") from None
    for statement, purpose in _AS_SUPERUSER:
        if not await _try(connection, text(statement), {}):
            undone.append(f"{purpose}: a superuser of PostgreSQL can run `{statement}`")
    return undone


async def _try(
    connection: AsyncConnection, statement: TextClause, parameters: Mapping[str, Any]
) -> bool:
    """Run a statement. Returns False if the user may not."""
    try:
        await connection.execute(statement, parameters)
    except DBAPIError as exc:
        if _sqlstate(exc) != INSUFFICIENT_PRIVILEGE:
            raise
        return False
    return True


def _sqlstate(exc: DBAPIError) -> str | None:
    return getattr(exc.orig, "sqlstate", None)
