"""`fusewire schema`: the contract of the views, and whether a version keeps to an older one."""

import difflib
import json
import sys
from pathlib import Path
from typing import Any

from fusewire.store.views import CONTRACT, VIEWS, View
from fusewire_cli.screen import EXIT_FAULT, fail, note

Contract = dict[str, Any]


def contract(views: tuple[View, ...] = VIEWS) -> Contract:
    """The views with their columns, types and meanings, as `--json` prints them."""
    return {"contract": CONTRACT, "views": [_describe(view) for view in views]}


def _describe(view: View) -> Contract:
    columns = [
        {"name": column.name, "type": column.type, "comment": column.comment}
        for column in view.columns
    ]
    return {"name": view.name, "comment": view.comment, "columns": columns}


def text(document: Contract) -> str:
    """A contract as the file of docs/reference/views.json has it."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def find_view(name: str) -> View:
    """The view of a name. Ends the command if there is none."""
    views = {view.name: view for view in VIEWS}
    if name not in views:
        near = difflib.get_close_matches(name, views, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(views)}"
        fail(f"no view is called '{name}'", hint)
    return views[name]


def show(name: str | None, *, as_json: bool) -> None:
    """Print the contract, or one view of it."""
    views = (find_view(name),) if name else VIEWS
    if as_json:
        print(text(contract(views)), end="")
        return
    print(f"contract {CONTRACT}: the same on SQLite and PostgreSQL; changes only add")
    for view in views:
        print(f"\n{view.name}: {view.comment}")
        width = max(len(column.name) for column in view.columns)
        for column in view.columns:
            print(f"  {column.name:{width}}  {column.type:9}  {column.comment}")


def check(path: Path) -> None:
    """Compare a contract that was kept with this version's. Exits with 1 if it is broken."""
    breaks, additions = compare(_read(path), contract())
    for line in additions:
        print(f"new      {line}")
    for line in breaks:
        print(f"broken   {line}")
    if breaks:
        note(f"fusewire: this version breaks the contract of {path} in {len(breaks)} places")
        sys.exit(EXIT_FAULT)
    print(f"{CONTRACT} holds: nothing that {path} has is gone or of another type")


def _read(path: Path) -> Contract:
    mend = "give a file that `fusewire schema --json` wrote"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        fail(f"{path} cannot be read: {exc}", mend)
    try:
        _types(document)
    except (KeyError, TypeError):
        fail(f"{path} holds no contract", mend)
    if document.get("contract") != CONTRACT:
        fail(f"{path} holds another contract than {CONTRACT}", mend)
    return dict(document)


def _types(document: Contract) -> dict[str, dict[str, str]]:
    """The type of each column, by view."""
    types: dict[str, dict[str, str]] = {}
    for view in document["views"]:
        types[view["name"]] = {column["name"]: column["type"] for column in view["columns"]}
    return types


def compare(before: Contract, after: Contract) -> tuple[list[str], list[str]]:
    """What a later contract breaks of an earlier one, and what it adds; a line for each."""
    old, new = _types(before), _types(after)
    breaks = [f"{name}: the view is gone" for name in old if name not in new]
    additions = [f"{name}: a view" for name in new if name not in old]
    for name in (name for name in old if name in new):
        breaks += _broken_columns(name, old[name], new[name])
        additions += [f"{name}.{column}" for column in new[name] if column not in old[name]]
    return breaks, additions


def _broken_columns(view: str, old: dict[str, str], new: dict[str, str]) -> list[str]:
    lost_columns = [f"{view}.{name}: the column is gone" for name in old if name not in new]
    return lost_columns + [
        f"{view}.{name}: {kind} is now {new[name]}"
        for name, kind in old.items()
        if name in new and new[name] != kind
    ]
