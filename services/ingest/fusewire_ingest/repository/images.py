"""Large images and texts in SQL; the broker's copies are made from them, again if lost."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, exists, func, insert, select, update
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
    """The tables `images` and `image_uses`; their rows may be texts, too.

    Args:
        store: the database.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, tenant: str, parts: Mapping[str, str], at: datetime) -> None:
        """Store images and texts by name, or note that those stored already are used again.

        Raises Transient.
        """
        async with self._store.write() as connection:
            # One by one, since they are large; sorted, so that two transactions with the same
            # images do not deadlock.
            for name in sorted(parts):
                touch = update(images).where(images.c.name == name).values(used_at=at)
                if (await connection.execute(touch)).rowcount:
                    continue
                row = {"name": name, "tenant": tenant, "data": parts[name].encode(), "used_at": at}
                await connection.execute(_ADD[connection.dialect.name], row)

    async def get(self, tenant: str, name: str) -> bytes | None:
        """Read an image of a tenant; None if it has expired."""
        query = select(images.c.data).where(images.c.name == name, images.c.tenant == tenant)
        async with self._store.read() as connection:
            data = (await connection.execute(query)).scalar()
        return None if data is None else bytes(data)

    async def sizes(self, tenant: str, names: Iterable[str]) -> dict[str, int]:
        """Bytes of these parts of a tenant as they are stored, without those that have expired."""
        query = select(images.c.name, func.length(images.c.data).label("size")).where(
            images.c.name.in_(sorted(names)), images.c.tenant == tenant
        )
        async with self._store.read() as connection:
            return {row.name: row.size for row in await connection.execute(query)}

    async def mark_published(self, tenant: str, name: str, at: datetime) -> bool:
        """Note that the broker has an image of a tenant; False if it has expired."""
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
        """Take back from the broker one image that no fusion waits for.

        Args:
            before: only an image that was last used before this time.
            from_broker: deletes the broker's copy, by name.

        Returns:
            Whether there was one.
        """
        query = (
            select(images.c.name)
            .where(images.c.published_at.is_not(None), images.c.used_at < before, ~_IN_USE)
            .limit(1)
        )
        async with self._store.read() as connection:
            name = (await connection.execute(query)).scalar()
        if name is None:
            return False
        unmark = (
            update(images)
            .where(images.c.name == name, images.c.used_at < before)
            .values(published_at=None)
        )
        async with self._store.write() as connection:
            if (await connection.execute(unmark)).rowcount:
                # Within the transaction: a prompt that uses it again meanwhile waits for the row,
                # and then publishes the image again (docs/decisions/0040).
                await from_broker(name)
        return True

    async def remove(self, tenant: str, names: Iterable[str]) -> int:
        """Erase images of a tenant; returns how many there were."""
        keys = sorted(names)
        async with self._store.write() as connection:
            await connection.execute(delete(image_uses).where(image_uses.c.image.in_(keys)))
            deletion = delete(images).where(images.c.tenant == tenant, images.c.name.in_(keys))
            return (await connection.execute(deletion)).rowcount

    async def forget(self, before: datetime) -> int:
        """Erase images last used before a time that no fusion waits for; returns how many."""
        async with self._store.write() as connection:
            deletion = delete(images).where(images.c.used_at < before, ~_IN_USE)
            count = (await connection.execute(deletion)).rowcount
            if count:
                is_orphan = ~exists().where(images.c.name == image_uses.c.image)
                await connection.execute(delete(image_uses).where(is_orphan))
            return count


def add_uses_in(connection: Connection, prompts: Sequence[Prompt]) -> None:
    """Store which images and texts new prompts refer to, within a transaction of the caller."""
    rows: list[dict[str, str]] = []
    for prompt in prompts:
        names = references.names(prompt.messages)
        rows += [{"image": name, "fusion_id": prompt.fusion_id} for name in names]
    if rows:
        connection.execute(insert(image_uses), rows)
