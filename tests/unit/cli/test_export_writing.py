"""What is in the files of an export."""

import csv
import json
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fusewire.store.views.view import boolean, integer, real, text, timestamp
from fusewire.store.views.view import day as day_column
from fusewire_cli.export import FileFormat
from fusewire_cli.export.reading import BATCH_BYTES, PageSize, arrow_schema
from fusewire_cli.export.writing import write_file

pa: Any = import_module("pyarrow")
pq: Any = import_module("pyarrow.parquet")

COLUMNS = (
    text("words", "", ""),
    integer("count", "", ""),
    real("share", "", ""),
    boolean("is_right", "", ""),
    timestamp("at", "", ""),
    day_column(""),
)
SCHEMA = arrow_schema(COLUMNS)
AT = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {"words": '=1+1,"x"\r\ny', "count": 2**60, "share": 0.1, "is_right": True, "at": AT},
    {"words": "", "count": 0, "share": 1e-9, "is_right": False, "at": AT.replace(microsecond=0)},
    {"words": "Ünï ☃"},
]


def batches() -> list[Any]:
    rows = [{**row, "day": date(2026, 3, 4)} for row in ROWS]
    return [pa.RecordBatch.from_pylist([row], SCHEMA) for row in rows]


def test_csv_tells_null_from_empty_and_alters_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"

    assert write_file(FileFormat.csv, path, SCHEMA, batches()) == 3

    lines = path.read_bytes().decode().split("\n")
    assert lines[0] == '"words","count","share","is_right","at","day"'
    assert lines[3] == '"",0,1e-9,false,"2026-03-04T05:06:07.000000Z",2026-03-04'
    assert lines[4] == '"Ünï ☃",,,,,2026-03-04'
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["words"] for row in rows] == ['=1+1,"x"\r\ny', "", "Ünï ☃"]
    assert rows[0]["at"] == "2026-03-04T05:06:07.000089Z"
    assert rows[0]["is_right"] == "true"
    assert int(rows[0]["count"]) == 2**60


def test_json_lines_have_an_object_a_row(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    assert write_file(FileFormat.jsonl, path, SCHEMA, batches()) == 3

    first, second, third = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first == {
        "words": '=1+1,"x"\r\ny',
        "count": 2**60,
        "share": 0.1,
        "is_right": True,
        "at": "2026-03-04T05:06:07.000089Z",
        "day": "2026-03-04",
    }
    assert second["words"] == ""
    assert third == {**dict.fromkeys(first), "words": "Ünï ☃", "day": "2026-03-04"}


def test_parquet_has_the_types_that_the_views_declare(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"

    assert write_file(FileFormat.parquet, path, SCHEMA, batches()) == 3

    table = pq.read_table(path)
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "words": "string",
        "count": "int64",
        "share": "double",
        "is_right": "bool",
        "at": "timestamp[us, tz=UTC]",
        "day": "date32[day]",
    }
    assert table.to_pylist() == [
        {**dict.fromkeys(SCHEMA.names), **row, "day": date(2026, 3, 4)} for row in ROWS
    ]
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    assert chunk.compression == "ZSTD"


@pytest.mark.parametrize("form", FileFormat)
def test_a_file_without_rows_can_be_read(tmp_path: Path, form: FileFormat) -> None:
    path = tmp_path / "x"

    assert write_file(form, path, SCHEMA, []) == 0

    if form is FileFormat.parquet:
        assert pq.read_table(path).schema.names == list(SCHEMA.names)
    else:
        assert len(path.read_text().splitlines()) == (form is FileFormat.csv)


def test_fewer_rows_are_read_at_once_where_they_are_long() -> None:
    size = PageSize()
    short, long = (
        pa.RecordBatch.from_pylist([{"words": "x" * n}]) for n in (10, BATCH_BYTES // 10)
    )

    for _ in range(5):
        size.adjust(short)
    most = size.rows
    size.adjust(long)

    assert size.rows < 11
    assert most > 50 * size.rows
