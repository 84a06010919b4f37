"""An export is what the views say, from both databases, and stays so through kills and changes."""

import asyncio
import contextlib
import gc
import itertools
import json
import math
import multiprocessing
import os
import resource
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from fusewire.errors import StartupError
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.store.views import VIEWS
from fusewire.testing.planted import Truth, fill
from fusewire_cli.export import FileFormat, command, days, duckdb_views, folder, manifest, selects
from fusewire_cli.export.command import Options
from fusewire_cli.export.reading import PageSize, connect

duckdb: Any = import_module("duckdb")
pq: Any = import_module("pyarrow.parquet")

LAST = datetime(2026, 3, 4, 12, tzinfo=UTC)
"""Of the planted prompts, which begin three days before."""
NOON = LAST + timedelta(minutes=5)
LATER = LAST + timedelta(days=30)
DAYS = ["2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04"]
COUNT = 160
TRUTH = Truth(LAST, days=3, gold_share=1.0)
SUMS = ("v_pool_day", "v_tenant_day", "v_model_day", "v_model", "v_win_matrix", "v_judge_bias")
Export = Callable[..., dict[str, Any]]


async def plant(database: Database) -> None:
    """Planted outcomes, and votes on some of them."""
    store = Store(database)
    try:
        await fill(store, TRUTH, COUNT, 7)
        async with store.write() as connection:
            at = "strftime('%Y-%m-%d %H:%M:%f000', finished_at, '+1 minute')"
            if not store.is_sqlite:
                at = "finished_at + interval '1 minute'"
            await connection.execute(
                text(
                    "INSERT INTO votes (fusion_id, voter_hash, choice, created_at, changed_at)"
                    f" SELECT fusion_id, 'v', 'fused', {at}, {at} FROM outcomes"
                    " WHERE accepted"
                )
            )
    finally:
        await store.close()


async def change(database: Database, *statements: str) -> None:
    store = Store(database)
    try:
        async with store.write() as connection:
            for statement in statements:
                # SQLite's times are in UTC, and do not say so.
                own = statement.replace("+00:00", "") if store.is_sqlite else statement
                await connection.execute(text(own))
    finally:
        await store.close()


@pytest.fixture
def export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Export:
    """Runs `fusewire export --json`; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(
        database: Database,
        target: Path | str = "out",
        form: FileFormat = FileFormat.parquet,
        **wishes: Any,
    ) -> dict[str, Any]:
        monkeypatch.setenv("FUSEWIRE_DATABASE__URL", database.url)
        capsys.readouterr()
        options = replace(Options(LATER), **wishes)
        command.export(form, tmp_path / target, options, as_json=True)
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


@pytest.fixture
async def planted(database: Database) -> Database:
    await plant(database)
    return database


@pytest.fixture
async def planted_sqlite(sqlite_database: Database) -> Database:
    await plant(sqlite_database)
    return sqlite_database


def tables(target: Path) -> dict[str, Any]:
    """The rows of all Parquet files of an export, by view."""
    return {
        name: pq.read_table(target / name).to_pylist()
        for name in selects.BY_DAY
        if (target / name).exists()
    }


def ddl(target: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """DuckDB with the views of an export."""
    monkeypatch.chdir(target)
    connection = duckdb.connect()
    connection.execute((target / duckdb_views.NAME).read_text())
    return connection


def plain(value: Any) -> Any:
    """A value as both databases and DuckDB can be compared by it."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
    return str(value) if isinstance(value, date) else value


