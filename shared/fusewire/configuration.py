"""Reads the configuration: one TOML file, every key also as `FUSEWIRE_…`, the environment wins."""

import difflib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError

from fusewire.settings import Section, Settings

CONFIG_ENV = "FUSEWIRE_CONFIG"
DEFAULT_FILE = Path("fusewire.toml")


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has one line for each fault."""

    def __init__(self, source: str, problems: list[str], hint: str = "") -> None:
        self.source = source
        self.problems = problems
        self.hint = hint or "mend the file, or the FUSEWIRE_… variable, and try again"
        super().__init__(f"{source}: " + "; ".join(problems))


def _problems(exc: ValidationError) -> list[str]:
    """One line for each error: the key's path and what is wrong."""
    lines = []
    for error in exc.errors(include_url=False, include_input=False, include_context=False):
        # Pydantic puts the kind of a model into its path.
        path = ".".join(str(part) for part in error["loc"] if part not in ("edge", "remote"))
        message = str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            message = _unknown_key(str(error["loc"][-1]))
        lines.append(f"{path}: {message}" if path else message)
    return lines


def _unknown_key(key: str) -> str:
    tables: list[type[BaseModel]] = [Settings, *Section.__subclasses__()]
    keys: set[str] = set()
    for table in tables:
        keys |= table.model_fields.keys()
    close_keys = difflib.get_close_matches(key, keys, n=1)
    if close_keys:
        return f"not a known key; did you mean '{close_keys[0]}'?"
    return "not a known key; remove it"


def find_file() -> Path | None:
    """The configuration file: `$FUSEWIRE_CONFIG`, else ./fusewire.toml if it exists."""
    variable = os.environ.get(CONFIG_ENV)
    if variable:
        return Path(variable).expanduser()
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def read_file(path: Path) -> dict[str, Any]:
    """Read one TOML file, or a JSON file, by its suffix, which the local runner writes.

    Raises:
        ConfigError: it is missing, unreadable, or not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return dict(json.loads(text)) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as exc:
        hint = f"create {path}, or point {CONFIG_ENV} at another file"
        raise ConfigError(str(path), [f"cannot be read: {exc.strerror}"], hint) from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(str(path), [f"cannot be parsed: {exc}"]) from None


def load(path: Path | None = None, *, fallback: dict[str, Any] | None = None) -> Settings:
    """Read the configuration.

    Args:
        path: the file; None uses `find_file`.
        fallback: used if there is no file.

    Raises:
        ConfigError: with every fault.
    """
    file = path or find_file()
    data = read_file(file) if file else (fallback or {})
    try:
        return Settings(**data)
    except SettingsError as exc:
        raise ConfigError(
            "the environment", [str(exc)], "give the FUSEWIRE_… variable as JSON, or unset it"
        ) from None
    except ValidationError as exc:
        raise ConfigError(str(file or "the built-in configuration"), _problems(exc)) from None
