"""Writers of results: each takes the columns, then rows in chunks, and keeps few of them."""

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from fusewire.store.analyst import cells
from fusewire.store.analyst.result import QueryRefused, ResultColumn, Row, size

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet

GROUP_ROWS = 50_000
GROUP_BYTES = 32 * 1024**2
"""A row group of Parquet ends at either: this is what is kept in memory."""


class Writer(ABC):
    """Writes a result to a binary stream. The end of the block completes it."""

    def __init__(self, stream: IO[bytes], columns: Sequence[ResultColumn]) -> None:
        self._stream = stream
        self._columns = columns
        self._names = tuple(column.name for column in columns)

    @abstractmethod
    def write(self, rows: Sequence[Row]) -> None:
        """Take some rows."""

    def finish(self) -> None:  # noqa: B027 - CSV ends with its last row
        """Write what stands after the last row."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
            self._stream.flush()


class _CsvWriter(Writer):
    def __init__(self, stream: IO[bytes], columns: Sequence[ResultColumn]) -> None:
        super().__init__(stream, columns)
        self._write_rows([self._names])

    def _write_rows(self, rows: Sequence[Sequence[str]]) -> None:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        self._stream.write(buffer.getvalue().encode())

    def write(self, rows: Sequence[Row]) -> None:
        """Write lines."""
        self._write_rows([tuple(map(cells.text, row)) for row in rows])


class _JsonWriter(Writer):
    """One array, with an object on each line."""

    def __init__(self, stream: IO[bytes], columns: Sequence[ResultColumn]) -> None:
        super().__init__(stream, columns)
        self._separator = "["

    def write(self, rows: Sequence[Row]) -> None:
        """Write objects."""
        for row in rows:
            self._stream.write(f"{self._separator}{cells.json_row(self._names, row)}".encode())
            self._separator = ",\n"

    def finish(self) -> None:
        """Close the array."""
        self._stream.write(b"[]\n" if self._separator == "[" else b"]\n")


class _ParquetWriter(Writer):
    def __init__(self, stream: IO[bytes], columns: Sequence[ResultColumn]) -> None:
        super().__init__(stream, columns)
        self._schema, self._file = _open_parquet(stream, columns)
        self._rows: list[Row] = []
        self._n_bytes = 0

    def write(self, rows: Sequence[Row]) -> None:
        """Keep rows until they fill a row group."""
        self._rows += rows
        self._n_bytes += sum(map(size, rows))
        if len(self._rows) >= GROUP_ROWS or self._n_bytes >= GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa  # noqa: PLC0415 - needed for Parquet alone

        columns = list(zip(*self._rows, strict=True)) or [()] * len(self._schema)
        arrays = [
            _array(field, values) for field, values in zip(self._schema, columns, strict=True)
        ]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows, self._n_bytes = [], 0

    def finish(self) -> None:
        """Write the last group, and the footer."""
        if self._rows:
            self._write_group()
        self._file.close()


def _array(field: "pa.Field", values: Sequence[Any]) -> "pa.Array":
    import pyarrow as pa  # noqa: PLC0415 - needed for Parquet alone

    if field.type == pa.string():
        values = [None if value is None else cells.text(value) for value in values]
    try:
        return pa.array(values, type=field.type)
    # The last is pyarrow's error for a conversion that it does not know.
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        raise QueryRefused(
            f"the column {field.name} is not {field.type} in all rows",
            f"give it a type: CAST({field.name} AS text), say",
        ) from None


def _open_parquet(
    stream: IO[bytes], columns: Sequence[ResultColumn]
) -> "tuple[pa.Schema, pyarrow.parquet.ParquetWriter]":
    try:
        import pyarrow as pa  # noqa: PLC0415 - needed for Parquet alone
        import pyarrow.parquet as pq  # noqa: PLC0415 - needed for Parquet alone
    except ImportError:
        raise QueryRefused(
            "Parquet needs pyarrow, which is not installed",
            "install fusewire-cli[parquet], or pyarrow alone",
        ) from None
    types = {
        "integer": pa.int64(),
        "real": pa.float64(),
        "boolean": pa.bool_(),
        "date": pa.date32(),
        "timestamp": pa.timestamp("us", tz="UTC"),
    }
    # A column without a known type, such as one without a value so far, is written as text.
    schema = pa.schema(
        [(column.name, types.get(column.type or "text", pa.string())) for column in columns]
    )
    return schema, pq.ParquetWriter(stream, schema, compression="zstd")


_WRITERS: dict[str, Callable[[IO[bytes], Sequence[ResultColumn]], Writer]] = {
    "json": _JsonWriter,
    "csv": _CsvWriter,
    "parquet": _ParquetWriter,
}


def writer(form: str, stream: IO[bytes], columns: Sequence[ResultColumn]) -> Writer:
    """The writer of a format: json, csv or parquet.

    Raises:
        QueryRefused: pyarrow is not installed; `write` and the end of the block too, if a column
            has no single type.
    """
    return _WRITERS[form](stream, columns)


def has_parquet() -> bool:
    """Whether pyarrow is installed, which Parquet needs."""
    return find_spec("pyarrow") is not None
