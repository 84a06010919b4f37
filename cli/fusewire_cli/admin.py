"""`fusewire topology` and `fusewire db`."""

import asyncio
import json
from dataclasses import asdict
from functools import partial

from fusewire.provision import TopologyConflictError, summary
from fusewire.settings import Database, Nats, Settings
from fusewire.store import migrate, summaries
from fusewire.store.engine import Store
from fusewire_cli.local.run_file import broker
from fusewire_cli.local.runner import apply_topology, upgrade_database
from fusewire_cli.screen import fail, note
from fusewire_cli.session import settings


def topology_apply(*, as_json: bool) -> None:
    """Create and update streams, durables and buckets; print each change."""
    config = settings()
    try:
        changes = asyncio.run(apply_topology(config, _broker(config)))
    except TopologyConflictError as exc:
        fail(str(exc))
    if as_json:
        print(json.dumps([asdict(change) for change in changes]))
        return
    for change in changes:
        if change.action != "unchanged":
            print(f"{change.action:9} {change.kind} {change.name}")
    print(", ".join(f"{count} {action}" for action, count in summary(changes).items()))


def _broker(config: Settings) -> Nats:
    nats = broker(config)
    if nats is None:
        fail(
            "nats.url is 'embedded' and no `fusewire up` runs here",
            "`fusewire up` provisions its own broker; for another one set [nats] url",
        )
    return nats


def db_upgrade(*, allow_newer: bool) -> None:
    """Migrate the database, and print the old and new schema version."""
    before, after = asyncio.run(upgrade_database(settings(), allow_newer=allow_newer))
    change = "" if before == after else f" (was {before or 'empty'})"
    print(f"schema {after}{change}")


def db_sums() -> None:
    """Make the sums of each day anew, and print how many days there are."""
    n_days = asyncio.run(_rebuild_sums(settings().database))
    print(f"sums of {n_days} {'day' if n_days == 1 else 'days'} made anew")


async def _rebuild_sums(database: Database) -> int:
    store = Store(database, is_patient=True)
    try:
        # Sums that only newer code knows would be left as they are.
        await migrate.check(store, exact=True)
        days = await store.run(summaries.days, write=False)
        for number, day in enumerate(days, 1):
            await store.run(partial(summaries.rebuild_day, day=day), write=True)
            if number % 100 == 0:
                note(f"{number} of {len(days)} days")
        return len(days)
    finally:
        await store.close()
