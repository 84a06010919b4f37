"""What the command line writes: results to stdout, everything else to stderr."""

import contextlib
import csv
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import IO, Any, NoReturn

from fusewire.errors import (
    EXIT_BAD_INPUT,
    EXIT_STORED,
    DamagedError,
    StartupError,
    TextsDeletedError,
    Transient,
)
from fusewire_cli import local_models

EXIT_FAULT = 1
EXIT_SOME_FAILED = 3
EXIT_BUDGET = 4
EXIT_INTERRUPTED = 130


class RowFormat(StrEnum):
    """How rows are printed."""

    table = "table"
    json = "json"
    csv = "csv"


class QueryFormat(StrEnum):
    """How the result of a query is written."""

    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


class ProgressStyle(StrEnum):
    """How the progress of a batch is shown."""

    auto = "auto"
    bar = "bar"
    json = "json"
    none = "none"


def note(text: str) -> None:
    """Print a message for the user, on stderr."""
    print(text, file=sys.stderr, flush=True)


def fail(what: str, mend: str = "", code: int = EXIT_BAD_INPUT) -> NoReturn:
    """End the command with a message: what is wrong, and how to mend it."""
    note(f"fusewire: {what}")
    if mend:
        note(f"  to mend it: {mend}")
    sys.exit(code)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn every error into one message and the right exit code.

    An unknown error is raised with its traceback only if FUSEWIRE_DEBUG is set.
    """
    from fusewire.configuration import ConfigError

    _log_to_stderr()
    try:
        try:
            yield
        finally:
            # Not left to the interpreter's end, where a closed pipe would count as a fault.
            sys.stdout.flush()
    except ConfigError as exc:
        for problem in exc.problems:
            note(f"fusewire: {exc.source}: {problem}")
        fail(f"{exc.source} cannot be used", exc.hint)
    except (StartupError, TextsDeletedError) as exc:
        fail(exc.what, exc.mend, exc.exit_code)
    except DamagedError as exc:
        fail(exc.what, exc.mend, EXIT_STORED)
    except Transient as exc:
        fail(str(exc), "try again; `fusewire doctor` tells what is down", EXIT_FAULT)
    except BrokenPipeError:
        # The reader of the output has closed it, as `| head` does: no fault.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as exc:
        if os.environ.get("FUSEWIRE_DEBUG"):
            raise
        _fail_unforeseen(exc)


def _fail_unforeseen(exc: Exception) -> NoReturn:
    """End the command with an error that no command expects."""
    if local_models.is_absence(exc):
        fail(local_models.WHAT, local_models.MEND)
    fail(
        f"{type(exc).__name__}: {exc}",
        "this is a fault of ours; run again with FUSEWIRE_DEBUG=1 and report it",
        EXIT_FAULT,
    )


def _log_to_stderr() -> None:
    """Send log lines to stderr: they are no result of a command.

    Commands that start a stack configure their log themselves.
    """
    # Importing structlog would take longer than some commands that log nothing.
    if (structlog := sys.modules.get("structlog")) is None:
        return
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )


class _FusionProgress:
    """Counts of finished prompts, as JSON lines: one at every tenth, and one at the end."""

    def __init__(self, total: int, start: int) -> None:
        self._total = total
        self._last_count = start

    def update(self, count: int, failed: int) -> None:
        if count == self._total or (count - self._last_count) * 10 >= self._total:
            note(json.dumps({"done": count, "total": self._total, "failed": failed}))
            self._last_count = count


@contextlib.contextmanager
def show_progress(total: int, start: int) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of prompts on stderr: a bar on a terminal, elsewhere JSON lines.

    Args:
        total: how many prompts there are.
        start: how many are finished already.

    Yields:
        A function that takes how many are finished and how many of those failed.
    """
    if not sys.stderr.isatty():
        yield _FusionProgress(total, start).update
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("batch", total=total, completed=start, failed=0)
        yield lambda count, failed: bar.update(task, completed=count, failed=failed)


class _PullProgress:
    """Stages of a pull, as lines: one at each new stage, and one at every quarter of its bytes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stage = ""
        self._last_bytes = 0

    def update(self, stage: str, current_bytes: int, total_bytes: int) -> None:
        if stage != self._stage:
            size = f", {total_bytes / 1e6:.0f} MB" if total_bytes else ""
            note(f"{self._name}: {stage}{size}")
            self._last_bytes = 0
        elif total_bytes and (current_bytes - self._last_bytes) * 4 >= total_bytes:
            size = f"{current_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB"
            note(f"{self._name}: {stage}, {size}")
            self._last_bytes = current_bytes
        self._stage = stage


@contextlib.contextmanager
def show_stages(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show the stages of a pull on stderr: a bar of bytes on a terminal, elsewhere lines.

    Args:
        name: what is being pulled.

    Yields:
        A function that takes the stage, the bytes so far, and all its bytes; 0 if they are not
        counted.
    """
    if not sys.stderr.isatty():
        yield _PullProgress(name).update
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)

        def update(stage: str, current_bytes: int, total_bytes: int) -> None:
            # Without a total the bar only shows that something moves.
            bar.update(
                task,
                description=f"{name}: {stage}",
                completed=current_bytes,
                total=total_bytes or None,
            )

        yield update


def rows(columns: Sequence[str], records: Sequence[Sequence[Any]], form: RowFormat) -> None:
    """Print rows to stdout."""
    if form is RowFormat.json:
        objects = [dict(zip(columns, record, strict=True)) for record in records]
        print(json.dumps(objects, default=str, ensure_ascii=False))
    elif form is RowFormat.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(records)
    else:
        print_table(columns, records)


def print_table(
    columns: Sequence[str], records: Sequence[Sequence[Any]], stream: IO[str] | None = None
) -> None:
    """Print rows as a table to a stream; the default is stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for record in records:
        table.add_row(*(_cell_text(cell) for cell in record))
    stream = stream or sys.stdout
    # Piped into a file, a table must not be cut to the width of a terminal that is not there.
    Console(file=stream, width=None if stream.isatty() else 400).print(table)


def _cell_text(cell: Any) -> str:
    # An opening bracket would start markup.
    return "" if cell is None else str(cell).replace("[", "\\[")
