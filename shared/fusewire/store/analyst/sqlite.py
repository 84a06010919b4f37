"""Analysts' statements on SQLite: a connection that can read our views and nothing else.

The file is opened read-only, and an authorizer is asked for each table, column and function while
a statement is prepared. Its last argument names the innermost view that an access comes from. But
the name of a WITH clause arrives there too (sqlite3ResolveSelectNames sets the context to the name
of any item of FROM that is a SELECT), so `WITH v_outcome AS (SELECT * FROM prompts) …` would pass
for our view. So each connection reads tables through views of its own in the temporary schema,
whose names nobody can guess.
"""

import asyncio
import contextlib
import datetime as dt
import re
import secrets
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fusewire.errors import DamagedError
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
    infer_type,
    long_value,
    size,
)
from fusewire.store.analyst.statement import sqlite_value, views_hint
from fusewire.store.views import VIEWS
from fusewire.store.views.view import ColumnType, View

FUNCTIONS = frozenset(
    """
    abs char coalesce format glob hex ifnull iif instr length like lower ltrim max min nullif
    printf quote random replace round rtrim sign substr substring trim typeof unhex unicode upper
    zeroblob
    current_date current_time current_timestamp date datetime julianday strftime time timediff
    unixepoch
    avg count group_concat string_agg sum total
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank
    row_number
    -> ->> json json_array json_array_length json_extract json_group_array json_group_object
    json_object json_quote json_type json_valid
    acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10
    log2 mod pi pow power radians sin sinh sqrt tan tanh trunc
    """.split()  # noqa: SIM905 - words are easier to read and to add than a list of strings
)
"""The functions of SQLite that compute something from their arguments, and touch nothing else."""
_TABLE_FUNCTIONS = frozenset({"json_each", "json_tree"})
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: LONGEST_VALUE,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 200_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    # The time that LIKE takes grows with the pattern, and nothing interrupts it.
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 256,
}
_STEPS_PER_CHECK = 10_000
"""Of SQLite's machine, between two looks at the clock: a millisecond or less."""
_STORED_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_STORED_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}")


def _column_types(view: View) -> dict[str, ColumnType]:
    return {column.name: column.type for column in view.columns}


_TYPES = {view.name: _column_types(view) for view in VIEWS}


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


# Known to connections with `detect_types` alone, which only those of this module have.
sqlite3.register_converter("BOOLEAN", lambda data: data != b"0")
sqlite3.register_converter("DATETIME", lambda data: _time(data.decode()))
sqlite3.register_converter("DATE", lambda data: dt.date.fromisoformat(data.decode()))


class _Guard:
    """The authorizer of one connection: allows reading our views, and remembers what it refused."""

    def __init__(self, definitions: Collection[str] = (), relations: Collection[str] = ()) -> None:
        """Args: the names of the views that hold the views' SQL, and of all that can be read."""
        self._definitions = frozenset(definitions)
        self._relations = frozenset(relations)
        self.refusal: QueryRefused | None = None
        self.reads: set[tuple[str, str]] = set()
        """View and column, of each that the statement reads."""
        self._tables: set[str] = set()
        """The tables of the views that the statement reads."""

    def __call__(
        self,
        action: int,
        first: str | None,
        second: str | None,
        schema: str | None,
        view: str | None,
    ) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            return self._read(first or "", second or "", schema, view)
        if action == sqlite3.SQLITE_FUNCTION:
            return self._function((second or "").lower())
        return self._refuse(
            "only a SELECT is run here", "what is stored is changed by Fusewire alone"
        )

    def _read(self, table: str, column: str, schema: str | None, view: str | None) -> int:
        if view in self._definitions:
            self._tables.add(table)
            return sqlite3.SQLITE_OK
        if table in _TABLE_FUNCTIONS:
            return sqlite3.SQLITE_OK
        if table in self._definitions and view in _TYPES:
            return sqlite3.SQLITE_OK
        if table in _TYPES and (schema == "temp" or not column):
            self.reads.add((table, column))
            return sqlite3.SQLITE_OK
        # What no column is read of, as by COUNT(*), is reported without its view if the view was
        # flattened, and so is a WITH clause, under its own name.
        if not column and (table in self._tables or not self._is_relation(table)):
            return sqlite3.SQLITE_OK
        return self._refuse(f"{table} is none of the views that can be queried", views_hint())

    def _is_relation(self, name: str) -> bool:
        # SQLite makes the tables of its pragmas when they are first named.
        name = name.lower()
        return name in self._relations or name.startswith(("sqlite_", "pragma_"))

    def _function(self, name: str) -> int:
        if name in FUNCTIONS:
            return sqlite3.SQLITE_OK
        return self._refuse(f"the function {name} cannot be used here", "write it without")

    def _refuse(self, what: str, mend: str) -> int:
        self.refusal = self.refusal or QueryRefused(what, mend)
        return sqlite3.SQLITE_DENY


