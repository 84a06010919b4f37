"""The analysts' notebook runs on a fresh export, and shows what it showed when it was written."""

import contextlib
import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.testing.planted import Truth, fill
from fusewire_cli.export import FileFormat, command
from fusewire_cli.export.command import Options

NOTEBOOK = Path(__file__).parents[2] / "examples" / "analysts.ipynb"
NOW = datetime(2026, 11, 15, 12, tzinfo=UTC)


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    found: list[dict[str, Any]] = notebook["cells"]
    assert len({cell["id"] for cell in found}) == len(found)
    return found


def columns(text: str) -> list[list[str]]:
    """The headings of DuckDB's tables."""
    return [line.split() for line in re.findall(r"┌.*┐\n│(.*)│\n", text.replace("│ ", "│"))]


@pytest.fixture
async def export(sqlite_database: Database, tmp_path: Path) -> Database:
    store = Store(sqlite_database)
    await fill(store, Truth(NOW, days=14), 400, 11)
    await store.close()
    return sqlite_database


def test_every_cell_of_the_notebook_runs(
    export: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSEWIRE_DATABASE__URL", export.url)
    command.export(FileFormat.parquet, tmp_path / "export", Options(NOW), as_json=True)
    monkeypatch.delenv("FUSEWIRE_DATABASE__URL")

    names: dict[str, Any] = {}
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) == 6
    for number, cell in enumerate(code, 1):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        assert cell["execution_count"] == number
        (output,) = cell["outputs"]
        stored = "".join(output["text"])
        assert columns(shown.getvalue()) == columns(stored) != []
        assert "NULL" not in shown.getvalue().replace("│ NULL    │", ""), shown.getvalue()


def test_the_notebook_names_no_place_and_nobody() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")

    assert not re.findall(r"(?:[\"'\s=]|C:)(?:/(?:home|root|tmp|work|Users|mnt)\b\S*)", text)
    assert len(text) < 30_000
