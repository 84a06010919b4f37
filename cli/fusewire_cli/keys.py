"""`fusewire keys`: API keys. Works on the database directly, like `fusewire db`."""

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from fusewire.contracts import NAME
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire_cli.screen import RowFormat, fail, note, rows
from fusewire_cli.session import settings
from fusewire_ingest.admission.keys import RANDOM_BYTES, digest, key_id, make
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Key

T = TypeVar("T")

MOST_NAME = 128
COLUMNS = ("key_id", "tenant", "name", "created_at", "expires_at", "revoked_at")


def create(tenant: str, name: str, expires_days: float | None, *, as_json: bool) -> None:
    """Create an API key and print it; only its hash is stored."""
    if not re.fullmatch(NAME, tenant):
        fail(
            f"tenant '{tenant[:63]}' must be of a-z, 0-9, '-' and '_'", "give --tenant another name"
        )
    if not 0 < len(name) <= MOST_NAME or not name.isprintable():
        fail(f"a name must have 1 to {MOST_NAME} printable characters", "give --name another one")
    config, now = settings(), datetime.now(UTC)
    expires_at = now + timedelta(days=expires_days) if expires_days else None
    secret = make(secrets.token_bytes(RANDOM_BYTES))
    public = key_id(secret)
    assert public is not None
    key = Key(public, tenant, name, digest(secret, pepper(config)), now, expires_at)
    _with_keys(config, lambda keys: keys.add(key))
    if tenant not in config.tenants:
        note(f"tenant '{tenant}' has no table [tenants.{tenant}] here: nothing limits it")
    note("it is shown this once; only a hash of it is kept")
    print(json.dumps({"key": secret, **_cells(key)}) if as_json else secret)


def show(form: RowFormat) -> None:
    """Print all keys, without the keys themselves."""
    all_keys = _with_keys(settings(), lambda keys: keys.all())
    rows(COLUMNS, [list(_cells(key).values()) for key in all_keys], form)


def revoke(id_or_key: str) -> None:
    """Revoke a key, by its id or by the whole key."""
    public = key_id(id_or_key) or id_or_key
    if not _with_keys(settings(), lambda keys: keys.revoke(public, datetime.now(UTC))):
        fail(f"there is no key '{public[:8]}'", "`fusewire keys list` shows their ids")
    note(f"revoked {public}; every ingest refuses it within 5 seconds")


def _cells(key: Key) -> dict[str, str | None]:
    times = (key.created_at, key.expires_at, key.revoked_at)
    cells = (
        key.key_id,
        key.tenant,
        key.name,
        *(at.isoformat(timespec="seconds") if at else None for at in times),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _with_keys(config: Settings, work: Callable[[ApiKeys], Awaitable[T]]) -> T:
    """Run work on the stored keys, on a database of this version's schema."""

    async def run() -> T:
        store = Store(config.database)
        try:
            await store.ping()
            await migrate.check(store)
            return await work(ApiKeys(store))
        finally:
            await store.close()

    return asyncio.run(run())