class _Statement:
    """One statement on a connection of its own. All methods but `interrupt` run on one thread."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._remaining_s = timeout_s
        self._deadline = 0.0
        self._is_interrupted = False
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._guard = _Guard()
        self._columns: list[ResultColumn] = []
        self._first: list[Row] = []
        self._fixes: list[tuple[int, Callable[[Any], Any]]] = []

    def start(self, sql: str, parameters: Mapping[str, object], n_rows: int) -> list[ResultColumn]:
        """Run the statement as far as to its first rows, which its columns' types follow from."""
        with self._errors(), self._clock():
            connection = self._connect()
            values = {name: sqlite_value(value) for name, value in parameters.items()}
            self._cursor = connection.execute(sql, values)
            if self._cursor.description is None:
                raise QueryRefused("the statement returns no rows", "write a SELECT")
            names = [entry[0] for entry in self._cursor.description]
        expected = self._expect(names)
        self._first = self.fetch(n_rows)
        # No row gives no values, but the columns are there all the same.
        samples = list(zip(*self._first, strict=True)) or [()] * len(names)
        return [
            ResultColumn(name, _result_type(kind, cells))
            for name, kind, cells in zip(names, expected, samples, strict=True)
        ]

    def _connect(self) -> sqlite3.Connection:
        """Open the file, and allow nothing but reading our views."""
        self._connection = connection = _open(self._path)
        relations = _relations(connection)
        self._guard = _Guard(_make_views(connection), relations)
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        connection.set_progress_handler(self._is_late, _STEPS_PER_CHECK)
        connection.set_authorizer(self._guard)
        return connection

    def _expect(self, names: Sequence[str]) -> list[ColumnType | None]:
        """The expected types of columns; prepares to convert what is computed of such types."""
        expected = [self._expected_type(name) for name in names]
        read_kinds = {_TYPES[view][column] for view, column in self._guard.reads if column}
        fixes = [(i, _fix(kind, read_kinds)) for i, kind in enumerate(expected)]
        self._fixes = [(i, fix) for i, fix in fixes if fix]
        return expected

    def _expected_type(self, name: str) -> ColumnType | None:
        """The type of the view's column that has this name, of those that the statement reads."""
        types = {_TYPES[view][column] for view, column in self._guard.reads if column == name != ""}
        return types.pop() if len(types) == 1 else None

    def fetch(self, n_rows: int) -> list[Row]:
        """The next rows; none at the end."""
        if self._first:
            rows, self._first = self._first, []
            return rows
        assert self._cursor is not None
        rows = []
        n_bytes = 0
        with self._errors(), self._clock():
            for row in self._cursor:
                rows.append(self._convert(row))
                n_bytes += size(row)
                if len(rows) >= n_rows or n_bytes > CHUNK_BYTES:
                    break
        return rows

    def _convert(self, row: Row) -> Row:
        if not self._fixes:
            return row
        cells = list(row)
        for index, fix in self._fixes:
            cells[index] = fix(cells[index])
        return tuple(cells)

    @contextlib.contextmanager
    def _clock(self) -> Any:
        """Count the time that the database takes, not that of whoever reads the rows."""
        start = time.monotonic()
        self._deadline = start + self._remaining_s
        try:
            yield
        finally:
            self._remaining_s -= time.monotonic() - start

    def _is_late(self) -> bool:
        return self._is_interrupted or time.monotonic() > self._deadline

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning) as exc:
            raise self._translate(exc) from exc

    def _translate(self, exc: Exception) -> Exception:
        if self._guard.refusal is not None:
            return self._guard.refusal
        code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
        if code == sqlite3.SQLITE_INTERRUPT:
            return QueryTimeout(self._timeout_s)
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return DamagedError(
                f"the database file is damaged ({exc})",
                "stop Fusewire and restore the file from a backup",
            )
        if code == sqlite3.SQLITE_TOOBIG:
            return long_value()
        return _statement_error(exc)

    def interrupt(self) -> None:
        """End what runs, or will; may be called from any thread."""
        # SQLite's own interrupt ends only what has begun.
        self._is_interrupted = True
        if self._connection is not None:
            self._connection.interrupt()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def _statement_error(exc: Exception) -> QueryError:
    if "unsafe use of" in str(exc):
        return QueryRefused("a view is named with its schema", "write its name alone")
    if "one statement at a time" in str(exc):
        return QueryRefused("there is more than one statement", "run them apart")
    return QueryFailed(f"the query failed: {exc}", views_hint())


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise _nothing(path)
    try:
        return sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            detect_types=sqlite3.PARSE_DECLTYPES,
            check_same_thread=True,
            timeout=10,
        )
    except sqlite3.OperationalError as exc:
        raise QueryRefused(
            f"{path} cannot be opened: {exc}", "see that you may read the file and its folder"
        ) from None


