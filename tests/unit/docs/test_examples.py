"""The examples are what the documents show, and the configurations among them are valid."""

import re
from pathlib import Path

import pytest

from fusewire.configuration import load

ROOT = Path(__file__).parents[3]
QUOTED = re.compile(r"<!-- (examples/[\w.-]+) -->\n```(?:python|toml)\n(.*?)```", re.DOTALL)
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def test_what_the_documents_quote_is_the_file() -> None:
    quotations = [match for page in PAGES for match in QUOTED.findall(page.read_text())]
    assert len(quotations) > 4
    for file, text in quotations:
        assert (ROOT / file).read_text() == text, f"{file} differs from its quotation"


def test_every_example_is_quoted() -> None:
    names = {name for page in PAGES for name, _ in QUOTED.findall(page.read_text())}
    # A notebook is read where it is; test_notebook.py runs it.
    paths = [path for path in (ROOT / "examples").iterdir() if path.suffix != ".ipynb"]
    assert names == {f"examples/{path.name}" for path in paths if path.is_file()}


CONFIGURATIONS = sorted((ROOT / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_a_configuration_is_valid(path: Path) -> None:
    settings = load(path)
    assert settings.pools["default"].members
