"""Connections and transactions, the same on SQLite and PostgreSQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import URL, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from fusewire.errors import StartupError, Transient
from fusewire.settings import Database

_BUSY_S = 10
_LINE_S = 10
_PRAGMAS = (
    f"PRAGMA busy_timeout = {_BUSY_S * 1000}",
    # Accepted means committed, also when the power fails.
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


def parse_url(database: Database) -> URL:
    """Read the database's address.

    Raises:
        StartupError: it is no address.
    """
    try:
        return make_url(database.url)
    except (ArgumentError, ValueError):
        mend = "use sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/NAME as [database] url"
        raise StartupError("database.url cannot be read", mend) from None


_LINES: WeakValueDictionary[tuple[str | None, int], asyncio.Lock] = WeakValueDictionary()
"""By SQLite's file and event loop: where the writers of this process wait for each other."""


class Store:
    """The database. `read` and `write` are its transactions; both give a Core connection."""

    def __init__(self, database: Database) -> None:
        self.url = parse_url(database)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_size": database.pool_size, "pool_timeout": 10}
        options["hide_parameters"] = True  # an error's text would hold prompts
        if self.is_sqlite:
            if self.url.database:
                _make_folder(Path(self.url.database).parent)
        else:
            options["connect_args"] = {"timeout": 5, "command_timeout": 30}
        self.engine: AsyncEngine = create_async_engine(self.url, **options)
        if self.is_sqlite:
            _prepare_sqlite(self.engine)
        self._line: asyncio.Lock | None = None

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write. On SQLite it takes the write lock at its beginning, in turn.

        Raises:
            Transient: the database is down, busy, or broke a deadlock at our expense.
        """
        async with self._transaction(write=True) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads. Raises Transient like `write`."""
        async with self._transaction(write=False) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _transaction(self, *, write: bool) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._turn() if write else contextlib.nullcontext(), self.engine.connect() as plain:
                connection = await plain.execution_options(fusewire_write=write)
                async with connection.begin():
                    yield connection
        except (DBAPIError, PoolTimeoutError, OSError, TimeoutError) as exc:
            if _is_ours(exc):
                raise
            raise Transient(
                f"the database is not available ({type(getattr(exc, 'orig', None) or exc).__name__})"
            ) from exc

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for one's turn to write, `_LINE_S` at most.

        SQLite lets one write at a time and others poll for its lock, in no order: of 64 writers the last waited 2 to 3
        seconds, and in a line 0.3 to 0.5. Writers of other processes are still polled for.
        """
        if not self.is_sqlite:
            yield
            return
        if self._line is None:
            key = self.url.database, id(asyncio.get_running_loop())
            self._line = _LINES.setdefault(key, asyncio.Lock())
        async with asyncio.timeout(_LINE_S):
            await self._line.acquire()
        try:
            yield
        finally:
            self._line.release()

    async def ping(self) -> None:
        """Raises StartupError when the database does not answer."""
        try:
            async with self.read() as connection:
                await connection.execute(text("SELECT 1"))
        except (Transient, DBAPIError) as exc:
            where = self.url.render_as_string(hide_password=True)
            raise StartupError(
                f"no database answers at {where}: {exc}", "start it, or mend [database] url (FUSEWIRE_DATABASE__URL)"
            ) from None

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def _is_ours(exc: Exception) -> bool:
    """Whether a statement failed for what it says, so that trying again changes nothing."""
    if isinstance(exc, IntegrityError | ProgrammingError | DataError):
        return True
    # asyncpg's other errors come as they are; SQLSTATE classes: data, integrity, syntax or access.
    return str(getattr(getattr(exc, "orig", None), "sqlstate", None))[:2] in ("22", "23", "42")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StartupError(
            f"the database's folder {folder} cannot be made: {exc.strerror}",
            "mend [database] url (FUSEWIRE_DATABASE__URL)",
        ) from None


def _prepare_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # We say BEGIN ourselves: the driver's own would begin a read and fail at the first write.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        _journal(connection, cursor)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        write = connection.get_execution_options().get("fusewire_write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _journal(connection: Any, cursor: Any) -> None:
    """Set the write-ahead log. SQLite heeds no busy_timeout where several open a new file and set it at once."""
    tries = _BUSY_S * 20
    for left in reversed(range(tries)):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except connection.dbapi.OperationalError:
            if not left:
                raise
            connection.run_async(lambda _: asyncio.sleep(_BUSY_S / tries))
        else:
            return
