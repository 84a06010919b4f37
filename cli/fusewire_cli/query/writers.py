"""Where `fusewire query` writes a result, and its table, which keeps all rows."""

import io
import sys
from collections.abc import Sequence
from typing import IO

from fusewire.store.analyst import ResultColumn, cells, writers
from fusewire.store.analyst.result import Row
from fusewire_cli.screen import QueryFormat, fail, print_table


class _TableWriter(writers.Writer):
    """Keeps all rows, as the widths of the columns follow from them."""

    def __init__(self, stream: IO[bytes], columns: Sequence[ResultColumn]) -> None:
        super().__init__(stream, columns)
        self._rows: list[tuple[str, ...]] = []

    def write(self, rows: Sequence[Row]) -> None:
        """Keep texts."""
        self._rows += (tuple(map(cells.text, row)) for row in rows)

    def finish(self) -> None:
        """Print them."""
        text = io.TextIOWrapper(self._stream, encoding="utf-8", write_through=True)
        print_table(self._names, self._rows, text)
        text.detach()


def writer(form: QueryFormat, stream: IO[bytes], columns: Sequence[ResultColumn]) -> writers.Writer:
    """The writer of a format."""
    if form is QueryFormat.table:
        return _TableWriter(stream, columns)
    return writers.writer(form.value, stream, columns)


def stdout_for(form: QueryFormat) -> IO[bytes]:
    """The standard output as bytes. A terminal gets no Parquet."""
    if form is QueryFormat.parquet and sys.stdout.isatty():
        fail("Parquet cannot be shown on a terminal", "add --output FILE")
    sys.stdout.flush()
    return sys.stdout.buffer
