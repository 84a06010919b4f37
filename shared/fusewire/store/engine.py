"""Connections and transactions, the same on SQLite and PostgreSQL."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from fusewire import telemetry
from fusewire.errors import EXIT_STORED, DamagedError, StartupError, Transient
from fusewire.settings import Database

T = TypeVar("T")

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
        mend = (
            "use sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/NAME as [database] url"
        )
        raise StartupError("database.url cannot be read", mend) from None


_LINES: WeakValueDictionary[tuple[str | None, int], asyncio.Lock] = WeakValueDictionary()
"""By SQLite's file and event loop: where the writers of this process wait for each other."""


_BEGUN = {
    is_write: telemetry.TRANSACTIONS.labels("write" if is_write else "read")
    for is_write in (True, False)
}

READERS = 2
"""Threads that read SQLite at once."""


class Store:
    """The database. `read` and `write` are its transactions; both give a Core connection. `run` is for hot paths.

    Args:
        database: where it is.
        is_patient: whether a statement may take any time, as where an index is made of millions of rows.
    """

    def __init__(self, database: Database, *, is_patient: bool = False) -> None:
        self.url = parse_url(database)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_size": database.pool_size, "pool_timeout": 10}
        options["hide_parameters"] = True  # an error's text would hold prompts
        if self.is_sqlite:
            if self.url.database:
                _make_folder(Path(self.url.database).parent)
        else:
            options["connect_args"] = {"timeout": 5, "command_timeout": None if is_patient else 30}
        self.engine: AsyncEngine = create_async_engine(self.url, **options)
        self._threads: dict[bool, ThreadPoolExecutor] = {}
        self._plain: Engine | None = None
        if self.is_sqlite:
            _prepare_sqlite(self.engine)
            # As many connections as threads; each transaction has one for itself.
            self._plain = create_engine(
                self.url.set(drivername="sqlite"), pool_size=1 + READERS, hide_parameters=True
            )
            _prepare_plain_sqlite(self._plain)
            self._threads = {
                True: ThreadPoolExecutor(1, "sqlite-write"),
                False: ThreadPoolExecutor(READERS, "sqlite"),
            }
        self._line: asyncio.Lock | None = None
        self._fault = ""
        """Why the last transaction that ended could not use the database."""

    def unready(self) -> list[str]:
        """Why it can be used for nothing now; empty while it can."""
        return [self._fault] if self._fault else []

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines beneath, for whoever listens to them."""
        return (self.engine.sync_engine, *([self._plain] if self._plain else []))

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

    async def run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        """Run a whole transaction that waits for nothing but the database, and return what `work` does.

        On SQLite it runs on a thread of its own from BEGIN to COMMIT: to go there and back for each statement, as
        `read` and `write` do, takes longer than the statements. Raises Transient like `write`. Where the caller is
        cancelled, it may have been committed all the same.
        """
        _BEGUN[write].inc()
        with self._noted():
            if self._plain is None:
                async with self.engine.connect() as connection, connection.begin():
                    return await connection.run_sync(work)
            async with self._turn() if write else contextlib.nullcontext():
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(
                    self._threads[write], _transact, self._plain, work, write
                )

    @contextlib.asynccontextmanager
    async def _transaction(self, *, write: bool) -> AsyncIterator[AsyncConnection]:
        _BEGUN[write].inc()
        with self._noted():
            async with (
                self._turn() if write else contextlib.nullcontext(),
                self.engine.connect() as plain,
            ):
                connection = await plain.execution_options(fusewire_write=write)
                async with connection.begin():
                    yield connection

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Note whether the database was there."""
        try:
            with _refined():
                yield
        except Transient as exc:
            self._fault = (
                exc.what if isinstance(exc, DamagedError) else "the database does not answer"
            )
            raise
        self._fault = ""

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
        """Raises StartupError when the database does not answer, or is damaged."""
        try:
            async with self.read() as connection:
                await connection.execute(text("SELECT 1"))
        except DamagedError as exc:
            raise StartupError(exc.what, exc.mend, EXIT_STORED) from None
        except (Transient, DBAPIError) as exc:
            where = self.url.render_as_string(hide_password=True)
            raise StartupError(
                f"no database answers at {where}: {exc}",
                "start it, or mend [database] url (FUSEWIRE_DATABASE__URL)",
            ) from None

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        for threads in self._threads.values():
            await asyncio.to_thread(threads.shutdown)
        if self._plain:
            self._plain.dispose()


@contextlib.contextmanager
def _refined() -> Iterator[None]:
    """Turn whatever says that the database is not there into Transient."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError, OSError, TimeoutError) as exc:
        if _is_ours(exc):
            raise
        if _is_damage(exc):
            raise DamagedError(
                f"the database file is damaged ({getattr(exc, 'orig', exc)})",
                "stop Fusewire and restore the file from a backup; an empty one is made where there is none",
            ) from exc
        raise Transient(
            f"the database is not available ({type(getattr(exc, 'orig', None) or exc).__name__})"
        ) from exc


def _transact(engine: Engine, work: Callable[[Connection], T], write: bool) -> T:
    with engine.connect().execution_options(fusewire_write=write) as connection, connection.begin():
        return work(connection)


def _is_ours(exc: Exception) -> bool:
    """Whether a statement failed for what it says, so that trying again changes nothing."""
    if isinstance(exc, IntegrityError | ProgrammingError | DataError):
        return True
    # asyncpg's other errors come as they are; SQLSTATE classes: data, integrity, syntax or access.
    return str(getattr(getattr(exc, "orig", None), "sqlstate", None))[:2] in ("22", "23", "42")


def _is_damage(exc: Exception) -> bool:
    """Whether SQLite says that its file is no database, or not a whole one."""
    code = getattr(getattr(exc, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StartupError(
            f"the database's folder {folder} cannot be made: {exc.strerror}",
            "mend [database] url (FUSEWIRE_DATABASE__URL)",
        ) from None


def _prepare_sqlite(engine: AsyncEngine) -> None:
    def pause(connection: Any, seconds: float) -> None:
        connection.run_async(lambda _: asyncio.sleep(seconds))

    _listen(engine.sync_engine, pause)


def _prepare_plain_sqlite(engine: Engine) -> None:
    _listen(engine, lambda _, seconds: time.sleep(seconds))


def _listen(engine: Engine, pause: Callable[[Any, float], None]) -> None:
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        # We say BEGIN ourselves: the driver's own would begin a read and fail at the first write.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        _journal(connection, cursor, pause)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        write = connection.get_execution_options().get("fusewire_write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _journal(connection: Any, cursor: Any, pause: Callable[[Any, float], None]) -> None:
    """Set the write-ahead log. SQLite heeds no busy_timeout where several open a new file and set it at once."""
    tries = _BUSY_S * 20
    for left in reversed(range(tries)):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if not left:
                raise
            pause(connection, _BUSY_S / tries)
        else:
            return
