"""Rows of tables for tests, with as little in them as the database takes."""

from typing import Any

from sqlalchemy import Boolean, DateTime, Float, Integer, Table

from fusewire.testing.factories import T0


def make_row(table: Table, **values: Any) -> dict[str, Any]:
    """A row in which every column that must have a value has one: the given, or any."""
    columns = [
        column for column in table.columns if not column.nullable and not column.server_default
    ]
    return {**{column.name: _value(column.type) for column in columns}, **values}


def _value(kind: Any) -> Any:
    if isinstance(kind, Boolean):
        return False
    if isinstance(kind, Integer | Float):
        return 0
    return T0 if isinstance(getattr(kind, "impl", kind), DateTime) else "x"
