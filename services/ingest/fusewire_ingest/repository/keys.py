"""API keys in SQL. A key itself is never stored."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import bindparam, exists, insert, select, update

from fusewire.store.engine import Store
from fusewire.store.tables import api_keys

_ONE = select(api_keys).where(api_keys.c.key_id == bindparam("id"))
_ANY = select(exists().where(api_keys.c.revoked_at.is_(None)))


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
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    prompts_in_flight: int | None = None

    def is_valid(self, at: datetime) -> bool:
        """Whether it is neither revoked nor expired at a time."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)


class ApiKeys:
    """The `api_keys` table. Every method raises Transient when the database does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, key: Key) -> None:
        """Store a new key."""
        async with self._store.write() as connection:
            await connection.execute(insert(api_keys).values(**vars(key)))

    async def get(self, key_id: str) -> Key | None:
        """Read a key, valid or not; None if there is none of that id."""
        async with self._store.read() as connection:
            row = (await connection.execute(_ONE, {"id": key_id})).mappings().one_or_none()
        return Key(**row) if row else None

    async def all(self) -> list[Key]:
        """List all keys, the oldest first."""
        query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.key_id)
        async with self._store.read() as connection:
            return [Key(**row) for row in (await connection.execute(query)).mappings()]

    async def is_empty(self) -> bool:
        """Whether there is no key that is not revoked."""
        async with self._store.read() as connection:
            return not (await connection.execute(_ANY)).scalar()

    async def revoke(self, key_id: str, at: datetime) -> bool:
        """Revoke a key for ever; returns whether there is such a key.

        A key that was revoked before keeps the time of its first revocation.
        """
        statement = (
            update(api_keys)
            .where(api_keys.c.key_id == key_id)
            .values(revoked_at=bindparam("at", type_=api_keys.c.revoked_at.type))
            .where(api_keys.c.revoked_at.is_(None))
        )
        async with self._store.write() as connection:
            if (await connection.execute(statement, {"at": at})).rowcount:
                return True
            return (await connection.execute(_ONE, {"id": key_id})).one_or_none() is not None