def _nothing(path: Path) -> QueryError:
    return QueryRefused(
        f"nothing has been stored yet: there is no database at {path}",
        'ask something first, such as `fusewire ask "2 + 2?"`, or run `fusewire up` or'
        " `fusewire demo`; or go to the folder where Fusewire runs",
    )


def _relations(connection: sqlite3.Connection) -> set[str]:
    """The names of all tables, views and virtual tables, in lower case."""
    names = "SELECT name FROM sqlite_schema UNION SELECT name FROM pragma_module_list"
    return {name.lower() for (name,) in connection.execute(names)}


def _make_views(connection: sqlite3.Connection) -> Collection[str]:
    """Make views in the temporary schema; returns the names of those that read tables."""
    marks = ", ".join("?" * len(VIEWS))
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'view'"  # noqa: S608 - question marks
        f" AND name IN ({marks}) ORDER BY rowid",
        [view.name for view in VIEWS],
    ).fetchall()
    if not rows:
        raise QueryRefused(
            "nothing has been stored yet: the database has no views",
            "run `fusewire db upgrade`, or start `fusewire up`, which does it",
        )
    definitions = {name: f"{name}_{secrets.token_hex(8)}" for name, _ in rows}
    for name, sql in rows:
        select = sql.partition(" AS\n")[2]
        connection.execute(f"CREATE TEMP VIEW {definitions[name]} AS {select}")
        wrapper = f"SELECT * FROM temp.{definitions[name]}"  # noqa: S608 - names of ours
        connection.execute(f"CREATE TEMP VIEW {name} AS {wrapper}")
    return definitions.values()


def _fix(kind: ColumnType | None, read_kinds: set[ColumnType]) -> Callable[[Any], Any] | None:
    """What makes a value of SQLite the expected type.

    A column of a table comes converted already, by its declared type. What is computed, as
    `is_fallback` or MAX(finished_at), has none, so it is seen by its form, in a statement that
    reads columns of such a type.
    """
    if kind is None:
        return _to_moment if {"timestamp", "date"} & read_kinds else None
    return {"boolean": _to_boolean, "date": _to_moment, "timestamp": _to_moment}.get(kind)


def _to_boolean(value: Any) -> Any:
    return bool(value) if value in (0, 1) else value


def _to_moment(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if len(value) == 26 and _STORED_TIME.fullmatch(value):
        return _time(value)
    if len(value) == 10 and _STORED_DATE.fullmatch(value):
        with contextlib.suppress(ValueError):
            return dt.date.fromisoformat(value)
    return value


def _result_type(expected: ColumnType | None, values: Sequence[Any]) -> ColumnType | None:
    """The expected type if the first values are of it, else theirs."""
    kind = infer_type(values)
    if kind is None and all(value is None for value in values):
        return expected
    return "real" if (expected, kind) == ("real", "integer") else kind


@contextlib.asynccontextmanager
async def select(
    path: Path, sql: str, parameters: Mapping[str, object], *, chunk_rows: int, timeout_s: float
) -> AsyncIterator[ResultRows]:
    """Run a statement on a connection and a thread of its own."""
    threads = ThreadPoolExecutor(1, "analyst")
    loop = asyncio.get_running_loop()
    statement = _Statement(path, timeout_s)

    async def chunks() -> AsyncGenerator[list[Row], None]:
        while rows := await loop.run_in_executor(threads, statement.fetch, chunk_rows):
            yield rows

    try:
        columns = await loop.run_in_executor(threads, statement.start, sql, parameters, chunk_rows)
        async with contextlib.aclosing(chunks()) as remaining_chunks:
            yield ResultRows(columns, remaining_chunks)
    finally:
        # Whoever stops early, or is cancelled, does not wait for the statement's end.
        statement.interrupt()
        await loop.run_in_executor(threads, statement.close)
        threads.shutdown()
