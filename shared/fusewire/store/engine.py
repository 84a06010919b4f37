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

from fusewire import metrics
from fusewire.errors import EXIT_STORED, DamagedError, StartupError, Transient
from fusewire.settings import Database
from fusewire.store import sqlite_connection

T = TypeVar("T")

_BUSY_S = 10
_WRITE_QUEUE_S = 10
_PRAGMAS = (
    f"PRAGMA busy_timeout = {_BUSY_S * 1000}",
    # Accepted means committed, also when the power fails (docs/decisions/0009).
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
)


def parse_url(database: Database) -> URL:
    """Read the database's address.

    Raises:
        StartupError: it is not a valid address.
    """
    try:
        return make_url(database.url)
    except (ArgumentError, ValueError):
        mend = (
            "use sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/NAME as [database] url"
        )
        raise StartupError("database.url cannot be read", mend) from None


_WRITE_LOCKS: WeakValueDictionary[tuple[str | None, int], asyncio.Lock] = WeakValueDictionary()
"""By SQLite file and event loop: the lock for which the writers of this process queue."""


_KINDS = {True: "write", False: "read"}
_TRANSACTIONS = {write: metrics.TRANSACTIONS.labels(kind) for write, kind in _KINDS.items()}
_TRANSACTION_SECONDS = {
    write: metrics.TRANSACTION_SECONDS.labels(kind) for write, kind in _KINDS.items()
}

READERS = 2
"""Threads that read SQLite at the same time."""


class Store:
    """The database. `read` and `write` are transactions on a connection; `run` is for hot paths.

    Args:
        database: the settings.
        is_patient: whether a statement may take any time, such as creating an index of millions of
            rows.
    """

    def __init__(self, database: Database, *, is_patient: bool = False) -> None:
        self.url = parse_url(database)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_size": database.pool_size, "pool_timeout": 10}
        options["hide_parameters"] = True  # an error's text would hold prompts
        if self.is_sqlite:
            if self.url.database:
                _make_folder(Path(self.url.database).parent)
            options["connect_args"] = {"async_creator_fn": sqlite_connection.connect}
        else:
            options["connect_args"] = {"timeout": 5, "command_timeout": None if is_patient else 30}
        self.engine: AsyncEngine = create_async_engine(self.url, **options)
        self._threads: dict[bool, ThreadPoolExecutor] = {}
        self._plain: Engine | None = None
        if self.is_sqlite:
            _prepare_sqlite(self.engine)
            # As many connections as threads, as each transaction uses one.
            self._plain = create_engine(
                self.url.set(drivername="sqlite"), pool_size=1 + READERS, hide_parameters=True
            )
            _prepare_plain_sqlite(self._plain)
            self._threads = {
                True: ThreadPoolExecutor(1, "sqlite-write"),
                False: ThreadPoolExecutor(READERS, "sqlite"),
            }
        self._write_lock: asyncio.Lock | None = None
        self._fault = ""
        """Why the last transaction could not use the database; empty if it could."""

    def unready(self) -> list[str]:
        """Why the database cannot be used now; empty while it can."""
        return [self._fault] if self._fault else []

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The synchronous engines, for event listeners."""
        return (self.engine.sync_engine, *([self._plain] if self._plain else []))

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write. On SQLite it queues for the write lock before BEGIN.

        Raises:
            Transient: the database is down or busy, or aborted the transaction as a deadlock.
        """
        async with self._transaction(write=True) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads. Raises Transient like `write`."""
        async with self._transaction(write=False) as connection:
            yield connection

    async def run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        """Run a whole transaction that waits only for the database; returns the result of `work`.

        On SQLite it stays on one thread from BEGIN to COMMIT: changing threads for each statement,
        as `read` and `write` do, takes longer than the statements
        (docs/decisions/0043). Raises Transient like `write`. If the caller is cancelled, the
        transaction may have been committed all the same.
        """
        with self._measure(write=write):
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
        with self._measure(write=write):
            async with (
                self._turn() if write else contextlib.nullcontext(),
                self.engine.connect() as plain,
            ):
                connection = await plain.execution_options(fusewire_write=write)
                async with connection.begin():
                    yield connection

    @contextlib.contextmanager
    def _measure(self, *, write: bool) -> Iterator[None]:
        """Count and time a transaction, and note whether the database could be used."""
        _TRANSACTIONS[write].inc()
        try:
            with _TRANSACTION_SECONDS[write].time(), _translate_errors():
                yield
        except Transient as exc:
            metrics.DATABASE_FAILURES.inc()
            self._fault = "the database does not answer"
            if isinstance(exc, DamagedError):
                self._fault = exc.what
            raise
        self._fault = ""

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Queue for the write lock of SQLite, `_WRITE_QUEUE_S` at most.

        SQLite lets one connection write at a time, and others poll for its lock in no order. Of 64
        writers the last waited 2 to 3 s so, and 0.3 to 0.5 s in a queue. Writers of other processes
        are still polled for.
        """
        if not self.is_sqlite:
            yield
            return
        if self._write_lock is None:
            key = self.url.database, id(asyncio.get_running_loop())
            self._write_lock = _WRITE_LOCKS.setdefault(key, asyncio.Lock())
        async with asyncio.timeout(_WRITE_QUEUE_S):
            await self._write_lock.acquire()
        try:
            yield
        finally:
            self._write_lock.release()

    async def ping(self) -> None:
        """Check that the database answers. Raises StartupError if not, or if it is damaged."""
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
def _translate_errors() -> Iterator[None]:
    """Turn errors of an unavailable database into Transient."""
    try:
        yield
    except (DBAPIError, PoolTimeoutError, OSError, TimeoutError) as exc:
        if _is_ours(exc):
            raise
        if _is_damage(exc):
            raise DamagedError(
                f"the database file is damaged ({getattr(exc, 'orig', exc)})",
                "stop Fusewire and restore the file from a backup;"
                " an empty one is made where there is none",
            ) from exc
        raise Transient(
            f"the database is not available ({type(getattr(exc, 'orig', None) or exc).__name__})"
        ) from exc


def _transact(engine: Engine, work: Callable[[Connection], T], write: bool) -> T:
    with engine.connect().execution_options(fusewire_write=write) as connection, connection.begin():
        return work(connection)


def _is_ours(exc: Exception) -> bool:
    """Whether the statement itself is wrong, so that a retry cannot help."""
    if isinstance(exc, IntegrityError | ProgrammingError | DataError):
        return True
    # SQLAlchemy does not translate all errors of asyncpg. SQLSTATE classes 22: data exception,
    # 23: integrity violation, 42: syntax error or access violation.
    return str(getattr(getattr(exc, "orig", None), "sqlstate", None))[:2] in ("22", "23", "42")


def _is_damage(exc: Exception) -> bool:
    """Whether SQLite reports that its file is not a database, or a damaged one."""
    code = getattr(getattr(exc, "orig", None), "sqlite_errorcode", None)
    # SQLite's extended codes hold the primary one in their lowest byte.
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
        # BEGIN is issued below: the driver's own would begin a read transaction, which fails at its
        # first write.
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
    """Set the journal mode to WAL.

    Retried here, as SQLite ignores busy_timeout when several processes open a new file and set the
    mode at the same time.
    """
    tries = _BUSY_S * 20
    for remaining_tries in reversed(range(tries)):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if not remaining_tries:
                raise
            pause(connection, _BUSY_S / tries)
        else:
            return
