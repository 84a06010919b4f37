"""For tests: a running stack of processes that end at planted crash points."""

import asyncio
import contextlib
import json
import re
import secrets
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nkeys
import psutil
from sqlalchemy import text

from fusewire.bus import Bus
from fusewire.contracts import Candidate
from fusewire.crash_points import CRASH_FOLDER_ENV, CrashPoint
from fusewire.settings import Database, Nats
from fusewire.store.engine import Store
from fusewire.testing.command_line import Cli, FakeServer, address
from fusewire.testing.eventually import PATIENCE_S, eventually
from fusewire.testing.nats_accounts import connect, embedded_broker
from fusewire.testing.postgres import PostgresServer
from fusewire.topology import CARRIERS, INGEST

ACK_WAIT_S = 5.0
"""How soon what a dead process had in hand comes again, in place of 15 s: more than a heartbeat."""
ERASED = tuple(f"erased-{number}" for number in range(40))
"""Tenants that are erased one after the other."""
PRODUCERS = ("acme", *ERASED)
"""Tenants whose producers have a user of NATS."""
NAME = re.compile(r"\bzq\d{5}\b")
"""A word in each prompt, by which it is found in rows and in calls."""


@dataclass(frozen=True)
class CrashResult:
    """What a crash did.

    Attributes:
        killed_at: when the first process ended, Unix time, s.
        outcomes: by prompt's name, the ids of its fusions that have an outcome.
        first_end: when the first outcome came after the kill, s after it; None if none did.
        announcements: by fusion, how many messages in FW_OUTCOME say that it has ended.
        calls: by prompt's name, model and messages, how often a model was called.
        repeats: by prompt's name and model, calls beyond the first with the same messages.
        marks: by prompt's name and model, candidates that say `maybe_paid_twice`.
    """

    killed_at: float
    outcomes: dict[str, list[str]]
    first_end: float | None
    announcements: Counter[str]
    calls: Counter[tuple[str, str, str]]
    repeats: Counter[tuple[str, str]]
    marks: Counter[tuple[str, str]]


@dataclass
class CrashStack:
    """A `fusewire up --processes` whose processes end at planted points.

    Attributes:
        cli: the command line in its folder, for the database that it uses.
        server: the fake models.
        url: where it listens.
        nats: how to connect to its broker.
        database: SQLAlchemy's address of its database.
        points: the folder of planted points.
    """

    cli: Cli
    server: FakeServer
    url: str
    nats: Nats
    database: str
    points: Path
    runner: psutil.Process
    _processes: Sequence[psutil.Process] = ()
    """The processes that ran when points were planted."""
    erased_tenants: Iterator[str] = field(default_factory=lambda: iter(ERASED))
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(100_000)))

    def name(self) -> str:
        """A name that no other prompt has."""
        return f"zq{next(self._numbers):05}"

    @contextlib.asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        """A connection of its own to the broker."""
        bus = Bus("ops", self.nats, drain_s=1)
        await bus.connect(timeout_s=PATIENCE_S)
        try:
            yield bus
        finally:
            await bus.stop()

    async def produce(self, tenant: str, *bodies: dict[str, Any]) -> None:
        """Publish prompts as a producer of a tenant does, which has to be one of `PRODUCERS`."""
        client = await connect(self.cli.folder / ".fusewire", f"tenant-{tenant}")
        try:
            for body in bodies:
                await client.jetstream().publish(f"fw.in.{tenant}", json.dumps(body).encode())
        finally:
            await client.close()

    @contextlib.contextmanager
    def frozen(self, module: str) -> Iterator[None]:
        """Stop the process that runs a service's module, for the moment."""
        (process,) = [p for p in self.runner.children() if module in p.cmdline()]
        process.suspend()
        try:
            yield
        finally:
            process.resume()

    def script(self, models: dict[str, Any]) -> None:
        """Tell the models what to do; forgets what was recorded."""
        script = json.dumps({"models": models, "recording": True})
        self._control("script", script.encode()).close()

    def calls(self) -> list[dict[str, Any]]:
        """The calls since the last script."""
        with self._control("stats") as reply:
            return list(json.load(reply)["recorded"])

    def _control(self, what: str, body: bytes | None = None) -> Any:
        address = f"http://127.0.0.1:{self.server.port}/_control/{what}"
        return urllib.request.urlopen(address, body, timeout=PATIENCE_S)

    async def redeliver_soon(self) -> None:
        """Have what a dead process had in hand delivered again after `ACK_WAIT_S`."""
        async with self.bus() as bus:
            for stream in (*CARRIERS, "FW_TIMER", INGEST.stream):
                for consumer in await bus.js.consumers_info(stream):
                    config = consumer.config.evolve(ack_wait=ACK_WAIT_S)
                    await bus.js.add_consumer(stream, config)

    async def crash(self, points: Sequence[CrashPoint], *, is_command: bool = False) -> float:
        """Wait until all points are taken; returns when the first was, Unix time in s.

        Args:
            points: what was planted.
            is_command: whether it is a command that ends there, and no service.

        Raises:
            AssertionError: one is never reached, or no process ended there.
        """
        files = [self.points / point for point in points]
        await asyncio.to_thread(_wait_for_first, files)
        killed_at = time.time()
        await eventually(lambda: not [file.name for file in files if file.exists()])
        if not is_command:
            await eventually(lambda: any(not _is_alive(process) for process in self._processes))
        return killed_at

    def plant(self, points: Sequence[CrashPoint]) -> None:
        """End the next process that reaches each of them."""
        self._processes = self.runner.children()
        for point in points:
            (self.points / point).touch()

    async def figures(self, names: Sequence[str], killed_at: float) -> CrashResult:
        """What became of these prompts, once all have an outcome and no stream holds any work."""
        store = Store(Database(url=self.database))
        try:
            outcomes = await eventually(lambda: self._outcomes(store, names))
            async with self.bus() as bus:
                await eventually(lambda: _is_idle(bus))
                fusions = dict(_pairs(outcomes))
                announcements = await eventually(lambda: _announcements(bus, fusions))
            ends = await _rows(store, "SELECT fusion_id, finished_at FROM outcomes")
            later = [_seconds(at) - killed_at for key, at in ends if key in fusions]
            bodies = await _rows(store, "SELECT fusion_id, body FROM candidates")
        finally:
            await store.close()
        calls = _by_prompt(self.calls())
        repeats: Counter[tuple[str, str]] = Counter()
        for (name, model, _), count in calls.items():
            repeats[name, model] += count - 1
        first_end = min((after for after in later if after > 0), default=None)
        marks = _count_marks(bodies, fusions)
        return CrashResult(killed_at, outcomes, first_end, announcements, calls, +repeats, marks)

    async def _outcomes(self, store: Store, names: Sequence[str]) -> dict[str, list[str]]:
        """By name, the fusions that have ended; empty while one has not."""
        prompts = await _rows(
            store,
            "SELECT p.fusion_id, p.body, o.fusion_id FROM prompts p"
            " LEFT JOIN outcomes o ON o.fusion_id = p.fusion_id",
        )
        fusion_ids: dict[str, list[str]] = {}
        is_whole = True
        for key, body, outcome_id in prompts:
            match = NAME.search(body)
            if match and match[0] in names:
                fusion_ids.setdefault(match[0], []).append(key)
                is_whole = is_whole and outcome_id is not None
        return fusion_ids if is_whole and len(fusion_ids) == len(names) else {}


