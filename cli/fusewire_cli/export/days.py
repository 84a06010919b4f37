"""Writes the views of one day after another, in several processes where there is much to write.

A process needs about 20 µs of a core for a row of `v_outcome` or `v_answer`, and 14 for one of
`v_verdict` or `v_pair`: SQLite's look-ups, and a value of Python for each cell.
"""

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import date
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from fusewire.errors import DamagedError, Transient
from fusewire.settings import Database
from fusewire_cli.export import FileFormat, selects
from fusewire_cli.export.manifest import Stamp
from fusewire_cli.export.reading import Reader, arrow_schema, batches, connect
from fusewire_cli.export.writing import write_file

MOST_PROCESSES = 4
LEAST_ROWS = 100_000
"""With fewer rows to write, a second process would not have started before the end."""


@dataclass(frozen=True)
class DayJob:
    """The views to write of one day; of no day, views that are one file."""

    day: date | None
    views: tuple[str, ...]
    form: FileFormat
    folder: Path
    """For temporary files."""


@dataclass(frozen=True)
class TemporaryFile:
    """A temporary file with the rows of a view."""

    view: str
    day: date | None
    path: Path
    rows: int
    seconds: float
    stamp: Stamp | None


def write_day(reader: Reader, job: DayJob) -> list[TemporaryFile]:
    """Write the views of a job, all from one snapshot. Raises Transient and OSError."""
    with reader.snapshot():
        return [file for view in job.views if (file := _write_view(reader, job, view))]


def _write_view(reader: Reader, job: DayJob, name: str) -> TemporaryFile | None:
    """Write one view; None if the database has lost the day since it was planned."""
    start = time.perf_counter()
    view = selects.BY_NAME[name]
    with_day = job.form is not FileFormat.parquet
    columns = selects.columns(view, with_day=with_day)
    stamp: Stamp | None = None
    parameters: tuple[Any, ...] = ()
    if job.day is None:
        sql = selects.all_rows(view, reader.dialect)
    else:
        parameters = reader.period(job.day)
        stamps = reader.read_stamps(selects.stamps(name, reader.dialect, of_day=True), parameters)
        stamp = stamps.get(str(job.day))
        if stamp is None:
            return None
        sql = selects.rows_of_day(view, reader.dialect, with_day=with_day)
    path = job.folder / f"{name}-{job.day}.{job.form}"
    rows = write_file(
        job.form, path, arrow_schema(columns), batches(reader, sql, parameters, columns)
    )
    return TemporaryFile(name, job.day, path, rows, time.perf_counter() - start, stamp)


def write_days(
    reader: Reader, database: Database, jobs: Sequence[DayJob], rows: int
) -> Iterator[list[TemporaryFile]]:
    """Write the jobs; yields what was written, in their order.

    Args:
        reader: what this process reads with, where it writes alone.
        database: what other processes connect to.
        jobs: what to write.
        rows: about how many outcomes there are in all.
    """
    processes = min(len(jobs), len(os.sched_getaffinity(0)), MOST_PROCESSES)
    if processes < 2 or rows < LEAST_ROWS:
        for job in jobs:
            yield write_day(reader, job)
        return
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _start_child, (database,)
    ) as pool:
        try:
            yield from pool.map(_write_in_child, jobs)
        except BrokenProcessPool:
            raise Transient("a process of the export was killed; memory may be short") from None
        except BaseException:
            # Whoever interrupts does not wait for the days that are being written.
            for child in multiprocessing.active_children():
                child.terminate()
            raise


_reader: Reader | None = None


def _start_child(database: Database) -> None:
    global _reader  # noqa: PLW0603 - a process of a pool has no other place for what it keeps
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Rows are tuples of plain values, which are in no cycles: looking for some takes time alone.
    gc.disable()
    sys.meta_path.insert(0, _PandasFinder())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _reader = connect(database)


class _PandasFinder(MetaPathFinder):
    """Finds no pandas.

    Where it is, Arrow would load it to ask whether a tuple is one of its arrays, which takes about
    a second of each process.
    """

    def find_spec(self, fullname: str, *_: Any) -> None:
        """Raise ModuleNotFoundError for pandas; leave others to other finders."""
        if fullname == "pandas":
            raise ModuleNotFoundError("an export needs no pandas", name=fullname)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _write_in_child(job: DayJob) -> list[TemporaryFile]:
    assert _reader is not None
    try:
        return write_day(_reader, job)
    except DamagedError as exc:
        # Only errors with one argument come through to the parent.
        raise Transient(f"{exc.what}; {exc.mend}") from None


@contextlib.contextmanager
def open_reader(database: Database) -> Iterator[Reader]:
    """A reader that is closed at the end of the block. Raises StartupError."""
    reader = connect(database)
    try:
        yield reader
    finally:
        reader.close()
