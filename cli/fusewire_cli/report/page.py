"""A page of text for a terminal: paragraphs and tables."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

PIPE_WIDTH = 400
"""Into a file or pipe a table must not be cut to the width of a terminal that is not there."""


@dataclass(frozen=True)
class PageTable:
    """A table. Columns whose heading ends with `>` are aligned right."""

    headings: tuple[str, ...]
    rows: Sequence[Sequence[str]]


class Page:
    """Prints to stdout. rich leaves colours out where there is no terminal, or NO_COLOR is set."""

    def __init__(self, width: int | None = None) -> None:
        from rich.console import Console

        if width is None and not sys.stdout.isatty():
            width = PIPE_WIDTH
        self._console = Console(highlight=False, width=width)

    def title(self, text: str) -> None:
        """A heading."""
        self._print(text, "bold")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._print(text)

    def gap(self) -> None:
        """An empty line."""
        self._print("")

    def table(self, table: PageTable) -> None:
        """A table, without a line if it has no rows."""
        from rich.table import Table
        from rich.text import Text

        if not table.rows:
            return
        grid = Table(box=None, header_style="bold", pad_edge=False)
        for heading in table.headings:
            is_right = heading.endswith(">")
            grid.add_column(
                heading.rstrip(">"), justify="right" if is_right else "left", overflow="fold"
            )
        for row in table.rows:
            grid.add_row(*map(Text, row))
        self._console.print(grid)

    def _print(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text(text, style=style), soft_wrap=self._console.width == PIPE_WIDTH)
