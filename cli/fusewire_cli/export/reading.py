"""Reads the views in one read-only transaction, as batches of Arrow columns.

Not through `Store` or `Analyst`: each of their statements is a transaction of its own, and they
make a Python value of the right type of each cell, which Arrow does for a column at once.
"""

import asyncio
import contextlib
import itertools
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from fusewire.errors import EXIT_STORED, DamagedError, StartupError, Transient
from fusewire.settings import Database
from fusewire.store.engine import parse_url
from fusewire.store.views import ViewColumn
from fusewire.store.views.view import ColumnType
from fusewire_cli.export.manifest import Stamp

BATCH_BYTES = 8 * 1024**2
"""About what a batch of rows holds, so that memory does not grow with the length of answers."""
_FIRST_ROWS, _MOST_ROWS = 200, 1_000
"""More at once would be out of the processor's caches before they are columns."""
_CACHE_KIB = 65_536
_CONNECT_S = 5

Rows = Sequence[Sequence[Any]]
_NO_VIEWS = StartupError(
    "nothing has been stored yet: the database has no views",
    "run `fusewire db upgrade`, or start `fusewire up`, which does it",
)


class Reader(ABC):
    """A connection that reads. `snapshot` is the transaction around everything else."""

    dialect: str

    @abstractmethod
    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """A transaction that sees the database as it is at its first statement."""

    @abstractmethod
    def pages(self, sql: str, parameters: Sequence[Any], rows: "PageSize") -> Iterator[Rows]:
        """The rows of a statement, as many at once as `rows` says."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""

    @abstractmethod
    def period(self, day: date) -> tuple[Any, Any]:
        """The first moment of a UTC day and of the next, as parameters."""

    def read_stamps(self, sql: str, parameters: Sequence[Any] = ()) -> dict[str, Stamp]:
        """The stamps that `selects.stamps` selects, by day."""
        rows = itertools.chain.from_iterable(self.pages(sql, parameters, PageSize()))
        return {str(day): Stamp(*stamp) for day, *stamp in rows}


class PageSize:
    """How many rows are read at once: fewer where they are long."""

    def __init__(self) -> None:
        self.rows = _FIRST_ROWS

    def adjust(self, batch: Any) -> None:
        """Choose the next number by what the last batch held."""
        row_bytes = max(batch.nbytes // max(batch.num_rows, 1), 1)
        self.rows = min(max(BATCH_BYTES // row_bytes, 1), _MOST_ROWS, self.rows * 8)


class SqliteReader(Reader):
    """Reads a SQLite file."""

    dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise StartupError(
                f"nothing has been stored yet: there is no database at {path}",
                "run `fusewire up`, or go to the folder where Fusewire runs",
            )
        with self._errors():
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10
            )
            self._connection.execute("PRAGMA query_only = ON")
            # Keys are random, so those of a day's outcomes are anywhere in their index.
            self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            views = "SELECT 1 FROM sqlite_schema WHERE type = 'view' AND name = 'v_outcome'"
            if not self._connection.execute(views).fetchone():
                raise _NO_VIEWS

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """A deferred transaction, which sees the file as it is at its first read."""
        with self._errors():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    def pages(self, sql: str, parameters: Sequence[Any], rows: PageSize) -> Iterator[Rows]:
        """The rows of a statement, with a cursor."""
        cursor = self._connection.execute(sql, parameters)
        while page := cursor.fetchmany(rows.rows):
            yield page

    def period(self, day: date) -> tuple[str, str]:
        """As texts, which is how SQLite holds times."""
        return f"{day} 00:00:00.000000", f"{day + timedelta(days=1)} 00:00:00.000000"

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DamagedError(
                    f"the database file is damaged ({exc})",
                    "stop Fusewire and restore the file from a backup",
                ) from exc
            raise Transient(f"the database cannot be read ({exc})") from exc


class PostgresReader(Reader):
    """Reads PostgreSQL, with a cursor of the server."""

    dialect = "postgresql"

    def __init__(self, url: URL) -> None:
        self._asyncpg: Any = import_module("asyncpg")
        _, options = url.get_dialect()().create_connect_args(url)
        own = ("prepared_statement_cache_size", "prepared_statement_name_func")
        arguments = {name: value for name, value in options.items() if name not in own}
        self._runner = asyncio.Runner()
        try:
            connecting = self._asyncpg.connect(**arguments, timeout=_CONNECT_S)
            self._connection = self._runner.run(_wait(connecting))
        except (OSError, TimeoutError, self._asyncpg.PostgresError) as exc:
            self._runner.close()
            where = url.render_as_string(hide_password=True)
            raise StartupError(
                f"no database answers at {where}: {exc or type(exc).__name__}",
                "start it, or mend [database] url (FUSEWIRE_DATABASE__URL)",
            ) from None
        if self._run(self._connection.fetchval("SELECT to_regclass('v_outcome')")) is None:
            self.close()
            raise _NO_VIEWS

    def _run(self, call: Any) -> Any:
        try:
            return self._runner.run(_wait(call))
        except (OSError, self._asyncpg.PostgresError, self._asyncpg.InterfaceError) as exc:
            raise Transient(f"the database cannot be read ({exc})") from exc

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction in which each statement sees the same rows."""
        transaction = self._connection.transaction(isolation="repeatable_read", readonly=True)
        self._run(transaction.start())
        try:
            yield
        finally:
            with contextlib.suppress(Transient):
                self._run(transaction.rollback())

    def pages(self, sql: str, parameters: Sequence[Any], rows: PageSize) -> Iterator[Rows]:
        """The rows of a statement, with a cursor."""
        cursor = self._run(self._connection.cursor(sql, *parameters))
        while page := self._run(cursor.fetch(rows.rows)):
            yield page

    def period(self, day: date) -> tuple[datetime, datetime]:
        """As times."""
        start = datetime.combine(day, time(), UTC)
        return start, start + timedelta(days=1)

    def close(self) -> None:
        """Close connection and event loop."""
        with contextlib.suppress(Transient):
            self._run(self._connection.close())
        self._runner.close()


