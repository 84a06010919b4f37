import io
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fusewire_cli.batch.inputs import Columns, as_jsonl, lines

LIMIT = 1000


# By name: it publishes no types.
pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
USUAL = Columns()


def read(source: Path, columns: Columns = USUAL) -> list[dict[str, Any]]:
    with as_jsonl(source, columns, LIMIT) as path:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_jsonl_is_read_where_it_is(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "one"}\n')
    with as_jsonl(source, USUAL, LIMIT) as path:
        assert path == source


def test_stdin_is_kept_in_a_file_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"prompt": "one"}\n' * 200_000
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    with as_jsonl(Path("-"), USUAL, LIMIT) as path:
        assert path.read_bytes() == data
    assert not path.exists()


def test_a_csv_s_columns_become_lines_and_others_are_left(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(
        '\ufeffid,question,other\n1,"two\nlines, ""quoted""",x\n,ünnamed,y\n'.encode()
    )
    assert read(source, Columns("question", "id")) == [
        {"custom_id": "1", "prompt": 'two\nlines, "quoted"'},
        {"prompt": "ünnamed"},
    ]


def test_a_csv_s_usual_columns_need_no_naming(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("prompt,custom_id\none,a\n")
    assert read(source) == [{"custom_id": "a", "prompt": "one"}]


def test_a_parquet_s_columns_become_lines(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    count = 2500
    table = {
        "n": list(range(count)),
        "text": [f"question {n}" for n in range(count)],
        "other": [0.5] * count,
    }
    pq.write_table(pa.table(table), source)
    assert read(source, Columns("text", "n")) == [
        {"custom_id": str(n), "prompt": f"question {n}"} for n in range(count)
    ]


def test_a_parquet_s_values_that_are_no_text_are_left_to_be_refused(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": [["a"], None]}), source)
    assert read(source) == [{"prompt": ["list"]}, {"prompt": None}]


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("in.csv", b"a,b\n1,2\n", USUAL, "has no column 'prompt'"),
        ("in.csv", b"", USUAL, "has no column 'prompt'"),
        ("in.csv", b"prompt\nx\n", Columns(None, "id"), "has no column 'id'"),
        ("in.csv", b"prompt\nok\n\xff\n", USUAL, "cannot be read near line"),
        ("in.csv", b"prompt\n" + b"x" * 2000, USUAL, "field larger than field limit"),
        ("in.parquet", b"no parquet", USUAL, "cannot be read"),
        ("in.jsonl", b"{}", Columns("prompt"), "--prompt-col and --id-col are for CSV"),
        ("gone.jsonl", None, USUAL, "cannot be read: No such file"),
        ("gone.csv", None, USUAL, "cannot be read: No such file"),
    ],
)
def test_an_unusable_file_is_refused_with_a_reason(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    columns: Columns,
    message: str,
) -> None:
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(SystemExit) as exit_info:
        read(source, columns)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_without_pyarrow_parquet_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["one"]}), source)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SystemExit) as exit_info:
        read(source)
    assert exit_info.value.code == 2
    assert "fusewire-cli[parquet]" in capsys.readouterr().err


def test_lines_are_numbered_with_the_blank_ones_and_cut_when_too_long() -> None:
    data = b"\xef\xbb\xbfone\r\n\n  \nfour\n" + b"x" * 5000 + b"\nsix"
    numbered_lines = list(lines(io.BytesIO(data), LIMIT))
    assert [(number, line[:4]) for number, line in numbered_lines] == [
        (1, b"one"),
        (4, b"four"),
        (5, b"xxxx"),
        (6, b"six"),
    ]
    assert LIMIT < len(numbered_lines[2][1]) <= LIMIT + 2


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_a_line_of_the_very_limit_is_whole(ending: bytes) -> None:
    assert list(lines(io.BytesIO(b"x" * LIMIT + ending), LIMIT)) == [(1, b"x" * LIMIT)]
