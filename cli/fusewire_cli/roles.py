"""`fusewire db analyst`: the PostgreSQL role that `fusewire query` runs as."""

import asyncio
import os
import re
import secrets
from pathlib import Path

from sqlalchemy import make_url

from fusewire.settings import Database
from fusewire.store.analyst import role
from fusewire.store.engine import Store
from fusewire_cli.screen import fail, note
from fusewire_cli.session import settings

PASSWORD_BYTES = 24
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def analyst(name: str, password_file: Path | None, *, reset: bool) -> None:
    """Create or update the role; print its address, with the password, when that is new."""
    if not _NAME.fullmatch(name):
        fail(
            f"'{name}' cannot be the name of a role", "use a-z, 0-9 and _, and begin with a letter"
        )
    database = settings().database
    given_password = _read(password_file) if password_file else None
    password = given_password or secrets.token_urlsafe(PASSWORD_BYTES)
    change = asyncio.run(
        _grant(database, name, password, is_reset=reset or given_password is not None)
    )
    what = "created" if change.is_new else "up to date"
    note(f"role {name}: {what}; it may read the views, and nothing else")
    if not change.has_new_password:
        note("  its password is as it was; --new-password makes another one")
        return
    print(_address(database, name, None if given_password else password))
    note("  set this address as [database] analyst_url, or as FUSEWIRE_DATABASE__ANALYST_URL")
    note(
        "  with the password of your file in place of PASSWORD"
        if given_password
        else "  it holds the password, which is not shown again"
    )


def _read(path: Path) -> str:
    try:
        password = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        fail(f"{path} cannot be read: {exc}", "give a file with a password of ASCII characters")
    if len(password) < 12 or not password.isprintable():
        fail(f"{path} holds no password of 12 characters or more", "use a longer one")
    return password


def _address(database: Database, name: str, password: str | None) -> str:
    url = make_url(database.url).set(username=name, password=password or "PASSWORD")
    return url.render_as_string(hide_password=False)


async def _grant(
    database: Database, name: str, password: str, *, is_reset: bool
) -> role.RoleChange:
    store = Store(database)
    try:
        if store.is_sqlite:
            fail(
                "SQLite has no roles",
                "nothing to do: `fusewire query` opens the file read-only, and reads views alone",
            )
        await store.ping()
        verifier = role.scram_verifier(password, os.urandom(16))
        return await role.grant(store, name, verifier, is_reset=is_reset)
    finally:
        await store.close()
