"""Results of analysts' statements as files, and the queries that are saved."""

import datetime as dt
import io
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fusewire.store.analyst import QueryRefused, ResultColumn, saved
from fusewire.store.analyst.writers import has_parquet, writer

AT = dt.datetime(2026, 11, 1, 8, 0, 0, 250, tzinfo=dt.UTC)
COLUMNS = (
    ResultColumn("n", "integer"),
    ResultColumn("at", "timestamp"),
    ResultColumn("text", "text"),
)
ROWS: list[tuple[Any, ...]] = [(1, AT, 'a "b",\nc'), (None, None, None)]


def written(form: str, rows: list[tuple[Any, ...]] = ROWS) -> bytes:
    stream = io.BytesIO()
    with writer(form, stream, COLUMNS) as out:
        for row in rows:
            out.write([row])
    return stream.getvalue()


def test_csv_quotes_what_it_must() -> None:
    assert written("csv").decode() == (
        'n,at,text\n1,2026-11-01T08:00:00.000250Z,"a ""b"",\nc"\n,,\n'
    )


def test_json_is_one_array_also_without_rows() -> None:
    assert written("json").startswith(b'[{"n": 1, "at": "2026-11-01T08:00:00.000250Z", ')
    assert written("json", []) == b"[]\n"


def test_parquet_keeps_types_and_nulls() -> None:
    table = pq.read_table(io.BytesIO(written("parquet")))
    assert [str(field.type) for field in table.schema] == [
        "int64",
        "timestamp[us, tz=UTC]",
        "string",
    ]
    assert table.column("n").to_pylist() == [1, None]


def test_a_column_of_several_types_is_refused() -> None:
    with pytest.raises(QueryRefused, match="the column n is not int64 in all rows"):
        written("parquet", [(1, AT, ""), ("x", AT, "")])


def test_without_pyarrow_there_is_no_parquet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_parquet()
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not has_parquet()
    with pytest.raises(QueryRefused, match="Parquet needs pyarrow"):
        written("parquet")


def test_queries_of_a_folder_are_beside_those_that_ship(tmp_path: Path) -> None:
    saved.keep("mine", "-- How many?\nSELECT COUNT(*) FROM v_outcome", tmp_path)
    (tmp_path / "queries" / "broken.sql").write_bytes(b"-- \xff")
    names = [(query.name, query.about) for query in saved.own(tmp_path)]
    assert names == [("broken", "\ufffd"), ("mine", "How many?")]
    assert saved.find("mine", tmp_path).sql.startswith("-- How many?")
    assert saved.find("cost-by-day", tmp_path).source == "built in"
    with pytest.raises(QueryRefused, match="did you mean 'mine'"):
        saved.find("min", tmp_path)
    for name in ("cost-by-day", "../x", "", "A"):
        with pytest.raises(QueryRefused):
            saved.check_name(name)
