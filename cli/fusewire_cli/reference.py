"""Writes docs/reference/ and NATS's accounts: `python -m fusewire_cli.reference [--check]`."""

import sys
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

import typer
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fusewire import accounts, metrics
from fusewire.settings import EdgeModel, Member, Pool, RemoteModel, Settings, Tenant
from fusewire.store.views import CONTRACT, VIEWS
from fusewire_cli import schema
from fusewire_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("docs/reference")
HEADER = "<!-- Written by `make docs`; `make check` fails when it is out of step. -->\n"


def commands() -> str:
    """The page of commands: the help of each one."""
    parts = [f"# Commands\n\n{HEADER}"]

    def walk(command: Any, path: str) -> None:
        context = typer.Context(command, info_name=path, max_content_width=100, terminal_width=100)
        text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
        parts.append(f"## {path}\n\n```text\n{text}\n```\n")
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, f"{path} {name}")

    walk(typer.main.get_command(app), "fusewire")
    return "\n".join(parts)


def configuration() -> str:
    """The page of configuration keys."""
    lead = (
        "One TOML file: `$FUSEWIRE_CONFIG`, else `./fusewire.toml`, else the built-in one. "
        "Every key is also an\n"
        "environment variable, which wins: `[database] url` is `FUSEWIRE_DATABASE__URL`.\n"
    )
    parts = [f"# Configuration\n\n{HEADER}\n{lead}"]
    tables: list[tuple[str, type[BaseModel]]] = []
    top: list[tuple[str, FieldInfo]] = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            tables.append((f"[{name}]", field.annotation))
        elif name not in ("models", "pools", "tenants"):
            top.append((name, field))
    parts.append(_keys("Top level", top))
    tables += [
        ('[models.NAME] with kind = "edge"', EdgeModel),
        ('[models.NAME] with kind = "remote"', RemoteModel),
        ("[pools.NAME]", Pool),
        ("[[pools.NAME.members]]", Member),
        ("[tenants.NAME]", Tenant),
    ]
    parts += [_keys(f"`{title}`", _own_keys_first(model)) for title, model in tables]
    return "\n".join(parts)


def _own_keys_first(model: type[BaseModel]) -> list[tuple[str, FieldInfo]]:
    """A table's keys; those that it shares with a message, such as a pool's policy, come last."""
    own_names = model.__annotations__
    return sorted(model.model_fields.items(), key=lambda key: key[0] not in own_names)


def _keys(title: str, fields: list[tuple[str, FieldInfo]]) -> str:
    rows = [f"## {title}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields:
        default = "required"
        if not field.is_required():
            default = f"`{_plain(field.get_default(call_default_factory=True))}`"
        meaning = (field.description or "").replace("\n", " ")
        rows.append(f"| `{name}` | {_type(field.annotation)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


def _type(annotation: Any) -> str:
    """A type as a reader of the reference calls it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if origin is None:
        name = getattr(annotation, "__name__", str(annotation))
        return _TYPES.get(name, name.lower())
    names = _argument_names(arguments)
    return f"list of {names[0]}" if origin is tuple else " or ".join(names)


def _argument_names(arguments: tuple[Any, ...]) -> list[str]:
    """The alternatives of a union or literal, without None; or the type of a tuple's elements."""
    names = []
    for argument in arguments:
        if argument is Ellipsis or argument is NoneType:
            continue
        # A text is an alternative of a literal.
        names.append(f"`{argument}`" if isinstance(argument, str) else _type(argument))
    return names


_TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
}
"""By name of a Python type, the word of the reference."""


def views() -> str:
    """The page of the views."""
    lead = (
        f"Contract `{CONTRACT}`: the same names and columns on SQLite and PostgreSQL; "
        "changes are additive only.\n"
        "[views.json](views.json) is the same for programs; `fusewire schema --check FILE` compares"
        " a version of it\nwith the installed Fusewire.\n"
    )
    parts = [f"# Views\n\n{HEADER}\n{lead}"]
    for view in VIEWS:
        rows = [
            f"## {view.name}\n",
            f"{view.comment}\n",
            "| column | type | meaning |",
            "|---|---|---|",
        ]
        rows += [
            f"| `{column.name}` | {column.type} | {column.comment} |" for column in view.columns
        ]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def metrics_page() -> str:
    """The page of metrics."""
    lead = (
        "What `/metrics` shows, in Prometheus' text format. A label has the values that the"
        " configuration or the code\nnames, never an id. Where all replicas report the same, take"
        " `max by`, not `sum`. On Linux there are\n`process_…` metrics too. Alerts"
        " and a dashboard are in `deploy/alerts/`.\n"
    )
    rows = [
        f"# Metrics\n\n{HEADER}\n{lead}",
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    for family in metrics.REGISTRY.collect():
        name = family.name + "_total" * (family.type == "counter")
        if name in metrics.LABELS:
            labels = ", ".join(f"`{label}`" for label in metrics.LABELS[name])
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows) + "\n"


def files() -> dict[Path, str]:
    """All generated files, by their path from the root."""
    return {
        FOLDER / "commands.md": commands(),
        FOLDER / "configuration.md": configuration(),
        FOLDER / "metrics.md": metrics_page(),
        FOLDER / "views.md": views(),
        FOLDER / "views.json": schema.text(schema.contract()),
        Path("deploy/nats/accounts.conf"): accounts.render(),
        Path("deploy/nats/edge-site-users.conf"): accounts.render_site("site"),
    }


def main() -> None:
    """Write the files, or with --check say which are out of step."""
    pages = files()
    stale = [str(path) for path, text in pages.items() if not _same(ROOT / path, text)]
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"out of step: {', '.join(stale)}; run make docs")
        return
    for path, text in pages.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    main()