def _count_marks(bodies: Sequence[Any], fusions: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """By prompt's name and model: candidates that say that they may have been paid twice."""
    marks: Counter[tuple[str, str]] = Counter()
    for key, body in bodies:
        candidate = Candidate.decode(body) if key in fusions else None
        if candidate and candidate.maybe_paid_twice:
            marks[fusions[key], candidate.model] += 1
    return marks


@contextlib.contextmanager
def crash_stack(
    cli: Cli, server: FakeServer, postgres: PostgresServer | None
) -> Iterator[CrashStack]:
    """Start one in the folder of a command line, which has its configuration."""
    data = cli.folder / ".fusewire"
    points = cli.folder / "points"
    points.mkdir()
    database = postgres.url() if postgres else f"sqlite+aiosqlite:///{data / 'fusewire.db'}"
    env = {
        "FUSEWIRE_DATABASE__URL": database,
        CRASH_FOLDER_ENV: str(points),
        # Otherwise commands have imported the points before they have the folder.
        "PYTHONPATH": "",
    }
    cli = replace(cli, env={**cli.env, **env})
    _make_seeds(data / "nats" / "keys")
    with cli.start("up", "--processes") as process:
        url = address(cli, process)
        nats = embedded_broker(data)
        stack = CrashStack(cli, server, url, nats, database, points, psutil.Process(process.pid))
        asyncio.run(stack.redeliver_soon())
        yield stack
        assert process.returncode is None, process.stderr[-2000:]


def _make_seeds(folder: Path) -> None:
    """Make a key for each producer; the stack makes all others when it starts."""
    folder.mkdir(mode=0o700, parents=True)
    for tenant in PRODUCERS:
        seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
        (folder / f"tenant-{tenant}.seed").write_bytes(seed)


def _wait_for_first(files: Sequence[Path]) -> None:
    """Wait until one of these files is gone."""
    end = time.monotonic() + PATIENCE_S
    while all(file.exists() for file in files):
        assert time.monotonic() < end, f"never reached: {[file.name for file in files]}"
        time.sleep(0.005)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


async def _rows(store: Store, query: str) -> list[Any]:
    async with store.read() as connection:
        return list(await connection.execute(text(query)))


def _seconds(at: str | datetime) -> float:
    if isinstance(at, datetime):
        return at.timestamp()
    moment = datetime.fromisoformat(at)
    # SQLite's texts have no zone.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _pairs(outcomes: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Fusions, each with its prompt's name."""
    for name, keys in outcomes.items():
        for key in keys:
            yield key, name


async def _is_idle(bus: Bus) -> bool:
    """Whether no stream holds any work."""
    streams = (*CARRIERS, INGEST.stream)
    with contextlib.suppress(TimeoutError):
        return not any([(await bus.js.stream_info(stream)).state.messages for stream in streams])
    return False


async def _announcements(bus: Bus, fusions: Collection[str]) -> Counter[str]:
    """By fusion, how many messages say that it has ended; empty while one has none."""
    try:
        info = await bus.js.stream_info("FW_OUTCOME", subjects_filter="fw.outcome.>")
    except TimeoutError:
        return Counter()
    counts = {key.rpartition(".")[2]: count for key, count in (info.state.subjects or {}).items()}
    announcements = Counter({key: counts[key] for key in fusions if key in counts})
    return announcements if len(announcements) == len(fusions) else Counter()


def _by_prompt(calls: Sequence[dict[str, Any]]) -> Counter[tuple[str, str, str]]:
    """Calls by the prompt's name, the model and the messages."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for call in calls:
        messages = json.dumps(call["body"]["messages"])
        name = NAME.search(messages)
        assert name, messages[:500]
        counts[name[0], call["model"], messages] += 1
    return counts
