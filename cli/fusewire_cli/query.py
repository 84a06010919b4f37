"""`fusewire query`: read-only SQL on stored outcomes."""

import asyncio
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fusewire.errors import DamagedError, Transient
from fusewire.store.engine import Store
from fusewire.store.views import VIEWS
from fusewire_cli.screen import RowFormat, fail, rows
from fusewire_cli.session import settings


def query(sql: str, form: RowFormat) -> None:
    """Run one statement in a read-only transaction and print its rows."""
    try:
        columns, records = asyncio.run(_select(sql))
    except DamagedError:
        raise
    except (DBAPIError, Transient) as exc:
        cause = exc if isinstance(exc, DBAPIError) else exc.__cause__
        fail(f"the query failed: {getattr(cause, 'orig', None) or exc}", _hint(sql))
    rows(columns, records, form)


def _hint(sql: str) -> str:
    verb = sql.lstrip().partition(" ")[0].upper()
    if verb not in ("SELECT", "WITH", "VALUES", "EXPLAIN"):
        return "write a SELECT: what is stored is changed by Fusewire alone"
    names = ", ".join(view.name for view in VIEWS)
    return f"the views are {names}; docs/reference/views.md has their columns"


async def _select(sql: str) -> tuple[list[str], Sequence[Sequence[Any]]]:
    store = Store(settings().database)
    try:
        await store.ping()
        async with store.read() as connection:
            read_only = "PRAGMA query_only = ON" if store.is_sqlite else "SET TRANSACTION READ ONLY"
            await connection.execute(text(read_only))
            result = await connection.exec_driver_sql(sql)
            if not result.returns_rows:
                fail("the statement returns no rows", "write a SELECT")
            return list(result.keys()), result.fetchall()
    finally:
        await store.close()
