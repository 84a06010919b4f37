"""How quickly the views answer on a million outcomes. `make bench-views`.

Writes build/bench-views.json. Both databases are filled with planted outcomes (OUTCOMES of them,
three members each, as `fusewire.testing.planted` has it by default), one after the other. Views of
sums are selected whole, views of rows get the questions of an analyst, and `scan` has questions
that read every outcome. A figure is the median of five runs after a warm one; `first_seconds` is
the run before, after the fill. A question that takes over SLOW_S is asked twice only.

The databases are deleted at the end unless KEEP=1.
"""

import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import text

from fusewire.settings import Database
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.testing.planted import COLUMNS, Truth, fill
from fusewire.testing.postgres import PostgresServer

BUILD = Path(__file__).parents[2] / "build"
NOW = datetime(2026, 11, 30, tzinfo=UTC)
SEED = 1
RUNS = 5
SLOW_S = 5.0
AIM_S = 2.0

Figures = dict[str, Any]

SUMS = (
    "v_pool_day",
    "v_tenant_day",
    "v_model",
    "v_model_day",
    "v_win_matrix",
    "v_judge_bias",
    "v_ablation",
    "v_lift",
    "v_latency_hist",
    "v_batch",
    "v_vote",
)
_BY_BATCH = (
    "SELECT r.* FROM {view} r JOIN v_outcome o ON o.outcome_id = r.outcome_id"
    " WHERE o.batch_id = '{batch}'"
)
_NEWEST = (
    "SELECT r.* FROM (SELECT outcome_id FROM v_outcome ORDER BY finished_at DESC LIMIT 1000) o"
    " JOIN {view} r ON r.outcome_id = o.outcome_id"
)
_COMMON = {
    "one_outcome": "SELECT * FROM {view} WHERE outcome_id = '{outcome}'",
    "one_batch": _BY_BATCH,
    "newest_1000": _NEWEST,
    "one_day": "SELECT COUNT(*) FROM {view} WHERE day = '{day}'",
}
ROWS = {
    "v_outcome": {
        "one_outcome": _COMMON["one_outcome"],
        "one_batch": "SELECT * FROM v_outcome WHERE batch_id = '{batch}'",
        "newest_1000": "SELECT * FROM v_outcome ORDER BY finished_at DESC LIMIT 1000",
        "one_day": "SELECT COUNT(*), SUM(cost_usd) FROM v_outcome WHERE day = '{day}'",
        "one_day_by_time": "SELECT COUNT(*), SUM(cost_usd) FROM v_outcome"
        " WHERE finished_at >= '{day}' AND finished_at < '{next_day}'",
    },
    "v_answer": {
        **_COMMON,
        "one_day": "SELECT COUNT(*), SUM(cost_usd) FROM v_answer WHERE day = '{day}'",
    },
    "v_event": {
        **_COMMON,
        "one_day": "SELECT COUNT(*) FROM v_event WHERE at >= '{day}' AND at < '{next_day}'",
    },
    "v_verdict": _COMMON,
    "v_pair": _COMMON,
}
SCANS = {
    "cost_by_pool": "SELECT pool, COUNT(*), SUM(cost_usd) FROM v_outcome GROUP BY pool",
    "status_by_day": "SELECT day, status, COUNT(*) FROM v_outcome GROUP BY day, status",
    "cost_by_model": "SELECT model, COUNT(*), SUM(cost_usd) FROM v_answer GROUP BY model",
    "pairs": "SELECT model_a, model_b, verdict, COUNT(*) FROM v_pair GROUP BY 1, 2, 3",
}


async def measure(store: Store, sql: str) -> Figures:
    """Ask one question several times."""
    seconds: list[float] = []
    count = 0
    while len(seconds) < 2 or (len(seconds) < RUNS + 2 and max(seconds) < SLOW_S):
        start = time.perf_counter()
        async with store.read() as connection:
            count = len((await connection.exec_driver_sql(sql)).fetchall())
        seconds.append(time.perf_counter() - start)
    warm = seconds[2:] or seconds[1:]
    return {
        "seconds": round(statistics.median(warm), 4),
        "first_seconds": round(seconds[0], 4),
        "rows": count,
        "query": sql,
    }


async def ask(store: Store) -> Figures:
    """Ask every question."""
    async with store.read() as connection:
        found = await connection.execute(
            text("SELECT fusion_id, batch_id FROM outcomes WHERE batch_id IS NOT NULL LIMIT 1")
        )
        outcome, batch = found.one()
    words = {"outcome": outcome, "batch": batch, "day": "2026-11-15", "next_day": "2026-11-16"}
    views: Figures = {view: await measure(store, f"SELECT * FROM {view}") for view in SUMS}
    for view, questions in ROWS.items():
        answers = {
            name: await measure(store, sql.format(view=view, **words))
            for name, sql in questions.items()
        }
        slowest = max(answers.values(), key=lambda answer: float(answer["seconds"]))
        views[view] = {
            "seconds": slowest["seconds"],
            "query": slowest["query"],
            "questions": answers,
        }
    scan = {name: await measure(store, sql) for name, sql in SCANS.items()}
    return {"views": views, "scan": scan}


# -- databases --------------------------------------------------------------------------------


