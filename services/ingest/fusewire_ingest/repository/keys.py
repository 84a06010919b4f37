"""API keys in SQL. A key itself is never stored; every change has a row in the audit log."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, exists, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.audit import Action, insert_action
from fusewire.store.engine import Store
from fusewire.store.tables import api_keys

_ONE = select(api_keys).where(api_keys.c.key_id == bindparam("id"))
_ANY = select(exists().where(api_keys.c.revoked_at.is_(None)))
_REPLACEMENT = select(api_keys.c.key_id).where(api_keys.c.replaces == bindparam("id"))
_SAME_IN_A_ROTATION = (
    "tenant",
    "name",
    "scopes",
    "requests_per_minute",
    "tokens_per_minute",
    "prompts_in_flight",
)


@dataclass(frozen=True)
class Key:
    """A row of `api_keys`; `hash` is the digest of the key (`admission.keys.digest`)."""

    key_id: str
    tenant: str
    name: str
    hash: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    scopes: str = "submit read batch"
    """What it may be used for, names with spaces between them."""
    last_used_at: datetime | None = None
    replaces: str | None = None
    """The id of the key that it was made in place of."""
    first_key_id: str | None = None
    """The id of the first of the keys that were made in place of each other; None if it is the
    first itself."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    prompts_in_flight: int | None = None

    @property
    def account(self) -> str:
        """The account of its budgets, which go on when it is rotated."""
        return f"key:{self.first_key_id or self.key_id}"

    def is_valid(self, at: datetime) -> bool:
        """Whether it is neither revoked nor expired at a time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


@dataclass(frozen=True)
class Change:
    """Who changes keys, and when.

    Attributes:
        actor: as in `fusewire.store.audit.Action`.
        at: the time.
    """

    actor: str
    at: datetime

    def action(self, name: str, key: Key, detail: Mapping[str, Any] | None = None) -> Action:
        """The action on a key, for the audit log."""
        return Action(self.at, self.actor, f"key.{name}", key.tenant, key.key_id, detail=detail)


class KeyStateError(Exception):
    """A key of which this cannot be done, as it is revoked, expired, replaced or absent."""


class ApiKeys:
    """The `api_keys` table. Every method raises Transient when the database does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, key: Key, change: Change) -> None:
        """Store a new key."""
        async with self._store.write() as connection:
            await insert_key(connection, key, change)

    async def get(self, key_id: str) -> Key | None:
        """Read a key, valid or not; None if there is none of that id."""
        async with self._store.read() as connection:
            return await find_key(connection, key_id)

    async def all(self) -> list[Key]:
        """List all keys, the oldest first."""
        query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id)
        async with self._store.read() as connection:
            return [Key(**row) for row in (await connection.execute(query)).mappings()]

    async def is_empty(self) -> bool:
        """Whether there is no key that is not revoked."""
        async with self._store.read() as connection:
            return not (await connection.execute(_ANY)).scalar()

    async def rotate(self, key_id: str, new_key: Key, keep_until: datetime, change: Change) -> Key:
        """Store a key in place of another, which expires at `keep_until` unless it does earlier.

        Args:
            key_id: the key to replace.
            new_key: has its id, hash and times. All else it has from the key that it replaces.
            keep_until: when the replaced key expires at the latest.
            change: who does it.

        Returns:
            The new key, as it is stored.

        Raises:
            KeyStateError: the key does not exist, is no longer valid, or was replaced already.
        """
        async with self._store.write() as connection:
            old_key = await find_key(connection, key_id, for_update=True)
            if old_key is None:
                raise KeyStateError(f"there is no key '{key_id[:16]}'")
            if not old_key.is_valid(change.at):
                raise KeyStateError(f"key '{key_id}' is revoked or expired; create another")
            replacement = (await connection.execute(_REPLACEMENT, {"id": key_id})).scalar()
            if replacement is not None:
                raise KeyStateError(f"key '{key_id}' was replaced by '{replacement}'; rotate that")
            same = {name: getattr(old_key, name) for name in _SAME_IN_A_ROTATION}
            first_key_id = old_key.first_key_id or key_id
            new_key = replace(new_key, **same, replaces=key_id, first_key_id=first_key_id)
            await _insert(connection, new_key)
            expires_at = min(keep_until, old_key.expires_at or keep_until)
            await set_key(connection, key_id, expires_at=expires_at)
            detail = {"replaced_by": new_key.key_id, "expires_at": expires_at.isoformat()}
            await connection.execute(insert_action(change.action("rotated", old_key, detail)))
            return new_key

    async def revoke(self, key_id: str, change: Change, tenant: str | None = None) -> bool:
        """Revoke a key for ever; returns whether there is such a key, and of that tenant.

        A key that was revoked before keeps the time of its first revocation.
        """
        async with self._store.write() as connection:
            key = await find_key(connection, key_id, for_update=True)
            if key is None or tenant not in (None, key.tenant):
                return False
            if key.revoked_at is None:
                await set_key(connection, key_id, revoked_at=change.at)
                await connection.execute(insert_action(change.action("revoked", key)))
            return True

    async def note_use(
        self, key_ids: Collection[str], at: datetime, *, unless_since: datetime
    ) -> None:
        """Note that keys were used at a time, but for those with a use since `unless_since`."""
        rows = (
            select(api_keys.c.key_id)
            .where(
                api_keys.c.key_id.in_(sorted(key_ids)),
                or_(
                    api_keys.c.last_used_at.is_(None),
                    api_keys.c.last_used_at < bindparam("since", unless_since),
                ),
            )
            # What is locked is noted by another replica, which this one must not wait for.
            .with_for_update(skip_locked=True)
        )
        statement = (
            update(api_keys)
            .where(api_keys.c.key_id.in_(rows))
            .values(last_used_at=bindparam("at", at, type_=api_keys.c.last_used_at.type))
        )
        async with self._store.write() as connection:
            await connection.execute(statement)


async def find_key(
    connection: AsyncConnection, key_id: str, *, for_update: bool = False
) -> Key | None:
    """Read a key, valid or not, and lock its row if it is to be changed."""
    query = _ONE.with_for_update() if for_update else _ONE
    row = (await connection.execute(query, {"id": key_id})).mappings().one_or_none()
    return Key(**row) if row else None


async def insert_key(
    connection: AsyncConnection, key: Key, change: Change, detail: Mapping[str, Any] | None = None
) -> None:
    """Store a new key, and enter it in the audit log with further details."""
    await _insert(connection, key)
    details = _detail(key) | dict(detail or {})
    await connection.execute(insert_action(change.action("created", key, details)))


async def set_key(connection: AsyncConnection, key_id: str, **values: Any) -> None:
    """Set columns of a key."""
    await connection.execute(update(api_keys).where(api_keys.c.key_id == key_id).values(**values))


async def _insert(connection: AsyncConnection, key: Key) -> None:
    await connection.execute(insert(api_keys).values(**vars(key)))


def _detail(key: Key) -> dict[str, Any]:
    """What the audit log tells of a new key."""
    fields = {
        "name": key.name,
        "scopes": key.scopes,
        "expires_at": key.expires_at and key.expires_at.isoformat(),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "prompts_in_flight": key.prompts_in_flight,
    }
    return {name: value for name, value in fields.items() if value is not None}
