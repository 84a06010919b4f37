"""`fusewire config`: print what the configuration means.

Imports neither bus nor database, so that it answers at once.
"""

import re
import sys
from pathlib import Path

from fusewire.configuration import find_file, load
from fusewire.settings import Member, Pool, Settings
from fusewire_cli.screen import note
from fusewire_cli.session import settings

_PASSWORD = re.compile(r"(://[^:/@]*:)[^@]*(@)")


def check(file: Path | None, *, live: bool = False) -> None:
    """Print what the configuration means; with `live`, also ask its hosted models."""
    config = load(file) if file else settings()
    source = file or find_file() or "the built-in configuration (there is no fusewire.toml)"
    keyless = _keyless_models(config)
    exception = f", except {', '.join(keyless)}" if keyless else ""
    print(f"{source}: usable{exception}")
    for name, variable in keyless.items():
        note(f"model {name} cannot be called from here: {variable} is not set")
    database = _PASSWORD.sub(r"\1***\2", config.database.url)
    print(f"database  {database}")
    print(f"nats      {config.nats.url.rpartition('@')[2]}")
    for name, model in sorted(config.models.items()):
        where = model.path if model.kind == "edge" else f"{model.base_url} {model.model}"
        print(f"model     {name}: {model.kind}, {where}")
    for name, pool in sorted(config.pools.items()):
        _show_pool(name, pool)
    if live:
        # Late: what asks models takes a second to import.
        from fusewire_cli import live as module

        sys.exit(module.check(config))


def _keyless_models(config: Settings) -> dict[str, str]:
    """By model without an API key, the environment variable that should hold the key."""
    return {
        name: model.api_key_env
        for name, model in sorted(config.models.items())
        if model.kind == "remote" and model.api_key_env and model.api_key is None
    }


def _show_pool(name: str, pool: Pool) -> None:
    members = ", ".join(_member_text(member) for member in pool.members)
    judge = ", ".join(pool.judges) or "none"
    rules = f"judge {judge}; quorum {pool.quorum:g}"
    print(f"pool      {name}: {pool.mode}, members {members}; {rules}")
    models = {member.model for member in pool.members}
    if len(models) == 1:
        return
    partial_judges = [judge for judge in pool.jury or pool.judges if judge in models]
    if partial_judges:
        who = ", ".join(partial_judges)
        note(f"pool {name}: {who} is also a member and does not vote on its own answers")


def _member_text(member: Member) -> str:
    return member.name if member.name == member.model else f"{member.name} ({member.model})"
