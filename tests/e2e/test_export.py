"""`fusewire export` as an analyst runs it."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fusewire.testing.command_line import Cli

duckdb: Any = import_module("duckdb")


def test_what_was_asked_is_exported_and_read_by_duckdb(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = cli.run("export", "parquet", "out")
    assert nothing.returncode == 2
    assert "nothing has been stored yet" in nothing.stderr
    assert cli.run("db", "upgrade").returncode == 0
    empty = cli.run("export", "parquet", "out")
    assert empty.returncode == 0
    assert "no outcomes are stored yet" in empty.stderr

    outcome = json.loads(cli.run("ask", "What is copper?", "--json").stdout)
    done = json.loads(cli.run("export", "parquet", "out", "--json").stdout)

    assert {name: view["rows"] for name, view in done["views"].items()}["v_answer"] == 3
    monkeypatch.chdir(Path(cli.folder) / "out")
    connection = duckdb.connect()
    connection.execute(Path("views.duckdb.sql").read_text(encoding="utf-8"))
    rows = connection.execute("SELECT outcome_id, status, n_answered FROM v_outcome").fetchall()
    assert rows == [(outcome["id"], outcome["status"], 3)]
    assert connection.execute("SELECT SUM(outcomes) FROM v_pool_day").fetchall() == [(1,)]

    table = cli.run("export", "csv", "rows", "--view", "v_outcome", "--since", "1d").stdout
    assert table.split()[:1] == ["view"]
    assert cli.run("export", "xml", "out").returncode == 2
