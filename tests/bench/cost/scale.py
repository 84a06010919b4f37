"""What a fusion costs with more in flight, more stored, more processes. `make bench-scale`.

Prints a table and writes build/bench-scale.json, of which `make bench-plots` makes docs/scale.png.
All in flight are accepted before the clock of their row begins to matter: N prompts are submitted
in one request, and the row is over when the last of them has its outcome.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import false, func, select

from cost.machine import BUILD, ROOT, Models, Pids, cpu_s, fusewire_up, models
from cost.ours import config
from cost.scenes import Scene, prompt, together
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.store.tables import fusions
from fusewire.testing.postgres import PostgresServer
from fusewire_cli.client import Client

AT_ONCE = (1, 4, 16, 64, 256, 1_024, 4_096, 10_000)
STORED = (0, 1_000, 10_000, 100_000, 1_000_000, 5_000_000)
REPLICAS = (1, 2, 4)
LEAST = 256
"""Fusions of a row, at least: a row with fewer at once is repeated."""
STEP = 64
"""How many are in flight where that is not what changes."""
LINES = 1_000
"""Prompts in one request."""
LOOK_S = 0.05
HEAD = (
    "| curve | database | at once | stored | replicas | fusions/s | CPU per fusion, ms |\n"
    + "|---" * 7
    + "|"
)


@dataclass(frozen=True)
class Row:
    """What was measured once.

    Attributes:
        curve: what changes: `at once`, `stored` or `replicas`.
        database: `sqlite` or `postgresql`.
        processes: 1, or one for each service.
        at_once: fusions in flight when it begins.
        stored: outcomes in the database when it begins.
        replicas: of dispatcher and judge.
        fusions: that were measured.
        per_s: fusions a second.
        cpu_ms: per fusion, by process.
    """

    curve: str
    database: str
    processes: int
    at_once: int
    stored: int
    replicas: int
    fusions: int
    per_s: float
    cpu_ms: dict[str, float]

    @property
    def cpu_ms_per_fusion(self) -> float:
        """Over all processes."""
        return sum(self.cpu_ms.values())


def scene() -> Scene:
    """Members that answer within 20 ms: what is measured is Fusewire."""
    return together(10.0, 10.0, STEP, LEAST)


class Loaded:
    """A running stack, and how much CPU each of its processes has used."""

    def __init__(
        self, url: str, client: Client, store: Store, pids: Pids, numbers: Iterator[int]
    ) -> None:
        self.url = url
        self._client = client
        self._store = store
        self._pids = pids
        self._numbers = numbers

    async def row(self, curve: str, at_once: int, **fixed: Any) -> Row:
        """Submit `at_once` and wait for the last of them, as often as it takes."""
        times = -(-LEAST // at_once)
        before, started = self._cpu(), time.perf_counter()
        for _ in range(times):
            await self._drain(at_once)
        wall_s, after = time.perf_counter() - started, self._cpu()
        count = times * at_once
        used = {name: round((after[name] - before[name]) * 1000 / count, 2) for name in before}
        row = Row(
            curve=curve,
            at_once=at_once,
            fusions=count,
            per_s=round(count / wall_s, 1),
            cpu_ms=used,
            **fixed,
        )
        print(tell(row), flush=True)
        return row

    async def _drain(self, count: int) -> None:
        lines = [
            json.dumps({"prompt": prompt(number)})
            for number in itertools.islice(self._numbers, count)
        ]
        for first in range(0, count, LINES):
            for line in await self._client.submit_lines(
                lines[first : first + LINES], f"scale-{time.time_ns()}"
            ):
                if "error" in line:
                    raise RuntimeError(f"refused: {line}")
        while await self._open():  # noqa: ASYNC110 - another process closes them
            await asyncio.sleep(LOOK_S)

    async def _open(self) -> int:
        # As the partial index says it: it holds what is open, and no more.
        is_open = fusions.c.is_done == false(), fusions.c.due_at.is_not(None)
        query = select(func.count()).select_from(fusions).where(*is_open)
        async with self._store.read() as connection:
            return int((await connection.execute(query)).scalar_one())

    def _cpu(self) -> dict[str, float]:
        # PostgreSQL has a process for each connection; the runner's children are counted alone.
        return {
            name: tree_cpu_s(pid) if name == "postgres" else cpu_s(pid)
            for name, pid in self._pids.items()
        }


def tree_cpu_s(pid: int) -> float:
    """CPU of a process, its children, and those of them that have ended, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_s(pid) + ended + sum(tree_cpu_s(int(child)) for child in children)


