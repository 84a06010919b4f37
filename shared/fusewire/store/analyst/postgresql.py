"""Analysts' statements on PostgreSQL: a read-only transaction, which is always rolled back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from fusewire.store.analyst.result import (
    CHUNK_BYTES,
    QueryError,
    QueryFailed,
    QueryRefused,
    QueryTimeout,
    ResultColumn,
    ResultRows,
    Row,
    plain,
    size,
)
from fusewire.store.analyst.statement import number_parameters, postgresql_value, views_hint
from fusewire.store.views.view import ColumnType

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.prepared_stmt import PreparedStatement

CONNECT_S = 5
_TYPES: dict[str, ColumnType] = {
    "bool": "boolean",
    "int2": "integer",
    "int4": "integer",
    "int8": "integer",
    "float4": "real",
    "float8": "real",
    "numeric": "real",
    "date": "date",
    "timestamptz": "timestamp",
    "timestamp": "timestamp",
}
_LONG_TYPES = {"text", "varchar", "bytea", "json", "xml", "bpchar"}
_FIRST_ROWS = 16


def _options(url: str) -> dict[str, Any]:
    """What asyncpg connects with, of SQLAlchemy's address."""
    parts = make_url(url)
    _, options = parts.get_dialect()().create_connect_args(parts)
    own = ("prepared_statement_cache_size", "prepared_statement_name_func")
    return {name: value for name, value in options.items() if name not in own}


async def _connect(url: str) -> "asyncpg.Connection[Any]":
    import asyncpg  # noqa: PLC0415 - a user of SQLite does without

    try:
        return await asyncpg.connect(**_options(url), timeout=CONNECT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        where = make_url(url).render_as_string(hide_password=True)
        raise QueryRefused(
            f"no connection to {where}: {exc or type(exc).__name__}",
            "start the database, or mend [database] url or analyst_url",
        ) from None


class _Clock:
    """What remains of the time that the database may take."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._remaining_s = timeout_s

    @contextlib.asynccontextmanager
    async def count(self) -> AsyncIterator[None]:
        """Count the block; raises QueryTimeout when nothing remains."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(max(self._remaining_s, 0)):
                yield
        except TimeoutError:
            raise QueryTimeout(self.timeout_s) from None
        finally:
            self._remaining_s -= loop.time() - start


@contextlib.asynccontextmanager
async def select(
    url: str, sql: str, parameters: Mapping[str, object], *, chunk_rows: int, timeout_s: float
) -> AsyncIterator[ResultRows]:
    """Run a statement on a connection of its own, in a transaction that is never committed."""
    connection = await _connect(url)
    clock = _Clock(timeout_s)
    try:
        with _errors(timeout_s):
            await connection.execute(
                "BEGIN READ ONLY;"
                # A little longer than the clock here, whose error says more.
                f"SET LOCAL statement_timeout = {int(timeout_s * 1000) + 1000};"
                "SET LOCAL lock_timeout = '5s'; SET LOCAL TimeZone = 'UTC'"
            )
            async with clock.count():
                statement, values = await _prepare(connection, sql, parameters)
        columns = [
            ResultColumn(attribute.name, _column_type(attribute.type.name))
            for attribute in statement.get_attributes()
        ]
        if not columns:
            raise QueryRefused("the statement returns no rows", "write a SELECT")
        yield ResultRows(columns, _chunks(statement, values, clock, chunk_rows))
    finally:
        # The server rolls back. A connection in the middle of a result cannot be closed in order.
        connection.terminate()


def _column_type(name: str) -> ColumnType | None:
    return None if name == "bytea" else _TYPES.get(name, "text")


async def _prepare(
    connection: "asyncpg.Connection[Any]", sql: str, parameters: Mapping[str, object]
) -> "tuple[PreparedStatement[Any], list[Any]]":
    text, names = number_parameters(sql)
    statement = await connection.prepare(text)
    types = [kind.name for kind in statement.get_parameters()]
    values = [
        postgresql_value(name, parameters[name], kind)
        for name, kind in zip(names, types, strict=True)
    ]
    return statement, values


async def _chunks(
    statement: "PreparedStatement[Any]", values: Sequence[Any], clock: _Clock, chunk_rows: int
) -> AsyncIterator[list[Row]]:
    n_rows = min(_FIRST_ROWS, chunk_rows)
    with _errors(clock.timeout_s):
        async with clock.count():
            cursor = await statement.cursor(*values)
        while True:
            async with clock.count():
                records = await cursor.fetch(n_rows)
            if not records:
                return
            rows = [tuple(map(plain, record)) for record in records]
            n_bytes = sum(size(row) for row in rows)
            yield rows
            # As many as fill a chunk, if the next are as long as these.
            n_rows = max(1, min(chunk_rows, 2 * n_rows, CHUNK_BYTES * len(rows) // n_bytes))


@contextlib.contextmanager
def _errors(timeout_s: float) -> Any:
    import asyncpg  # noqa: PLC0415 - see `_connect`

    try:
        yield
    except asyncpg.QueryCanceledError:
        raise QueryTimeout(timeout_s) from None
    except asyncpg.InsufficientPrivilegeError as exc:
        raise _refusal(exc) from None
    except asyncpg.ReadOnlySQLTransactionError as exc:
        raise QueryRefused(
            f"{exc}", "write a SELECT: what is stored is changed by Fusewire alone"
        ) from None
    except asyncpg.UndefinedTableError as exc:
        raise QueryFailed(
            f"the query failed: {exc}",
            f"{views_hint()}; if one of them is missing, run `fusewire db upgrade`",
        ) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        if "multiple commands" in str(exc):
            raise QueryRefused("there is more than one statement", "run them apart") from None
        raise QueryFailed(f"the query failed: {exc}", views_hint()) from None
    except OSError as exc:
        raise QueryFailed(f"the connection broke: {exc}", "try again") from None


def _refusal(exc: Exception) -> QueryError:
    return QueryRefused(
        f"{exc}",
        f"{views_hint()}; after an upgrade that adds a view run `fusewire db analyst` again",
    )
