"""How a view is described: its columns with their types and meanings, and its SQL."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

ColumnType = Literal["text", "integer", "real", "boolean", "date", "timestamp"]
"""SQLite has no booleans, dates and timestamps: there they are 0 and 1, and ISO 8601 texts in
UTC."""


@dataclass(frozen=True)
class ViewColumn:
    """A column: its name, what it means, and its expression per database where they differ."""

    name: str
    comment: str
    sql: str
    postgresql: str | None = None
    type: ColumnType = "text"

    def select(self, dialect: str) -> str:
        """The column in a SELECT for `sqlite` or `postgresql`."""
        has_own = dialect == "postgresql" and self.postgresql
        return f"{self.postgresql if has_own else self.sql} AS {self.name}"


text = partial(ViewColumn, type="text")
integer = partial(ViewColumn, type="integer")
real = partial(ViewColumn, type="real")
boolean = partial(ViewColumn, type="boolean")
timestamp = partial(ViewColumn, type="timestamp")


def day(column: str) -> ViewColumn:
    """The day of a time, in UTC."""
    return ViewColumn(
        "day",
        "UTC day of finished_at",
        f"date({column})",
        f"CAST({column} AT TIME ZONE 'UTC' AS date)",
        type="date",
    )


@dataclass(frozen=True)
class View:
    """A view: one row is what `comment` says. `source` is what stands after FROM."""

    name: str
    comment: str
    columns: tuple[ViewColumn, ...]
    source: str
    postgresql: str | None = None
    """`source` where it is another on PostgreSQL."""

    def create(self, dialect: str) -> str:
        """The CREATE VIEW statement for `sqlite` or `postgresql`."""
        expressions = ",\n  ".join(column.select(dialect) for column in self.columns)
        has_own = dialect == "postgresql" and self.postgresql
        source = self.postgresql if has_own else self.source
        return f"CREATE VIEW {self.name} AS\nSELECT\n  {expressions}\nFROM {source}"