@contextlib.asynccontextmanager
async def stack(
    fake: Models,
    folder: Path,
    numbers: Iterator[int],
    *,
    server: PostgresServer | None,
    replicas: int,
    apart: bool,
) -> AsyncIterator[Loaded]:
    """Fusewire on a folder of its own."""
    settings = config(fake.base_url, folder)
    if server:
        settings["database"] = {"url": server.url()}
    async with contextlib.AsyncExitStack() as ends:
        url, pids = await ends.enter_async_context(fusewire_up(settings, folder, processes=apart))
        for name, number in itertools.product(("judge", "dispatcher"), range(2, replicas + 1)):
            pids[f"{name}-{number}"] = await ends.enter_async_context(replica(name, folder))
        if server:
            pids["postgres"] = server.pid
        client = await ends.enter_async_context(Client(url))
        store = Store(Database(url=settings["database"]["url"]))
        ends.push_async_callback(store.close)
        yield Loaded(url, client, store, pids, numbers)


@contextlib.asynccontextmanager
async def replica(name: str, folder: Path) -> AsyncIterator[int]:
    """One more of a service, beside those that `fusewire up` runs; its process id."""
    env = {
        **os.environ,
        "FUSEWIRE_CONFIG": str(folder / "effective.json"),
        "FUSEWIRE_HTTP__PORT": "0",
    }
    log = folder / f"{name}-{time.time_ns()}.log"
    with log.open("w") as file:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"fusewire_{name}", env=env, stdout=file, stderr=file
        )
    try:
        while "service.started" not in log.read_text():
            if child.returncode is not None:
                raise RuntimeError(f"{name} did not start:\n{log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)
        yield child.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        await child.wait()


# -- outcomes that are stored already --------------------------------------------------------------

TABLES = ("prompts", "fusions", "rounds", "candidates", "outcomes", "answers", "verdicts")
BODIES = {
    "prompts": "body",
    "fusions": "plan",
    "rounds": "body",
    "candidates": "body",
    "outcomes": "body",
}


def store_more(file: Path, wanted: int) -> int:
    """Copy one stored fusion with all its rows until there are `wanted`; returns their number.

    The copies have ids of their own, in no order, and their texts are left out: 5,000,000 with them
    would fill 80 GB. No service may be running.
    """
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        for pragma in ("synchronous = OFF", "cache_size = -4000000", "temp_store = FILE"):
            database.execute(f"PRAGMA {pragma}")
        (there,) = database.execute("SELECT count(*) FROM outcomes").fetchone()
        if (missing := wanted - there) <= 0:
            return int(there)
        (model,) = database.execute(
            "SELECT fusion_id FROM outcomes WHERE length(body) > 2 LIMIT 1"
        ).fetchone()
        database.execute("CREATE TEMP TABLE copies (fusion_id TEXT)")
        database.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO copies SELECT 'x' || hex(randomblob(13)) FROM n ORDER BY 1",
            (missing,),
        )
        for table in TABLES:
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            body = BODIES.get(table)
            taken = [
                "''" if c == body else "c.fusion_id" if c == "fusion_id" else f"t.{c}"
                for c in columns
            ]
            database.execute(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(taken)} "
                f"FROM copies c CROSS JOIN {table} t WHERE t.fusion_id = ? ORDER BY c.fusion_id",
                (model,),
            )
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return wanted