async def _wait(call: Any) -> Any:
    return await call


def connect(database: Database) -> Reader:
    """Open the database for reading.

    Raises:
        StartupError: it does not answer, or has no views.
        DamagedError: it is a damaged file.
    """
    url = parse_url(database)
    if url.get_backend_name() != "sqlite":
        return PostgresReader(url)
    try:
        return SqliteReader(Path(url.database or ""))
    except DamagedError as exc:
        raise StartupError(exc.what, exc.mend, EXIT_STORED) from None


def batches(
    reader: Reader, sql: str, parameters: Sequence[Any], columns: Sequence[ViewColumn]
) -> Iterator[Any]:
    """The rows of a statement as Arrow's record batches."""
    pa: Any = import_module("pyarrow")
    schema = arrow_schema(columns)
    size = PageSize()
    for page in reader.pages(sql, parameters, size):
        arrays = [
            _array(pa, column, values, reader.dialect)
            for column, values in zip(columns, zip(*page, strict=True), strict=True)
        ]
        batch = pa.record_batch(arrays, schema=schema)
        size.adjust(batch)
        yield batch


def arrow_type(pa: Any, kind: ColumnType) -> Any:
    """Arrow's type for that of a view's column."""
    return {
        "text": pa.string(),
        "integer": pa.int64(),
        "real": pa.float64(),
        "boolean": pa.bool_(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", "UTC"),
    }[kind]


def arrow_schema(columns: Sequence[ViewColumn]) -> Any:
    """The Arrow schema of a view's columns, with their comments."""
    pa: Any = import_module("pyarrow")
    fields = [
        pa.field(column.name, arrow_type(pa, column.type), metadata={"comment": column.comment})
        for column in columns
    ]
    return pa.schema(fields)


def _array(pa: Any, column: ViewColumn, values: Sequence[Any], dialect: str) -> Any:
    """The values of a column, as the database gives them, as an Arrow array of its type."""
    kind = arrow_type(pa, column.type)
    if dialect == "postgresql":
        # Times are read as microseconds.
        return (
            pa.array(values, pa.int64()).cast(kind)
            if column.type == "timestamp"
            else (pa.array(values, kind))
        )
    steps = {
        "boolean": (pa.int8(), kind),
        "date": (pa.string(), kind),
        # They are in UTC, and do not say so.
        "timestamp": (pa.string(), pa.timestamp("us"), kind),
    }
    first, *further_types = steps.get(column.type, (kind,))
    array = pa.array(values, first)
    for further in further_types:
        array = array.cast(further)
    return array
