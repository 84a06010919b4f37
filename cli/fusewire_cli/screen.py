"""What the command line writes: results to stdout, everything else to stderr."""

import contextlib
import csv
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, NoReturn

from fusewire.errors import EXIT_BAD_INPUT, EXIT_STORED, DamagedError, StartupError, Transient

EXIT_FAULT = 1
EXIT_SOME_FAILED = 3
EXIT_BUDGET = 4
EXIT_INTERRUPTED = 130


class RowFormat(StrEnum):
    """How rows are printed."""

    table = "table"
    json = "json"
    csv = "csv"


class ProgressStyle(StrEnum):
    """How the progress of a batch is shown."""

    auto = "auto"
    bar = "bar"
    json = "json"
    none = "none"


def note(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def fail(what: str, mend: str = "", code: int = EXIT_BAD_INPUT) -> NoReturn:
    """End with a message: what is wrong, and how to mend it."""
    note(f"fusewire: {what}")
    if mend:
        note(f"  to mend it: {mend}")
    sys.exit(code)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn the errors we know into one message and the right exit code; a traceback only with FUSEWIRE_DEBUG."""
    from fusewire.settings import ConfigError

    _log_to_stderr()
    try:
        try:
            yield
        finally:
            # Here, and not when the interpreter ends, which would make a fault of a reader that has left.
            sys.stdout.flush()
    except ConfigError as exc:
        for problem in exc.problems:
            note(f"fusewire: {exc.source}: {problem}")
        fail(f"{exc.source} cannot be used", exc.hint)
    except StartupError as exc:
        fail(exc.what, exc.mend, exc.exit_code)
    except DamagedError as exc:
        fail(exc.what, exc.mend, EXIT_STORED)
    except Transient as exc:
        fail(str(exc), "try again; `fusewire doctor` tells what is down", EXIT_FAULT)
    except BrokenPipeError:
        # Whoever read our output has seen enough, as with `| head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as exc:
        if os.environ.get("FUSEWIRE_DEBUG"):
            raise
        fail(
            f"{type(exc).__name__}: {exc}",
            "this is a fault of ours; run again with FUSEWIRE_DEBUG=1 and report it",
            EXIT_FAULT,
        )


def _log_to_stderr() -> None:
    """What is logged is no result of a command. Commands that start a stack set up their log themselves."""
    # Loading it for commands that log nothing would take longer than some of them do.
    if (structlog := sys.modules.get("structlog")) is None:
        return
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )


class progress:  # noqa: N801 - used as a function
    """A bar on a terminal, a line every tenth elsewhere; both on stderr."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._shown = done
        self._bar: Any = None

    def __enter__(self) -> Any:
        if sys.stderr.isatty():
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
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(
                "batch", total=self._total, completed=self._shown, failed=0
            )
        return self._update

    def _update(self, done: int, failed: int) -> None:
        if self._bar:
            self._bar.update(self._task, completed=done, failed=failed)
        elif done == self._total or (done - self._shown) * 10 >= self._total:
            note(json.dumps({"done": done, "total": self._total, "failed": failed}))
            self._shown = done

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


class stages:  # noqa: N801 - used as a function
    """What is being done, with a bar of bytes where they are counted; on stderr, lines where there is no terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stage = ""
        self._shown = 0
        self._bar: Any = None

    def __enter__(self) -> Any:
        if sys.stderr.isatty():
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
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=None)
        return self._update

    def _update(self, stage: str, done: int, whole: int) -> None:
        if self._bar:
            # Without a number of bytes it only tells that something moves.
            self._bar.update(
                self._task,
                description=f"{self._name}: {stage}",
                completed=done,
                total=whole or None,
            )
        elif stage != self._stage:
            note(f"{self._name}: {stage}" + (f", {whole / 1e6:.0f} MB" if whole else ""))
            self._shown = 0
        elif whole and (done - self._shown) * 4 >= whole:
            note(f"{self._name}: {stage}, {done / 1e6:.0f} of {whole / 1e6:.0f} MB")
            self._shown = done
        self._stage = stage

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


def rows(columns: Sequence[str], data: Sequence[Sequence[Any]], form: RowFormat) -> None:
    """Print rows to stdout."""
    if form is RowFormat.json:
        print(
            json.dumps(
                [dict(zip(columns, row, strict=True)) for row in data],
                default=str,
                ensure_ascii=False,
            )
        )
    elif form is RowFormat.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(data)
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in data:
            table.add_row(*("" if cell is None else str(cell).replace("[", "\\[") for cell in row))
        # Piped into a file, a table must not be cut to the width of a terminal that is not there.
        Console(width=None if sys.stdout.isatty() else 400).print(table)