# -- the curves ------------------------------------------------------------------------------------


async def at_once(
    fake: Models, scratch: Path, numbers: Iterator[int], sizes: tuple[int, ...]
) -> list[Row]:
    """SQLite and PostgreSQL, everything in one process."""
    rows = []
    for database in ("sqlite", "postgresql"):
        with _server(database) as server:
            folder = _folder(scratch, f"at-once-{database}")
            async with stack(
                fake, folder, numbers, server=server, replicas=1, apart=False
            ) as loaded:
                fixed = {"database": database, "processes": 1, "stored": 0, "replicas": 1}
                await loaded.row("warm", STEP, **fixed)
                rows += [await loaded.row("at once", size, **fixed) for size in sizes]
    return rows


async def stored(
    fake: Models, scratch: Path, numbers: Iterator[int], sizes: tuple[int, ...]
) -> list[Row]:
    """SQLite, which is the one that lives on the same disk."""
    rows = []
    folder = _folder(scratch, "stored")
    for size in sizes:
        if size:
            started = time.perf_counter()
            store_more(folder / "fusewire.db", size)
            print(f"stored {size} in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        async with stack(fake, folder, numbers, server=None, replicas=1, apart=False) as loaded:
            fixed = {"database": "sqlite", "processes": 1, "stored": size, "replicas": 1}
            await loaded.row("warm", STEP, **fixed)
            rows.append(await loaded.row("stored", STEP * 8, **fixed))
    return rows


async def replicas(
    fake: Models, scratch: Path, numbers: Iterator[int], sizes: tuple[int, ...]
) -> list[Row]:
    """Each service a process of its own, dispatcher and judge several."""
    rows = []
    for database, size in itertools.product(("sqlite", "postgresql"), sizes):
        with _server(database) as server:
            folder = _folder(scratch, f"replicas-{database}-{size}")
            async with stack(
                fake, folder, numbers, server=server, replicas=size, apart=True
            ) as loaded:
                fixed = {"database": database, "processes": 5, "stored": 0, "replicas": size}
                await loaded.row("warm", STEP, **fixed)
                rows.append(await loaded.row("replicas", STEP * 8, **fixed))
    return rows


@contextlib.contextmanager
def _server(database: str) -> Iterator[PostgresServer | None]:
    if database == "sqlite":
        yield None
        return
    with PostgresServer(syncs=True) as server:
        yield server


def _folder(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    return folder


def tell(row: Row) -> str:
    """One line of the table."""
    cpu = ", ".join(f"{name} {ms:g}" for name, ms in row.cpu_ms.items())
    return (
        f"| {row.curve} | {row.database} | {row.at_once} | {row.stored} | {row.replicas} | "
        f"{row.per_s:g} | "
        f"{row.cpu_ms_per_fusion:.1f} ({cpu}) |"
    )


async def measure(*, quick: bool) -> list[Row]:
    """All curves."""
    BUILD.mkdir(exist_ok=True)
    numbers = itertools.count(1)
    few = 2 if quick else None
    with tempfile.TemporaryDirectory(prefix="scale-", dir=BUILD) as scratch, models() as fake:
        await fake.play(scene().script)
        folder = Path(scratch)
        print(HEAD)
        rows = await at_once(fake, folder, numbers, AT_ONCE[:few])
        rows += await replicas(fake, folder, numbers, REPLICAS[:few])
        rows += await stored(fake, folder, numbers, STORED[:few])
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description="Measure what a fusion costs with more of everything."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the first two points of each curve: does it run at all",
    )
    options = parser.parse_args()
    rows = asyncio.run(measure(quick=options.quick))
    out = BUILD / "bench-scale.json"
    found = {"cores": os.cpu_count(), "rows": [asdict(row) for row in rows]}
    out.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
