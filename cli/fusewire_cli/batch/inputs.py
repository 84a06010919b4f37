"""Inputs of a batch, whatever they come as, as one JSONL file on disk."""

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
    """What lines are read from."""

    def readline(self, size: int, /) -> bytes:
        """As of a file."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold the prompts and their ids; None takes the usual names."""

    prompt: str | None = None
    id: str | None = None

    def choose(self, source: Path, header: list[str]) -> tuple[str, str | None]:
        """The columns of this table. Fails where one that was named is not there."""
        prompt = self.prompt or PROMPT_COL
        named = self.id or (ID_COL if ID_COL in header else None)
        for option, name in (("--prompt-col", prompt), ("--id-col", named)):
            if name is not None and name not in header:
                columns = ", ".join(header)[:400] or "none"
                fail(
                    f"{source} has no column '{name}'",
                    f"name one with {option}; there are: {columns}",
                )
        return prompt, named


@contextlib.contextmanager
def as_jsonl(source: Path, columns: Columns, limit: int) -> Iterator[Path]:
    """The input as a JSONL file: itself, or a temporary copy of stdin (`-`) or of a CSV or Parquet file's rows.

    Args:
        source: the input; by its ending, a table or JSONL.
        columns: of a table.
        limit: the most bytes that a line may have.

    Raises:
        SystemExit: it cannot be read, or has not these columns.
    """
    kind = source.suffix.lower()
    if kind not in (".csv", ".parquet") and (columns.prompt or columns.id):
        fail("--prompt-col and --id-col are for CSV and Parquet files", "leave them out")
    try:
        if kind == ".csv":
            rows = _csv_rows(source, columns, limit)
        elif kind == ".parquet":
            rows = _parquet_rows(source, columns)
        elif source == Path("-"):
            rows = _stdin()
        else:
            with source.open("rb"):
                pass
            yield source
            return
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as spool:
            for row in rows:
                spool.write(row)
            spool.flush()
            yield Path(spool.name)
    except OSError as exc:
        if exc.filename not in (str(source), source):
            raise
        fail(f"{source} cannot be read: {exc.strerror}")


def _stdin() -> Iterator[bytes]:
    while piece := sys.stdin.buffer.read(PIECE):
        yield piece


def _csv_rows(source: Path, columns: Columns, limit: int) -> Iterator[bytes]:
    csv.field_size_limit(limit)
    with source.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            prompt, named = columns.choose(source, list(reader.fieldnames or ()))
            for row in reader:
                yield _row(row[prompt], row[named] if named else None)
        except (csv.Error, UnicodeDecodeError) as exc:
            reason = exc.reason if isinstance(exc, UnicodeDecodeError) else exc
            fail(
                f"{source} cannot be read near line {reader.line_num + 1}: {reason}",
                "it has to be CSV in UTF-8",
            )


def _parquet_rows(source: Path, columns: Columns) -> Iterator[bytes]:
    try:
        # By name: it publishes no types, and may not be there.
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        fail(
            "Parquet needs pyarrow, which is not installed",
            "install fusewire-cli[parquet], or convert it to CSV",
        )
    with source.open("rb") as file:
        try:
            table = pq.ParquetFile(file)
            prompt, named = columns.choose(source, table.schema_arrow.names)
            wanted = [prompt, *([named] if named else [])]
            for group in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
                ids = group.column(named).to_pylist() if named else [None] * len(group)
                for text, one in zip(group.column(prompt).to_pylist(), ids, strict=True):
                    yield _row(text, one)
        except pa.ArrowException as exc:
            fail(f"{source} cannot be read: {exc}", "it has to be a Parquet file")


def _row(prompt: Any, custom_id: Any) -> bytes:
    """A row as a bare line. What is no text is left for the check to refuse."""
    line = {
        "prompt": prompt
        if isinstance(prompt, str | int | float | None)
        else [type(prompt).__name__]
    }
    if custom_id not in (None, ""):
        line = {"custom_id": str(custom_id), **line}
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def lines(file: LineSource, limit: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, from 1; blank ones are passed over but counted.

    A line of more than `limit` bytes is cut, but not to `limit`: whoever parses it refuses it.
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