async def bench_database(database: Database, outcomes: int) -> Figures:
    """Fill an empty database and ask it."""
    store = Store(database, is_patient=True)
    try:
        await migrate.upgrade(store)
        start = time.perf_counter()
        await fill(store, Truth(NOW), outcomes, SEED)
        fill_seconds = time.perf_counter() - start
        say(f"filled in {fill_seconds:.0f} s")
        if not store.is_sqlite:
            await vacuum(database)
        async with store.read() as connection:
            rows = {
                table: (await connection.execute(text(f"SELECT COUNT(*) FROM {table}"))).scalar()
                for table in COLUMNS
            }
        return {"fill_seconds": round(fill_seconds, 1), "rows": rows, **await ask(store)}
    finally:
        await store.close()


async def vacuum(database: Database) -> None:
    """Do what autovacuum does within minutes."""
    connection = await asyncpg.connect(database.url.replace("+asyncpg", ""))
    await connection.execute("VACUUM (ANALYZE)")
    await connection.close()


@asynccontextmanager
async def postgres() -> AsyncIterator[Database]:
    """A PostgreSQL of the bench's own."""
    server = PostgresServer()
    server.start()
    try:
        yield Database(url=server.url())
    finally:
        if os.environ.get("KEEP") == "1":
            say(f"kept: {server.url()}")
        else:
            server.stop()


# -- the export -------------------------------------------------------------------------------


def export(file: Path, outcomes: int) -> Figures:
    """Export to Parquet with the command: the outcomes alone, then the five views of rows.

    A figure is null where it failed, with a reason.
    """
    alone = run_export(file, "--view", "v_outcome")
    whole = run_export(file)
    return {
        "export_outcomes_per_s": alone["seconds"] and round(outcomes / alone["seconds"]),
        "export_rss_mb": alone["rss_mb"],
        "export": {"v_outcome": alone, "all": whole},
        "export_all_outcomes_per_s": whole["seconds"] and round(outcomes / whole["seconds"]),
        "export_all_rss_mb": whole["rss_mb"],
    }


def run_export(file: Path, *options: str) -> Figures:
    """Run the command once, into a folder that is removed. `cpu_seconds` are of all processes."""
    folder = Path(tempfile.mkdtemp(prefix="fusewire-export-"))
    command = [str(Path(sys.executable).with_name("fusewire")), "export", "parquet", str(folder)]
    command += options
    url = f"sqlite+aiosqlite:///{file}"
    start = time.perf_counter()
    with (BUILD / "bench-views-export.log").open("w") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "FUSEWIRE_DATABASE__URL": url},
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    size = sum(part.stat().st_size for part in folder.rglob("*.parquet"))
    shutil.rmtree(folder, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    if code:
        reason = f"`fusewire export parquet` ended with {code}; see build/bench-views-export.log"
        return {"seconds": None, "rss_mb": None, "reason": reason}
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "rss_mb": round(used.ru_maxrss / 1024),
        "bytes": size,
    }


# -- all --------------------------------------------------------------------------------------


async def bench(outcomes: int) -> Figures:
    """Measure both databases."""
    folder = Path(tempfile.mkdtemp(prefix="fusewire-views-"))
    file = folder / "fusewire.db"
    try:
        say(f"SQLite, {outcomes} outcomes")
        sqlite = await bench_database(Database(url=f"sqlite+aiosqlite:///{file}"), outcomes)
        sqlite["bytes"] = file.stat().st_size
        exported = export(file, outcomes)
    finally:
        if os.environ.get("KEEP") == "1":
            say(f"kept: {file}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    say(f"PostgreSQL, {outcomes} outcomes")
    async with postgres() as database:
        postgresql = await bench_database(database, outcomes)
    return {
        "outcomes": outcomes,
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load": os.getloadavg()[2],
        },
        "sqlite": sqlite,
        "postgresql": postgresql,
        **exported,
    }


def say(line: str) -> None:
    """Print a line at once, as all of it takes half an hour."""
    print(line, flush=True)


def tell(figures: Figures) -> None:
    """Print what was measured, and mark what takes longer than it should."""
    for name in ("sqlite", "postgresql"):
        say(f"{name}: filled in {figures[name]['fill_seconds']} s")
        for view, answer in figures[name]["views"].items():
            mark = f"  over {AIM_S:.0f} s" if answer["seconds"] > AIM_S else ""
            say(f"  {view:16} {answer['seconds']:9.3f} s{mark}  {answer['query'][:70]}")
        for scan, answer in figures[name]["scan"].items():
            say(f"  scan: {scan:14} {answer['seconds']:5.3f} s  {answer['query'][:70]}")
    for name, prefix in (("v_outcome", "export"), ("all views of rows", "export_all")):
        rate, memory = figures[f"{prefix}_outcomes_per_s"], figures[f"{prefix}_rss_mb"]
        say(f"export, {name}: {rate} outcomes/s, {memory} MB")


def main() -> None:
    """Measure, print, write."""
    BUILD.mkdir(exist_ok=True)
    figures = asyncio.run(bench(int(os.environ.get("OUTCOMES", "1000000"))))
    tell(figures)
    out = BUILD / "bench-views.json"
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    say(f"written to {out.relative_to(BUILD.parent)}")


if __name__ == "__main__":
    main()
