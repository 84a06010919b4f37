"""`fusewire config`: what the configuration means. Imports neither bus nor database, to answer at once."""

import re
import sys
from pathlib import Path

from fusewire.settings import find_file, load
from fusewire_cli.screen import note
from fusewire_cli.session import settings

_PASSWORD = re.compile(r"(://[^:/@]*:)[^@]*(@)")


def check(file: Path | None, *, live: bool = False) -> None:
    """Print what the configuration means, and with `live` what its hosted models say."""
    config = load(file) if file else settings()
    source = file or find_file() or "the built-in configuration (there is no fusewire.toml)"
    keyless = {
        name: model.api_key_env
        for name, model in sorted(config.models.items())
        if model.kind == "remote" and model.api_key_env and model.api_key is None
    }
    print(f"{source}: usable" + (f", except {', '.join(keyless)}" if keyless else ""))
    for name, variable in keyless.items():
        note(f"model {name} cannot be called from here: {variable} is not set")
    database = _PASSWORD.sub(r"\1***\2", config.database.url)
    print(f"database  {database}")
    print(f"nats      {config.nats.url.rpartition('@')[2]}")
    for name, model in sorted(config.models.items()):
        where = model.path if model.kind == "edge" else f"{model.base_url} {model.model}"
        print(f"model     {name}: {model.kind}, {where}")
    for name, pool in sorted(config.pools.items()):
        members = ", ".join(
            m.name if m.name == m.model else f"{m.name} ({m.model})" for m in pool.members
        )
        judge = ", ".join(pool.judges) or "none"
        print(
            f"pool      {name}: {pool.mode}, members {members}; judge {judge}; quorum {pool.quorum:g}"
        )
        models = {m.model for m in pool.members}
        if partial := [j for j in (pool.jury or pool.judges) if j in models and len(models) > 1]:
            note(
                f"pool {name}: {', '.join(partial)} is also a member and does not vote on its own answers"
            )
    if live:
        # What asks models takes a second to import.
        from fusewire_cli import live as module

        sys.exit(module.check(config))
