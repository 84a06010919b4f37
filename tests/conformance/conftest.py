"""Real parts for tests: NATS, databases on SQLite and PostgreSQL, services in this process."""

import asyncio
import contextlib
import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from judge_desk import Desk
from nats.aio.msg import Msg

from fusewire import bus as bus_module
from fusewire import loops as loops_module
from fusewire import provision
from fusewire.blobs import Blobs
from fusewire.bus import Bus
from fusewire.contracts import Tier
from fusewire.http_server import listen
from fusewire.service import Host, Service
from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import PostgresServer
from fusewire.topology import BLOB_STORE, topology
from fusewire_cli.client import Client
from fusewire_cli.local.runner import Stack, build_service
from fusewire_console import service as console_service

MakeBus = Callable[..., Awaitable[Bus]]
MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]


@pytest.fixture(autouse=True)
def _short_pulls(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle loop notices within a moment that it has to stop."""
    monkeypatch.setattr(bus_module, "PULL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(loops_module, "PULL_TIMEOUT_S", 0.2)


# -- NATS -------------------------------------------------------------------------------------


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A server of the test's own, without streams."""
    async with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def make_bus(nats: NatsServer) -> AsyncIterator[MakeBus]:
    """Connects as a service; with `models`, the topology for them is applied first."""
    async with AsyncExitStack() as stack:

        async def connect(service: str = "test", models: dict[str, Tier] | None = None) -> Bus:
            bus = Bus(service, Nats(url=nats.url), drain_s=2)
            await bus.connect(timeout_s=120)
            stack.push_async_callback(bus.stop)
            if models is not None:
                await provision.apply(bus.js, topology(models, ["default"]))
            return bus

        yield connect


@pytest.fixture
async def traffic(nats: NatsServer) -> AsyncIterator[list[Msg]]:
    """Everything that goes over the broker, on any subject."""
    bus = Bus("ops", Nats(url=nats.url), drain_s=2)
    await bus.connect(timeout_s=120)
    seen: list[Msg] = []

    async def note(msg: Msg) -> None:
        seen.append(msg)

    # More than any test sends: a client that falls behind is told less.
    await bus.client.subscribe(">", cb=note, pending_bytes_limit=512 * 1024**2)
    await bus.confirm_subscriptions()
    yield seen
    await bus.stop()


# -- databases --------------------------------------------------------------------------------


def _in_thread(work: Callable[[], Awaitable[Any]]) -> None:
    """Run a coroutine of a session's fixture apart from any test's event loop."""

    async def run() -> None:
        await work()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, run()).result()


async def _migrate(url: str) -> None:
    store = Store(Database(url=url))
    try:
        await migrate.upgrade(store)
    finally:
        await store.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL, with a migrated `template` to copy and an empty `template0`."""
    with PostgresServer() as server:

        async def prepare() -> None:
            connection = await asyncpg.connect(server.dsn)
            await connection.execute("CREATE DATABASE migrated")
            await connection.close()
            await _migrate(server.url("migrated"))

        _in_thread(prepare)
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    _in_thread(lambda: _migrate(f"sqlite+aiosqlite:///{path}"))
    return path


_numbers = itertools.count(1)


@contextlib.asynccontextmanager
async def _copy(server: PostgresServer, template: str) -> AsyncIterator[Database]:
    """A database of a test's own. It is removed after it: a thousand of them fill the memory."""
    name = f"t{next(_numbers)}"
    connection = await asyncpg.connect(server.dsn)
    # Its files are copied. To write each page to the log, as is the default, takes twice the time.
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield Database(url=server.url(name))
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


