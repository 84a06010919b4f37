"""Analysts' statements on PostgreSQL: a read-only transaction, which is always rolled back."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from fusewire.store.analyst.result import (
    CHUNK_BYTES,
    LONGEST_VALUE,
    QueryError,
    QueryFailed,
    QueryRefused,
    QueryTimeout,
    ResultColumn,
    ResultRows,
    Row,
    long_value,
    plain,
    size,
)
from fusewire.store.analyst.statement import (
    first_word,
    number_parameters,
    postgresql_value,
    views_hint,
    without_end,
)
from fusewire.store.views.view import ColumnType

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.prepared_stmt import PreparedStatement
    from asyncpg.types import Attribute

CONNECT_S = 5
CLOSE_S = 3
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
"""All further types are written as text, and bytea as bytes."""
_FIRST_ROWS = 2
"""Before the length of rows is known: each may be as long as `LONGEST_VALUE`."""


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
                columns, statement, values = await _prepare(connection, sql, parameters)
        chunks = _chunks(statement, values, clock, n_columns=len(columns), chunk_rows=chunk_rows)
        async with contextlib.aclosing(chunks):
            yield ResultRows(columns, chunks)
    finally:
        # The server rolls back. Closing in order also tells it to end a statement that still runs.
        with contextlib.suppress(Exception):
            await connection.close(timeout=CLOSE_S)


def _column_type(name: str) -> ColumnType | None:
    return None if name == "bytea" else _TYPES.get(name, "text")


async def _prepare(
    connection: "asyncpg.Connection[Any]", sql: str, parameters: Mapping[str, object]
) -> "tuple[list[ResultColumn], PreparedStatement[Any], list[Any]]":
    text, names = number_parameters(sql)
    statement = await connection.prepare(text)
    attributes = statement.get_attributes()
    if not attributes:
        raise QueryRefused("the statement returns no rows", "write a SELECT")
    types = [kind.name for kind in statement.get_parameters()]
    values = [
        postgresql_value(name, parameters[name], kind)
        for name, kind in zip(names, types, strict=True)
    ]
    if first_word(sql) != "EXPLAIN":
        statement = await connection.prepare(_limit(text, attributes))
    columns = [
        ResultColumn(attribute.name, _column_type(attribute.type.name)) for attribute in attributes
    ]
    return columns, statement, values


def _limit(sql: str, attributes: "Sequence[Attribute]") -> str:
    """A statement whose rows end with whether a value is too long, which is NULL then.

    The server may build a value of 1 GB; here it would be one more, or two.
    """
    names, cells, lengths = [], [], []
    for number, attribute in enumerate(attributes):
        kind = attribute.type.name
        names.append(f"c{number}")
        cell = f"c{number}" if kind in _TYPES or kind == "bytea" else f"CAST(c{number} AS text)"
        if kind not in _TYPES:
            lengths.append(f"octet_length({cell}) > {LONGEST_VALUE}")
            cell = f"CASE WHEN octet_length({cell}) <= {LONGEST_VALUE} THEN {cell} END"
        cells.append(cell)
    is_long = " OR ".join(lengths) or "FALSE"
    # OFFSET keeps the planner from computing a value once for each time that it is named.
    return (
        f"SELECT {', '.join(cells)}, {is_long} FROM"  # noqa: S608 - it runs as it was written
        f" (SELECT * FROM (\n{without_end(sql)}\n) AS inner_result OFFSET 0)"
        f" AS result({', '.join(names)})"
    )


def _row(record: Any, n_columns: int) -> Row:
    cells = tuple(map(plain, record))
    if len(cells) > n_columns and cells[-1]:
        raise long_value()
    return cells[:n_columns]


async def _chunks(
    statement: "PreparedStatement[Any]",
    values: Sequence[Any],
    clock: _Clock,
    *,
    n_columns: int,
    chunk_rows: int,
) -> AsyncGenerator[list[Row], None]:
    n_rows = min(_FIRST_ROWS, chunk_rows)
    with _errors(clock.timeout_s):
        async with clock.count():
            cursor = await statement.cursor(*values)
        while True:
            async with clock.count():
                records = await cursor.fetch(n_rows)
            if not records:
                return
            rows = [_row(record, n_columns) for record in records]
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
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as exc:
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
