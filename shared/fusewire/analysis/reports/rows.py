"""Values of rows, and the report's figures as JSON."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]
DIGITS = 6


def count(row: Row, name: str) -> int:
    """A whole number; 0 for NULL, which a sum of nothing is."""
    return int(row[name] or 0)


def amount(row: Row, name: str) -> float | None:
    """A number, or None for NULL."""
    value = row[name]
    return None if value is None else float(value)


def add(rows: Iterable[Row], name: str) -> int:
    """The sum of a column of counts."""
    return sum(count(row, name) for row in rows)


def add_known(rows: Iterable[Row], name: str) -> float | None:
    """The sum of a column of amounts; None where one is unknown, or where there are none."""
    amounts = [amount(row, name) for row in rows]
    total = sum(value for value in amounts if value is not None)
    return total if amounts and None not in amounts else None


def group(rows: Iterable[Row], *names: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the texts of some columns, in the order of those."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(str(row[name]) for name in names)].append(row)
    return dict(sorted(groups.items()))


def histograms(rows: Iterable[Row], name: str) -> dict[str, dict[int, int]]:
    """Counts by bucket of `v_latency_hist`, for each text of a column."""
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counts[str(row[name])][count(row, "bucket_ms")] += count(row, "n")
    return {key: dict(buckets) for key, buckets in counts.items()}


def plain(value: Any) -> Any:
    """A report as JSON has it: dataclasses as objects, floats with six digits, ISO days."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    return value.isoformat() if isinstance(value, date | datetime) else value
