"""Large images and texts in SQL: what the broker's copy is made of, and made of again where that was lost."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, exists, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fusewire import references
from fusewire.contracts import Prompt
from fusewire.store.engine import Store
from fusewire.store.tables import fusions, image_uses, images

_ADD = {
    "sqlite": sqlite.insert(images).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(images).on_conflict_do_nothing(),
}
_IN_USE = exists().where(
    image_uses.c.image == images.c.name,
    fusions.c.fusion_id == image_uses.c.fusion_id,
    fusions.c.is_done.is_(False),
)


class Images:
    """The tables `images` and `image_uses`, which hold texts too.

    Args:
        store: the database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, tenant: str, found: Mapping[str, str], at: datetime) -> None:
        """Keep images by their names; one that is there already was used again. Raises Transient."""
        async with self._store.write() as connection:
            # One by one, in one order: they are large, and two that store the same must not wait for each other.
            for name in sorted(found):
                touched = update(images).where(images.c.name == name).values(used_at=at)
                if (await connection.execute(touched)).rowcount:
                    continue
                row = {"name": name, "tenant": tenant, "data": found[name].encode(), "used_at": at}
                await connection.execute(_ADD[connection.dialect.name], row)

    async def get(self, tenant: str, name: str) -> bytes | None:
        """One image of a tenant's; None where it has expired."""
        wanted = select(images.c.data).where(images.c.name == name, images.c.tenant == tenant)
        async with self._store.read() as connection:
            data = (await connection.execute(wanted)).scalar()
        return None if data is None else bytes(data)

    async def mark_published(self, tenant: str, name: str, at: datetime) -> bool:
        """The broker is given an image of a tenant's; False where it has expired."""
        mark = (
            update(images)
            .where(images.c.name == name, images.c.tenant == tenant)
            .values(published_at=at)
        )
        async with self._store.write() as connection:
            return bool((await connection.execute(mark)).rowcount)

    async def withdraw_one(
        self, before: datetime, from_broker: Callable[[str], Awaitable[None]]
    ) -> bool:
        """Take one image back from the broker that no fusion waits for, and that was last used before a time.

        Returns:
            Whether there was one.
        """
        wanted = (
            select(images.c.name)
            .where(images.c.published_at.is_not(None), images.c.used_at < before, ~_IN_USE)
            .limit(1)
        )
        async with self._store.read() as connection:
            name = (await connection.execute(wanted)).scalar()
        if name is None:
            return False
        mine = (
            update(images)
            .where(images.c.name == name, images.c.used_at < before)
            .values(published_at=None)
        )
        async with self._store.write() as connection:
            if (await connection.execute(mine)).rowcount:
                # Within the transaction: who uses it again meanwhile waits here, and then publishes it again.
                await from_broker(name)
        return True

    async def remove(self, tenant: str, names: Iterable[str]) -> int:
        """Erase images of a tenant's; returns how many there were."""
        keys = sorted(names)
        async with self._store.write() as connection:
            await connection.execute(delete(image_uses).where(image_uses.c.image.in_(keys)))
            gone = delete(images).where(images.c.tenant == tenant, images.c.name.in_(keys))
            return (await connection.execute(gone)).rowcount

    async def forget(self, before: datetime) -> int:
        """Erase what was last used before a time and no fusion waits for; returns how many."""
        async with self._store.write() as connection:
            gone = delete(images).where(images.c.used_at < before, ~_IN_USE)
            count = (await connection.execute(gone)).rowcount
            if count:
                orphans = ~exists().where(images.c.name == image_uses.c.image)
                await connection.execute(delete(image_uses).where(orphans))
            return count


def add_uses_in(connection: Connection, prompts: Sequence[Prompt]) -> None:
    """Write down which images and texts new prompts refer to, within a transaction of the caller's."""
    rows = [
        {"image": name, "fusion_id": p.fusion_id}
        for p in prompts
        for name in references.names(p.messages)
    ]
    if rows:
        connection.execute(insert(image_uses), rows)
