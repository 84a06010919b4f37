"""Turns the input of a batch, of any supported format, into one JSONL file on disk."""

import contextlib
import csv
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from fusewire_cli.screen import fail

PIECE = 1 << 20
ROWS_AT_ONCE = 1000
PROMPT_COL = "prompt"
ID_COL = "custom_id"


class LineSource(Protocol):
    """A file that lines are read from."""

    def readline(self, size: int, /) -> bytes:
        """Read like a file's `readline`."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold the prompts and their ids; None takes the usual names."""

    prompt: str | None = None
    id: str | None = None

    def choose(self, source: Path, header: list[str]) -> tuple[str, str | None]:
        """The columns of prompts and ids in this table. Fails if a named column is missing."""
        prompt_col = self.prompt or PROMPT_COL
        id_col = self.id or (ID_COL if ID_COL in header else None)
        for option, name in (("--prompt-col", prompt_col), ("--id-col", id_col)):
            if name is not None and name not in header:
                columns = ", ".join(header)[:400] or "none"
                fail(
                    f"{source} has no column '{name}'",
                    f"name one with {option}; there are: {columns}",
                )
        return prompt_col, id_col


@contextlib.contextmanager
def as_jsonl(source: Path, columns: Columns, limit: int) -> Iterator[Path]:
    """The input as a JSONL file.

    That is the input itself, or a temporary copy of stdin (`-`) or of the rows of a CSV or
    Parquet file.

    Args:
        source: the input; its suffix says whether it is a table or JSONL.
        columns: the columns of a table.
        limit: the most bytes that a line may have.

    Raises:
        SystemExit: it cannot be read, or does not have these columns.
    """
    suffix = source.suffix.lower()
    if suffix not in (".csv", ".parquet") and (columns.prompt or columns.id):
        fail("--prompt-col and --id-col are for CSV and Parquet files", "leave them out")
    try:
        rows = _converted_rows(source, columns, limit)
        if rows is None:
            # A file that cannot be read is told before anything begins.
            with source.open("rb"):
                pass
            yield source
            return
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as spool:
            spool.writelines(rows)
            spool.flush()
            yield Path(spool.name)
    except OSError as exc:
        if exc.filename not in (str(source), source):
            raise
        fail(f"{source} cannot be read: {exc.strerror}")


def _converted_rows(source: Path, columns: Columns, limit: int) -> Iterator[bytes] | None:
    """The input as JSONL, in pieces; None if it is a JSONL file already."""
    suffix = source.suffix.lower()
    if suffix == ".csv":
        return _csv_rows(source, columns, limit)
    if suffix == ".parquet":
        return _parquet_rows(source, columns)
    if source == Path("-"):
        return _stdin()
    return None


def _stdin() -> Iterator[bytes]:
    while piece := sys.stdin.buffer.read(PIECE):
        yield piece


def _csv_rows(source: Path, columns: Columns, limit: int) -> Iterator[bytes]:
    # By default the csv module takes no field beyond 128 KiB.
    csv.field_size_limit(limit)
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            prompt_col, id_col = columns.choose(source, list(reader.fieldnames or ()))
            for row in reader:
                yield _line(row[prompt_col], row[id_col] if id_col else None)
        except (csv.Error, UnicodeDecodeError) as exc:
            reason = exc.reason if isinstance(exc, UnicodeDecodeError) else exc
            fail(
                f"{source} cannot be read near line {reader.line_num + 1}: {reason}",
                "it has to be CSV in UTF-8",
            )


def _parquet_rows(source: Path, columns: Columns) -> Iterator[bytes]:
    try:
        # By name: pyarrow publishes no types, and need not be installed.
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        fail(
            "Parquet needs pyarrow, which is not installed",
            "install fusewire-cli[parquet], or convert it to CSV",
        )
    with source.open("rb") as file:
        try:
            table = pq.ParquetFile(file)
            prompt_col, id_col = columns.choose(source, table.schema_arrow.names)
            names = [prompt_col, id_col] if id_col else [prompt_col]
            for group in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=names):
                prompts = group.column(prompt_col).to_pylist()
                custom_ids = group.column(id_col).to_pylist() if id_col else [None] * len(group)
                for prompt, custom_id in zip(prompts, custom_ids, strict=True):
                    yield _line(prompt, custom_id)
        except pa.ArrowException as exc:
            fail(f"{source} cannot be read: {exc}", "it has to be a Parquet file")


def _line(prompt: Any, custom_id: Any) -> bytes:
    """A row of a table as a bare JSONL line."""
    if not isinstance(prompt, str | int | float | None):
        # No text: a list, which the check refuses.
        prompt = [type(prompt).__name__]
    line = {"prompt": prompt}
    if custom_id not in (None, ""):
        line = {"custom_id": str(custom_id), **line}
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def lines(file: LineSource, limit: int) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1. Blank lines are skipped but counted.

    A longer line than `limit` bytes is cut to a little more than `limit`, so that the parser
    still refuses it.
    """
    number = 0
    while line := file.readline(limit + 2):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(PIECE)):
            pass
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield number, line.rstrip(b"\r\n")
