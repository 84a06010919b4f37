"""Saved queries: those that ship with Fusewire, and the user's own in the data folder."""

import difflib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fusewire.contracts import NAME
from fusewire.store.analyst.result import QueryRefused

FOLDER = "queries"


@dataclass(frozen=True)
class SavedQuery:
    """A statement with a name, and the first line of its comment: what it answers."""

    name: str
    source: str
    sql: str

    @property
    def about(self) -> str:
        """What it answers, as far as its first line is a comment; else its beginning."""
        line = next(iter(self.sql.strip().splitlines()), "")
        return line.removeprefix("--").strip()[:100]


def built_in() -> list[SavedQuery]:
    """The queries that ship with Fusewire."""
    folder = files("fusewire.store.analyst") / FOLDER
    return sorted(
        (
            SavedQuery(entry.name.removesuffix(".sql"), "built in", entry.read_text("utf-8"))
            for entry in folder.iterdir()
            if entry.name.endswith(".sql")
        ),
        key=lambda query: query.name,
    )


def own(data_dir: Path) -> list[SavedQuery]:
    """The user's queries."""
    return [
        SavedQuery(path.stem, "own", path.read_text("utf-8", errors="replace"))
        for path in sorted((data_dir / FOLDER).glob("*.sql"))
    ]


def find(name: str, data_dir: Path) -> SavedQuery:
    """The query of a name. Raises QueryRefused if there is none."""
    queries = {query.name: query for query in (*own(data_dir), *built_in())}
    if name not in queries:
        near = difflib.get_close_matches(name, queries, 1)
        hint = f"did you mean '{near[0]}'?" if near else "`fusewire query --list-saved` lists them"
        raise QueryRefused(f"no saved query is called '{name}'", hint)
    return queries[name]


def check_name(name: str) -> None:
    """Refuse a name that no query of a user can have. Raises QueryRefused."""
    if not re.fullmatch(NAME, name):
        raise QueryRefused(
            f"'{name}' cannot be the name of a query",
            "use 1 to 63 of a-z, 0-9, '-' and '_', and begin with a letter or digit",
        )
    if name in {query.name for query in built_in()}:
        raise QueryRefused(f"'{name}' is a query that ships with Fusewire", "choose another name")


def keep(name: str, sql: str, data_dir: Path) -> tuple[Path, bool]:
    """Write a query's file. Returns it, and whether it replaced another."""
    path = data_dir / FOLDER / f"{name}.sql"
    path.parent.mkdir(parents=True, exist_ok=True)
    is_replaced = path.exists()
    path.write_text(sql.strip() + "\n", encoding="utf-8")
    return path, is_replaced