def sorted_rows(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    return sorted((tuple(map(plain, row)) for row in rows), key=repr)


async def test_both_databases_give_the_same_files(
    sqlite_database: Database, postgres_database: Database, tmp_path: Path, export: Export
) -> None:
    everything = tuple(view.name for view in VIEWS if view.name != "v_batch")
    for name, database in (("lite", sqlite_database), ("post", postgres_database)):
        await plant(database)
        done = await asyncio.to_thread(export, database, name, views=everything)
        assert done["views"]["v_outcome"]["rows"] == COUNT
        assert done["views"]["v_event"]["rows"] > COUNT

    paths = sorted(
        path.relative_to(tmp_path / "lite") for path in (tmp_path / "lite").rglob("*.parquet")
    )
    assert len(paths) == 4 * 5 + len(everything) - 5
    for path in paths:
        lite, post = (
            pq.read_table(tmp_path / name / path, partitioning=None) for name in ("lite", "post")
        )
        assert lite.schema.equals(post.schema), path
        if path.parts[0] in selects.BY_DAY:
            assert lite.equals(post), path
        else:
            # Sums of costs differ in their last digits.
            rows = ([list(map(plain, row.values())) for row in t.to_pylist()] for t in (lite, post))
            assert next(rows) == next(rows), path


@pytest.mark.parametrize("form", FileFormat)
async def test_duckdb_reads_what_the_database_has(
    planted: Database,
    tmp_path: Path,
    export: Export,
    form: FileFormat,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await asyncio.to_thread(export, planted, "out", form)

    connection = ddl(tmp_path / "out", monkeypatch)
    store = Store(planted)
    async with store.read() as stored:
        for name in (*selects.BY_DAY, *SUMS):
            expected = await stored.exec_driver_sql(f"SELECT * FROM {name}")
            found = connection.execute(f"SELECT * FROM {name}")
            assert [column[0] for column in found.description] == list(expected.keys()), name
            rows = sorted_rows(found.fetchall())
            assert rows == sorted_rows(expected.fetchall()), name
            assert rows, name
    await store.close()


async def test_duckdb_gives_exact_percentiles(
    planted: Database, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(export, planted)

    connection = ddl(tmp_path / "out", monkeypatch)
    rows = connection.execute(
        "SELECT n, p95_ms FROM v_latency WHERE stage = 'total' AND pool = 'default'"
    ).fetchall()
    times = sorted(row["latency_ms"] for row in tables(tmp_path / "out")["v_outcome"])
    place = 0.95 * (COUNT - 1)
    below, above = times[math.floor(place)], times[math.ceil(place)]
    assert rows == [(COUNT, pytest.approx(below + (above - below) * (place % 1)))]
    connection.execute(
        "CREATE OR REPLACE VIEW v_outcome AS SELECT * FROM"
        " read_parquet('v_outcome/*/*.parquet') LIMIT 29"
    )
    few = "SELECT n, p95_ms FROM v_latency WHERE stage = 'total'"
    assert connection.execute(few).fetchall() == [(29, None)]


def steps(done: dict[str, Any], view: str = "v_outcome") -> tuple[int, int, int, int]:
    """How many days were written, skipped, kept and removed."""
    report = done["views"][view]
    return (
        report["files"],
        report["skipped_days"],
        len(report["kept_days"]),
        len(report["removed_days"]),
    )


async def test_only_days_that_may_have_changed_are_written_again(
    planted: Database, tmp_path: Path, export: Export
) -> None:
    assert steps(await asyncio.to_thread(export, planted, now=NOON)) == (4, 0, 0, 0)
    # The last day has not ended.
    assert steps(await asyncio.to_thread(export, planted, now=NOON)) == (1, 3, 0, 0)
    assert steps(await asyncio.to_thread(export, planted)) == (1, 3, 0, 0)
    assert steps(await asyncio.to_thread(export, planted)) == (0, 4, 0, 0)
    assert steps(await asyncio.to_thread(export, planted, full=True)) == (4, 0, 0, 0)

    # Committed long after the day's end.
    await change(
        planted,
        "UPDATE outcomes SET finished_at = (SELECT MAX(finished_at) FROM outcomes)"
        " WHERE fusion_id = (SELECT MIN(fusion_id) FROM outcomes"
        f" WHERE finished_at < '{DAYS[1]} 00:00:00+00:00')",
    )
    assert steps(await asyncio.to_thread(export, planted)) == (1, 2, 1, 0)
    since = date.fromisoformat(DAYS[3])
    assert steps(await asyncio.to_thread(export, planted, since=since)) == (0, 1, 0, 0)

    (tmp_path / "out" / "v_outcome" / f"day={DAYS[2]}" / "part-0.parquet").unlink()
    assert steps(await asyncio.to_thread(export, planted)) == (1, 2, 1, 0)


async def test_a_changed_vote_is_written_again(
    planted: Database, tmp_path: Path, export: Export
) -> None:
    assert steps(await asyncio.to_thread(export, planted), "v_vote")[:2] == (4, 0)
    await change(
        planted,
        "UPDATE votes SET choice = 'none', changed_at = '2026-03-20 00:00:00.000001+00:00'"
        " WHERE fusion_id = (SELECT MIN(fusion_id) FROM votes)",
    )

    done = await asyncio.to_thread(export, planted)

    assert steps(done, "v_vote") == (1, 3, 0, 0)
    assert steps(done) == (0, 4, 0, 0)
    choices = [row["choice"] for row in tables(tmp_path / "out")["v_vote"]]
    assert choices.count("none") == 1


async def test_what_the_database_has_lost_is_kept_until_it_is_pruned(
    planted: Database, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    await asyncio.to_thread(export, planted)
    before = tables(tmp_path / "out")
    await change(
        planted,
        *(
            f"DELETE FROM {table} WHERE fusion_id IN (SELECT fusion_id FROM outcomes"
            f" WHERE finished_at < '{DAYS[1]} 01:00:00+00:00')"
            for table in ("answers", "verdicts", "votes", "candidates", "outcomes")
        ),
    )

    kept = await asyncio.to_thread(export, planted)
    assert steps(kept) == (0, 2, 2, 0)
    assert kept["views"]["v_outcome"]["kept_days"] == DAYS[:2]
    assert tables(tmp_path / "out") == before

    pruned = await asyncio.to_thread(export, planted, prune=True)
    assert steps(pruned) == (1, 2, 0, 1)
    await asyncio.to_thread(export, planted, "new")
    assert tables(tmp_path / "out") == tables(tmp_path / "new")
    assert not (tmp_path / "out" / "v_outcome" / f"day={DAYS[0]}").exists()


def in_child(work: Callable[[], object], errors: Path) -> int:
    """Run in a copy of this process, which has all modules loaded; returns its exit code."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        sys.stderr = errors.open("w")
        # What a destructor raises is shown as Python shows it.
        sys.unraisablehook = sys.__unraisablehook__
        work()
        code = 0
    except SystemExit as ended:
        code = int(str(ended.code))
    except BaseException:  # noqa: BLE001 - the copy must never go on with the tests
        traceback.print_exc()
    finally:
        gc.collect()
        sys.stderr.flush()
        os._exit(code)


def kill_at(calls: int) -> None:
    """Kill this process at the so manieth file that it ends, syncs or puts in its place."""
    numbers = itertools.count(1)

    def count(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **wishes: Any) -> Any:
            if next(numbers) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **wishes)

        return wrapper

    os.fsync, os.replace = count(os.fsync), count(os.replace)
    pq.ParquetWriter.close = count(pq.ParquetWriter.close)


def test_a_killed_export_leaves_no_half_file_and_is_gone_on_with(
    planted_sqlite: Database, tmp_path: Path, export: Export
) -> None:
    views = ("v_outcome", "v_pair")

    def work(calls: int) -> None:
        kill_at(calls)
        export(planted_sqlite, views=views)

    codes = []
    # Before the manifest, within a file, between a file and the manifest, and so on.
    for calls in (1, *range(2, 40, 3), 4000):
        codes.append(in_child(partial(work, calls), tmp_path / "errors"))
        for path in (tmp_path / "out").rglob("v_*/**/*.parquet"):
            assert pq.read_metadata(path).num_rows
    assert codes[:8] == [-9] * 8, (tmp_path / "errors").read_text()
    assert codes[-1] == 0, (tmp_path / "errors").read_text()

    export(planted_sqlite, "new", views=views)
    assert tables(tmp_path / "out") == tables(tmp_path / "new")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*views, manifest.NAME, duckdb_views.NAME, folder.LOCK}


def refused(export: Export, capsys: pytest.CaptureFixture[str], *args: Any, **wishes: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        export(*args, **wishes)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_two_exports_do_not_write_to_the_same_folder(
    planted_sqlite: Database, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    with folder.hold(tmp_path / "out"):
        assert "another export writes" in refused(export, capsys, planted_sqlite)
    # As one that was killed leaves it.
    (tmp_path / "out" / folder.LOCK).write_text("999999\n")
    assert steps(export(planted_sqlite)) == (4, 0, 0, 0)


def test_what_is_no_export_of_this_database_in_this_format_is_left_alone(
    planted_sqlite: Database, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "letters"
    other.mkdir()
    (other / "letter.txt").write_text("Dear")
    assert "is not an export" in refused(export, capsys, planted_sqlite, "letters")
    assert [path.name for path in other.iterdir()] == ["letter.txt"]
    assert "is not a folder" in refused(export, capsys, planted_sqlite, "letters/letter.txt")

    assert "there is no view v_thing" in refused(export, capsys, planted_sqlite, views=("v_thing",))
    export(planted_sqlite)
    assert "holds parquet files" in refused(export, capsys, planted_sqlite, "out", FileFormat.csv)

    copy = tmp_path / "copy.db"
    copy.write_bytes(Path(planted_sqlite.url.partition("///")[2]).read_bytes())
    moved = Database(url=f"sqlite+aiosqlite:///{copy}")
    assert "another database" in refused(export, capsys, moved)
    assert steps(export(moved, full=True)) == (4, 0, 0, 0)
    (tmp_path / "out" / manifest.NAME).write_text("{}")
    assert "cannot be read" in refused(export, capsys, moved)


def test_a_view_with_other_columns_is_written_again(
    planted_sqlite: Database, tmp_path: Path, export: Export
) -> None:
    export(planted_sqlite)
    path = tmp_path / "out" / manifest.NAME
    path.write_text(path.read_text().replace('"cost_late_usd"', '"cost_of_late_usd"'))

    done = export(planted_sqlite)

    assert steps(done) == (4, 0, 0, 0)
    assert steps(done, "v_answer") == (0, 4, 0, 0)


def test_an_empty_database_is_no_fault(
    database: Database,
    tmp_path: Path,
    export: Export,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = export(database, views=("v_outcome", "v_answer", "v_model"))

    assert done["views"]["v_outcome"]["rows"] == 0
    connection = ddl(tmp_path / "out", monkeypatch)
    assert connection.execute("SELECT day, cost_usd FROM v_outcome").fetchall() == []
    assert connection.execute("SELECT * FROM v_pool_day").fetchall() == []


def test_a_database_without_views_is_refused(
    empty_database: Database, export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(StartupError, match="nothing has been stored yet"):
        export(empty_database)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", [FileFormat.csv, FileFormat.parquet])
def test_a_full_disk_leaves_no_half_file(
    planted_sqlite: Database, tmp_path: Path, export: Export, form: FileFormat
) -> None:
    done = export(planted_sqlite, "new", form)
    largest = max(path.stat().st_size for path in (tmp_path / "new").rglob(f"*.{form}"))
    limit = largest - 1

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        export(planted_sqlite, "out", form)

    # SQLite's own files are there already, and need not grow.
    with contextlib.closing(sqlite3.connect(planted_sqlite.url.partition("///")[2])) as open_file:
        open_file.execute("SELECT COUNT(*) FROM outcomes").fetchall()
        assert in_child(work, tmp_path / "errors") == 1
    errors = (tmp_path / "errors").read_text()
    assert "cannot be written: File too large" in errors
    assert "Traceback" not in errors
    wanted = {
        path.relative_to(tmp_path / "new"): path for path in (tmp_path / "new").rglob(f"*.{form}")
    }
    found = {
        path.relative_to(tmp_path / "out"): path for path in (tmp_path / "out").rglob(f"*.{form}")
    }
    assert found.keys() < wanted.keys()
    for name, path in found.items():
        assert path.read_bytes() == wanted[name].read_bytes()
    assert done["views"]["v_answer"]["files"] == 4
    assert not (tmp_path / "out" / folder.TEMPORARY).exists()


def plans(database: Database) -> Iterator[tuple[str, list[str]]]:
    reader = connect(database)
    explain = "EXPLAIN QUERY PLAN " if reader.dialect == "sqlite" else "EXPLAIN "
    day = reader.period(date.fromisoformat(DAYS[1]))
    with reader.snapshot():
        if reader.dialect == "postgresql":
            # A small table is always read whole, unless that is forbidden.
            list(reader.pages("SELECT set_config('enable_seqscan', 'off', true)", (), PageSize()))
        for name in selects.OF_OUTCOMES:
            sql = selects.rows_of_day(selects.BY_NAME[name], reader.dialect, with_day=False)
            pages = reader.pages(explain + sql, day, PageSize())
            yield name, [str(row[-1]) for row in itertools.chain.from_iterable(pages)]
    reader.close()


def test_a_day_is_found_by_indexes(database: Database) -> None:
    for name, lines in plans(database):
        plan = "\n".join(lines)
        assert "ix_outcomes_finished" in plan, (name, plan)
        assert "Seq Scan" not in plan, (name, plan)
        assert not [line for line in lines if line.startswith("SCAN") and "VIRTUAL" not in line]
        # Only what was finished at the same moment is sorted.
        assert "USE TEMP B-TREE FOR ORDER BY" not in plan, (name, plan)


def test_without_pyarrow_the_extra_is_named(
    planted_sqlite: Database,
    export: Export,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    assert "fusewire-cli[parquet]" in refused(export, capsys, planted_sqlite)


def test_a_first_day_is_a_date_or_a_number_of_days() -> None:
    options = command.options(["v_pair", "v_pair"], "2d", full=False, prune=False)
    assert options.since == options.now.date() - timedelta(days=2)
    assert options.views == ("v_pair",)
    exact = command.options(None, "2026-03-02", full=False, prune=False)
    assert exact.since == date(2026, 3, 2)


def test_a_process_of_an_export_does_not_load_pandas(
    planted_sqlite: Database, tmp_path: Path
) -> None:
    """Arrow would, and each process would start a second later."""
    context = multiprocessing.get_context("spawn")
    job = days.DayJob(date.fromisoformat(DAYS[0]), ("v_outcome",), FileFormat.parquet, tmp_path)
    with ProcessPoolExecutor(1, context, days._start_child, (planted_sqlite,)) as pool:
        (file,) = pool.submit(days._write_in_child, job).result()
        assert file.rows
        assert not pool.submit(eval, "'pandas' in __import__('sys').modules").result()


def test_several_processes_write_what_alone_one_would(
    planted_sqlite: Database, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(days, "LEAST_ROWS", 1)
    export(planted_sqlite, "many")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    export(planted_sqlite, "alone")

    assert tables(tmp_path / "many") == tables(tmp_path / "alone")
