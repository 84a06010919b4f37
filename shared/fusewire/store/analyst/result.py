"""What a statement of an analyst gives: columns with types, chunks of rows, or a clear error."""

import datetime as dt
import decimal
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fusewire.store.views.view import ColumnType

LONGEST_VALUE = 16 * 1024**2
"""Bytes of the longest value that a statement may make or return."""
CHUNK_BYTES = 4 * 1024**2
"""A chunk of rows ends here, so that long answers do not fill the memory."""

Row = tuple[Any, ...]


class QueryError(Exception):
    """A statement gave no result. Says what is wrong, and how to mend it."""

    def __init__(self, what: str, mend: str = "") -> None:
        self.what = what
        self.mend = mend
        super().__init__(f"{what}; {mend}" if mend else what)


class QueryRefused(QueryError):  # noqa: N818 - it names what became of the query
    """The statement may not be run, or there is nothing to run it on."""


class QueryFailed(QueryError):  # noqa: N818 - as above
    """The database reports an error in the statement."""


class QueryTimeout(QueryError):  # noqa: N818 - as above
    """The statement ran too long."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"the query ran longer than {timeout_s:g} s", "narrow it, or raise --timeout"
        )


def long_value() -> QueryFailed:
    """The error for a value that is too long."""
    return QueryFailed(
        f"a value is longer than {LONGEST_VALUE // 1024**2} MB",
        "select less of it, such as substr(content, 1, 1000)",
    )


@dataclass(frozen=True)
class ResultColumn:
    """A column of a result. `type` is None for bytes, and where there is no value to infer it."""

    name: str
    type: ColumnType | None


class ResultRows:
    """Rows of a running statement, to be iterated once, in chunks.

    Texts, whole numbers, floats, booleans, dates, datetimes in UTC, bytes, and None: the same on
    both databases.
    """

    def __init__(self, columns: Sequence[ResultColumn], chunks: AsyncIterator[list[Row]]) -> None:
        self.columns = tuple(_distinct(columns))
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[list[Row]]:
        return self._chunks


def _distinct(columns: Sequence[ResultColumn]) -> Iterator[ResultColumn]:
    """The columns, with a number after a name that was there before."""
    names: set[str] = set()
    for column in columns:
        name, number = column.name, 2
        while name in names:
            name, number = f"{column.name}_{number}", number + 1
        names.add(name)
        yield ResultColumn(name, column.type)


def size(row: Row) -> int:
    """About how many bytes a row takes."""
    return 64 + sum(len(cell) for cell in row if isinstance(cell, str | bytes))


def infer_type(values: Sequence[Any]) -> ColumnType | None:
    """Return the type of a column that has these values; None where they do not agree on one."""
    kinds = {_kind(value) for value in values if value is not None}
    if kinds == {"integer", "real"}:
        return "real"
    return kinds.pop() if len(kinds) == 1 else None


def _kind(value: Any) -> ColumnType | None:
    # A bool is an int, and a datetime is a date: the narrower comes first.
    for kind, types in _KINDS:
        if isinstance(value, types):
            return kind
    return None


_KINDS: tuple[tuple[ColumnType, type], ...] = (
    ("boolean", bool),
    ("integer", int),
    ("real", float),
    ("text", str),
    ("timestamp", dt.datetime),
    ("date", dt.date),
)


def plain(value: Any) -> Any:
    """A value of PostgreSQL's further types as one of the types that both databases have."""
    if value is None or isinstance(value, str | int | bytes):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return _plain_decimal(value)
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC) if value.tzinfo else value.replace(tzinfo=dt.UTC)
    return value if isinstance(value, dt.date) else str(value)


def _plain_decimal(value: decimal.Decimal) -> int | float | None:
    """PostgreSQL's sum of bigints is a decimal without a fraction; SQLite's a whole number."""
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int):
        return None
    return int(value) if exponent >= 0 else float(value)