@pytest.fixture
async def empty_postgres(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A PostgreSQL database without tables."""
    async with _copy(postgres, "template0") as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """A database without tables, of either kind."""
    if request.param == "sqlite":
        return Database(url=f"sqlite+aiosqlite:///{tmp_path / 'fusewire.db'}")
    database: Database = request.getfixturevalue("empty_postgres")
    return database


@pytest.fixture
def sqlite_database(migrated_sqlite: Path, tmp_path: Path) -> Database:
    """A migrated SQLite database."""
    return Database(
        url=f"sqlite+aiosqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'fusewire.db')}"
    )


@pytest.fixture
async def postgres_database(postgres: PostgresServer) -> AsyncIterator[Database]:
    """A migrated PostgreSQL database."""
    async with _copy(postgres, "migrated") as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    """A migrated database: the test runs on both kinds."""
    found: Database = request.getfixturevalue(
        "sqlite_database" if request.param == "sqlite" else "postgres_database"
    )
    return found


@pytest.fixture
async def store(database: Database) -> AsyncIterator[Store]:
    """The store of a migrated database: the test runs on both kinds."""
    store = Store(database)
    yield store
    await store.close()


@pytest.fixture
def desk(store: Store) -> Desk:
    """A judge without a broker."""
    return Desk(store)


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    """A connection to a broker of the test's own, with all that is not of one model."""
    bus = Bus("test", Nats(url=nats.url), drain_s=2)
    await bus.connect(timeout_s=120)
    await provision.apply(bus.js, topology({}, ["default"]))
    yield bus
    await bus.stop()


@pytest.fixture
async def ops(nats: NatsServer) -> AsyncIterator[Bus]:
    """An operator's connection to it, with nothing applied."""
    bus = Bus("ops", Nats(url=nats.url), drain_s=2)
    await bus.connect(timeout_s=120)
    yield bus
    await bus.stop()


@pytest.fixture
def blobs(bus: Bus) -> Blobs:
    """Its object store."""
    return bus.blobs(BLOB_STORE)


# -- services ---------------------------------------------------------------------------------


@pytest.fixture
async def model_server() -> AsyncIterator[ModelServer]:
    """The fake model server; it answers whatever name a request gives."""
    async with ModelServer() as server:
        yield server


@pytest.fixture
def make_settings(
    tmp_path: Path, sqlite_database: Database, model_server: ModelServer
) -> MakeSettings:
    """Settings with hosted models `a`, `b`, `c`, `j` at the fake server; `a` to `c` are the pool.

    `pool` and `models` add to what is there; all else replaces a section.
    """

    def make(
        *, pool: dict[str, Any] | None = None, models: dict[str, Any] | None = None, **sections: Any
    ) -> Settings:
        hosted = {
            n: {"kind": "remote", "base_url": model_server.base_url, "model": n} for n in "abcj"
        }
        given: dict[str, Any] = {
            "data_dir": tmp_path / "data",
            "database": sqlite_database,
            "http": Http(port=0),
            "limits": {"drain_s": 2, "call_drain_s": 2},
            "models": hosted | (models or {}),
            # Nobody is left out for being slow: how busy the machine is must not show in an
            # outcome.
            "pools": {
                "default": {
                    "members": ["a", "b", "c"],
                    "judge": "j",
                    "quorum": 1.0,
                    "deadline_s": 250,
                    "control_share": 0.0,
                    **(pool or {}),
                }
            },
        }
        return Settings(**{**given, **sections})

    return make


@pytest.fixture
async def running() -> Running:
    """Runs services in this process: `async with running(settings, "judge", "ingest") as client`.

    A service is named, or brought along. The topology is applied first; the database is migrated
    already.
    """

    @contextlib.asynccontextmanager
    async def run(settings: Settings, *services: str | Service) -> AsyncIterator[Client]:
        bus = Bus("ops", settings.nats)
        await bus.connect(timeout_s=120)
        await provision.apply(
            bus.js, topology({name: m.kind for name, m in settings.models.items()}, settings.pools)
        )
        await bus.stop()
        sock = listen(settings.http)
        host = Host(
            [build_service(s, settings) if isinstance(s, str) else s for s in services],
            sock,
            settings.http,
        )
        url = "http://{}:{}".format(*sock.getsockname()[:2])
        await host.start()
        try:
            async with Client(url) as client:
                yield client
        finally:
            await host.stop()

    return run


@pytest.fixture
async def console_alone(monkeypatch: pytest.MonkeyPatch) -> ConsoleRunning:
    """Runs the console without an API: `async with console_alone(settings) as web`.

    `web` is a session of a client at the console's address.
    """
    # A page that takes long on a busy machine is no error.
    monkeypatch.setattr(console_service, "TIMEOUT_S", PATIENCE_S)

    @contextlib.asynccontextmanager
    async def run(
        settings: Settings, api_url: str = "http://127.0.0.1:1"
    ) -> AsyncIterator[aiohttp.ClientSession]:
        section = settings.console.model_copy(update={"api_url": api_url})
        page_settings = settings.model_copy(update={"console": section})
        sock = listen(page_settings.http)
        host = Host([build_service("console", page_settings)], sock, page_settings.http)
        url = "http://{}:{}".format(*sock.getsockname()[:2])
        await host.start()
        try:
            async with aiohttp.ClientSession(url, headers={"origin": url}) as web:
                yield web
        finally:
            await host.stop()

    return run


@pytest.fixture
async def console(running: Running, console_alone: ConsoleRunning) -> ConsoleRunning:
    """Runs services and the console: `async with console(settings, "ingest") as web`."""

    @contextlib.asynccontextmanager
    async def run(
        settings: Settings, *services: str | Service
    ) -> AsyncIterator[aiohttp.ClientSession]:
        async with (
            running(settings, *services) as api,
            console_alone(settings, str(api.url)) as web,
        ):
            yield web

    return run


@pytest.fixture
async def stack() -> Running:
    """Runs the whole local stack in this process: `async with stack(settings) as client`."""

    @contextlib.asynccontextmanager
    async def run(settings: Settings) -> AsyncIterator[Client]:
        whole = Stack(settings)
        await whole.start()
        try:
            async with Client(whole.url) as client:
                yield client
        finally:
            await whole.stop()

    return run


# -- the API ----------------------------------------------------------------------------------


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
async def http(settings: Settings, stack: Running) -> AsyncIterator[aiohttp.ClientSession]:
    """The whole of Fusewire, and a plain client: nothing is tried again, answers are seen as is."""
    async with stack(settings) as client, aiohttp.ClientSession(client.url) as session:
        yield session


@pytest.fixture
async def door(
    make_settings: MakeSettings, running: Running, nats: NatsServer
) -> AsyncIterator[aiohttp.ClientSession]:
    """Ingest alone: what is accepted stays undecided."""
    limits = {"drain_s": 2, "prompt_bytes": 20_000, "text_bytes": 1_000}
    settings = make_settings(nats=Nats(url=nats.url), limits=limits)
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as session:
        yield session
