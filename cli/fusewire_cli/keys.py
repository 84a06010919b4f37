"""`fusewire keys`: API keys. Works on the database directly, like `fusewire db`."""

import asyncio
import getpass
import json
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from fusewire.contracts import NAME
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire_cli.screen import RowFormat, fail, note, rows
from fusewire_cli.session import settings
from fusewire_ingest.admission.keys import (
    DEFAULT_SCOPES,
    MOST_NAME,
    RANDOM_BYTES,
    digest,
    is_name,
    key_id,
    make,
    write_scopes,
)
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key, KeyStateError

T = TypeVar("T")

COLUMNS = (
    "key_id",
    "tenant",
    "name",
    "scopes",
    "created_at",
    "expires_at",
    "revoked_at",
    "last_used_at",
    "replaces",
)


@dataclass(frozen=True)
class KeyLimits:
    """The rate limits of a key, beside those of its tenant; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    prompts_in_flight: int | None = None


def create(
    tenant: str,
    name: str,
    expires_days: float | None,
    *,
    scopes: Sequence[str],
    limits: KeyLimits,
    as_json: bool,
) -> None:
    """Create an API key and print it; only its hash is stored."""
    if not re.fullmatch(NAME, tenant):
        fail(
            f"tenant '{tenant[:63]}' must be of a-z, 0-9, '-' and '_'", "give --tenant another name"
        )
    if not is_name(name):
        fail(f"a name must have 1 to {MOST_NAME} printable characters", "give --name another one")
    try:
        stored_scopes = write_scopes(scopes or DEFAULT_SCOPES)
    except ValueError as exc:
        fail(str(exc), "give --scope a known name, once for each scope")
    config, change = settings(), _change()
    secret, key = _new(config, change.at, expires_days)
    key = replace(key, tenant=tenant, name=name, scopes=stored_scopes, **vars(limits))
    _with_keys(config, lambda keys: keys.add(key, change))
    if tenant not in config.tenants:
        note(f"tenant '{tenant}' has no table [tenants.{tenant}] here: nothing limits it")
    _print_secret(secret, key, as_json=as_json)


def rotate(id_or_key: str, expires_days: float | None, *, keep_hours: float, as_json: bool) -> None:
    """Make a key in place of another, which goes on working for a while; print the new one."""
    public = key_id(id_or_key) or id_or_key
    config, change = settings(), _change()
    secret, key = _new(config, change.at, expires_days)
    keep_until = change.at + timedelta(hours=keep_hours)

    async def run(keys: ApiKeys) -> Key:
        old_key = await keys.get(public)
        new_key = key
        if expires_days is None and old_key and old_key.expires_at:
            # As long as the key it replaces was made for.
            lifetime = old_key.expires_at - old_key.created_at
            new_key = replace(key, expires_at=change.at + lifetime)
        return await keys.rotate(public, new_key, keep_until, change)

    try:
        key = _with_keys(config, run)
    except KeyStateError as exc:
        fail(str(exc), "`fusewire keys list` shows all keys")
    note(f"{public} works until {_time(keep_until)} at the latest")
    _print_secret(secret, key, as_json=as_json)


def show(form: RowFormat) -> None:
    """Print all keys, without the keys themselves."""
    all_keys = _with_keys(settings(), lambda keys: keys.all())
    rows(COLUMNS, [list(_cells(key).values()) for key in all_keys], form)


def revoke(id_or_key: str) -> None:
    """Revoke a key, by its id or by the whole key."""
    public = key_id(id_or_key) or id_or_key
    if not _with_keys(settings(), lambda keys: keys.revoke(public, _change())):
        fail(f"there is no key '{public[:8]}'", "`fusewire keys list` shows their ids")
    note(f"revoked {public}; every ingest refuses it within 5 seconds")


def operator() -> str:
    """Who runs this command, as the audit log names them."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        # In a container the user may have no name.
        name = str(os.getuid())
    return f"operator:{name}"[:80]


def _change() -> Change:
    return Change(operator(), datetime.now(UTC))


def _new(config: Settings, now: datetime, expires_days: float | None) -> tuple[str, Key]:
    """A new key, and its row without tenant and name."""
    secret = make(secrets.token_bytes(RANDOM_BYTES))
    public = key_id(secret)
    assert public is not None
    expires_at = now + timedelta(days=expires_days) if expires_days else None
    return secret, Key(public, "", "", digest(secret, pepper(config)), now, expires_at)


def _print_secret(secret: str, key: Key, *, as_json: bool) -> None:
    note("it is shown this once; only a hash of it is kept")
    print(json.dumps({"key": secret, **_cells(key)}) if as_json else secret)


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds")


def _cells(key: Key) -> dict[str, str | None]:
    values = (getattr(key, column) for column in COLUMNS)
    cells = (_time(value) if isinstance(value, datetime) else value for value in values)
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
