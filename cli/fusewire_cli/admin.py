"""`fusewire config`, `topology` and `db`."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path

from fusewire.provision import TopologyConflictError, summary
from fusewire.settings import Settings, find_file, load
from fusewire.store.engine import parse_url
from fusewire_cli.local.run_file import running_nats
from fusewire_cli.local.runner import apply_topology, upgrade_database
from fusewire_cli.screen import fail, note
from fusewire_cli.session import settings


def config_check(file: Path | None, *, live: bool = False) -> None:
    """Print what the configuration means, and with `live` what its hosted models say."""
    config = load(file) if file else settings()
    source = file or find_file() or "the built-in configuration (there is no fusewire.toml)"
    print(f"{source}: usable")
    print(f"database  {parse_url(config.database).render_as_string(hide_password=True)}")
    print(f"nats      {config.nats.url.rpartition('@')[2]}")
    for name, model in sorted(config.models.items()):
        where = model.path if model.kind == "edge" else f"{model.base_url} {model.model}"
        print(f"model     {name}: {model.kind}, {where}")
    for name, pool in sorted(config.pools.items()):
        members = ", ".join(m.name if m.name == m.model else f"{m.name} ({m.model})" for m in pool.members)
        judge = ", ".join(pool.judges) or "none"
        print(f"pool      {name}: {pool.mode}, members {members}; judge {judge}; quorum {pool.quorum:g}")
        models = {m.model for m in pool.members}
        if partial := [j for j in (pool.jury or pool.judges) if j in models and len(models) > 1]:
            note(f"pool {name}: {', '.join(partial)} is also a member and does not vote on its own answers")
    if live:
        from fusewire_cli.live import check

        sys.exit(check(config))


def topology_apply(*, as_json: bool) -> None:
    """Provision, and print what was done."""
    config = settings()
    try:
        changes = asyncio.run(apply_topology(config, _embedded_url(config)))
    except TopologyConflictError as exc:
        fail(str(exc))
    if as_json:
        print(json.dumps([asdict(change) for change in changes]))
        return
    for change in changes:
        if change.action != "unchanged":
            print(f"{change.action:9} {change.kind} {change.name}")
    print(", ".join(f"{count} {action}" for action, count in summary(changes).items()))


def _embedded_url(config: Settings) -> str | None:
    if config.nats.url != "embedded":
        return None
    url = running_nats(config)
    if url is None:
        fail(
            "nats.url is 'embedded' and no `fusewire up` runs here",
            "`fusewire up` provisions its own broker; for another one set [nats] url",
        )
    return url


def db_upgrade() -> None:
    """Migrate, and print from where to where."""
    before, after = asyncio.run(upgrade_database(settings()))
    print(f"schema {after}" + ("" if before == after else f" (was {before or 'empty'})"))
