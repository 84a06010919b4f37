"""How values of a result are written: the same for the same data on both databases."""

import datetime as dt
import json
from typing import Any


def time_text(value: dt.datetime) -> str:
    """A time in UTC as ISO 8601, always with microseconds, so that texts sort as times do."""
    return value.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def json_value(value: Any) -> Any:
    """A value as JSON has it; bytes in hexadecimal."""
    if isinstance(value, dt.datetime):
        return time_text(value)
    if isinstance(value, dt.date):
        return value.isoformat()
    return value.hex() if isinstance(value, bytes) else value


def text(value: Any) -> str:
    """A value as CSV and tables have it; NULL is empty."""
    if value is None:
        return ""
    value = json_value(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def json_row(names: tuple[str, ...], row: tuple[Any, ...]) -> str:
    """A row as a JSON object."""
    values = map(json_value, row)
    return json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False, allow_nan=False)
