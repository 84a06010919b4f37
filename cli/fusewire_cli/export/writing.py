"""Writes record batches as Parquet, CSV or JSON Lines.

CSV follows RFC 4180, with LF: a header, texts in quotes, NULL as nothing and empty text as `""`,
times as ISO 8601 in UTC, and true and false. A text that a spreadsheet would take for a formula is
not altered: it is what was stored. In JSON Lines a row is an object, with NULL as null.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from fusewire_cli.export import FileFormat

GROUP_ROWS = 65_536
GROUP_BYTES = 32 * 1024**2
"""Parquet's row groups end with either."""
_DISTINCT = frozenset(
    {
        "outcome_id", "answer_id", "custom_id", "prompt_hash", "content", "reason",
        "fallback_reason", "error", "tool_calls", "call", "swap_of", "voter_hash",
    }
)  # fmt: skip
"""Texts that hardly repeat, so that a dictionary of them would be as long as they are."""


class _Writer(ABC):
    """Writes to a file that is open."""

    @abstractmethod
    def write(self, batch: Any) -> None:
        """Add rows."""

    def close(self) -> None:  # noqa: B027 - most formats end with their last row
        """Write what ends the format."""

    def abandon(self) -> None:  # noqa: B027 - most formats keep nothing back
        """Write nothing more, not even when it is destroyed."""


class _ParquetWriter(_Writer):
    def __init__(self, file: IO[bytes], schema: Any) -> None:
        self._pa: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
        texts = [field.name for field in schema if self._pa.types.is_string(field.type)]
        self._writer = parquet.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=[name for name in texts if name not in _DISTINCT],
        )
        self._schema = schema
        self._group: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, batch: Any) -> None:
        self._group.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._end_group()

    def _end_group(self) -> None:
        if self._group:
            self._writer.write_table(self._pa.Table.from_batches(self._group, self._schema))
        self._group = []
        self._rows = self._bytes = 0

    def close(self) -> None:
        self._end_group()
        self._writer.close()

    def abandon(self) -> None:
        self._writer.is_open = False


class _CsvWriter(_Writer):
    def __init__(self, file: IO[bytes], schema: Any) -> None:
        self._pa: Any = import_module("pyarrow")
        self._csv: Any = import_module("pyarrow.csv")
        self._file = file
        self._options = self._csv.WriteOptions(include_header=False)
        file.write((",".join(f'"{name}"' for name in schema.names) + "\n").encode())

    def write(self, batch: Any) -> None:
        self._csv.write_csv(_with_text_times(self._pa, batch), self._file, self._options)


class _JsonLinesWriter(_Writer):
    def __init__(self, file: IO[bytes], schema: Any) -> None:
        self._pa: Any = import_module("pyarrow")
        self._file = file
        self._names = schema.names

    def write(self, batch: Any) -> None:
        columns = [column.to_pylist() for column in _with_text_times(self._pa, batch).columns]
        encode = json.JSONEncoder(ensure_ascii=False, default=str, allow_nan=False).encode
        lines = [
            encode(dict(zip(self._names, row, strict=True))) + "\n"
            for row in zip(*columns, strict=True)
        ]
        self._file.write("".join(lines).encode())


_WRITERS: dict[FileFormat, Callable[[IO[bytes], Any], _Writer]] = {
    FileFormat.parquet: _ParquetWriter,
    FileFormat.csv: _CsvWriter,
    FileFormat.jsonl: _JsonLinesWriter,
}


def _with_text_times(pa: Any, batch: Any) -> Any:
    """The batch with its times as texts such as `2026-11-30T08:15:00.123456Z`."""
    compute: Any = import_module("pyarrow.compute")
    columns = [
        compute.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
        if pa.types.is_timestamp(column.type)
        else column
        for column in batch.columns
    ]
    return pa.record_batch(columns, names=batch.schema.names)


def write_file(form: FileFormat, path: Path, schema: Any, batches: Iterable[Any]) -> int:
    """Write a file and sync it; returns how many rows it has. Raises OSError."""
    rows = 0
    with path.open("wb") as file:
        writer = _WRITERS[form](file, schema)
        try:
            for batch in batches:
                writer.write(batch)
                rows += batch.num_rows
            writer.close()
        except BaseException:
            writer.abandon()
            raise
        file.flush()
        os.fsync(file.fileno())
    return rows


def missing_library(modules: Sequence[str] = ("pyarrow", "pyarrow.parquet")) -> bool:
    """Whether pyarrow cannot be imported."""
    try:
        for module in modules:
            import_module(module)
    except ImportError:
        return True
    return False
