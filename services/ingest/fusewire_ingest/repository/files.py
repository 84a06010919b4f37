"""Files in SQL: the inputs of batches, in chunks, and the names of what batches write."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.engine import Store
from fusewire.store.tables import batches, file_chunks, files
from fusewire_ingest.admission.refusal import RefusedError

CHUNK = 256 * 1024
"""Bytes of a chunk; all but a file's last are of this size."""
TORN_AFTER = timedelta(hours=24)
"""How long an upload may take before what has come of it is thrown away."""


@dataclass(frozen=True)
class File:
    """A file. `batch_id` is the batch that wrote it; its lines are rendered from outcomes, not stored here."""

    file_id: str
    tenant: str
    purpose: str
    filename: str
    bytes: int
    created_at: datetime
    batch_id: str | None = None
    expires_at: datetime | None = None


_COLUMNS = [files.c[name] for name in File.__dataclass_fields__]


class Files:
    """The `files` and `file_chunks` tables."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def keep(self, file: File, pieces: AsyncIterator[bytes], limit: int) -> File:
        """Store an upload as it comes; returns it with its size. Until it is whole nobody else sees it.

        Args:
            file: what it is; its size is not known yet.
            pieces: the content, cut anywhere.
            limit: the most bytes.

        Raises:
            RefusedError: it has more, or none. Nothing of it is kept then, or when the client goes away.
            Transient: it could not be stored.
        """
        async with self._store.write() as connection:
            await connection.execute(insert(files), {**vars(file), "is_whole": False})
        try:
            size = await self._chunks(file.file_id, pieces, limit)
            async with self._store.write() as connection:
                whole = (
                    update(files)
                    .where(files.c.file_id == file.file_id)
                    .values(is_whole=True, bytes=size)
                )
                await connection.execute(whole)
        except BaseException:
            await self._forget([file.file_id])
            raise
        return File(**{**vars(file), "bytes": size})

    async def _chunks(self, file_id: str, pieces: AsyncIterator[bytes], limit: int) -> int:
        held, size, number = bytearray(), 0, 0
        async for piece in pieces:
            size += len(piece)
            if size > limit:
                raise RefusedError(
                    "file_too_large",
                    f"it has more than {limit} bytes; split it, or raise limits.file_bytes",
                    "file",
                )
            held += piece
            while len(held) >= CHUNK:
                await self._put(file_id, number, bytes(held[:CHUNK]))
                del held[:CHUNK]
                number += 1
        if not size:
            raise RefusedError("invalid_request", "the file is empty", "file")
        if held:
            await self._put(file_id, number, bytes(held))
        return size

    async def _put(self, file_id: str, number: int, data: bytes) -> None:
        async with self._store.write() as connection:
            await connection.execute(
                insert(file_chunks), {"file_id": file_id, "number": number, "data": data}
            )

    async def _forget(self, file_ids: Sequence[str]) -> None:
        async with self._store.write() as connection:
            for table in (file_chunks, files):
                await connection.execute(delete(table).where(table.c.file_id.in_(file_ids)))

    async def forget_torn(self, now: datetime) -> None:
        """Throw away what is left of uploads whose ingest died."""
        torn = select(files.c.file_id).where(
            files.c.is_whole.is_(False), files.c.created_at < now - TORN_AFTER
        )
        async with self._store.read() as connection:
            found = (await connection.execute(torn)).scalars().all()
        if found:
            await self._forget(found)

    async def get(self, tenant: str, file_id: str, now: datetime) -> File | None:
        """One file of a tenant."""
        query = select(*_COLUMNS).where(files.c.file_id == file_id, *_visible(tenant, now))
        async with self._store.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else File(**row)

    async def listed(
        self,
        tenant: str,
        now: datetime,
        *,
        purpose: str | None,
        after: str | None,
        limit: int,
        is_newest_first: bool,
    ) -> list[File]:
        """A page of a tenant's files, behind the file `after`."""
        query = select(*_COLUMNS).where(*_visible(tenant, now))
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        place = (files.c.created_at, files.c.file_id)
        if after is not None:
            query = query.where(_behind(after, is_newest_first=is_newest_first))
        order = [column.desc() if is_newest_first else column.asc() for column in place]
        async with self._store.read() as connection:
            found = await connection.execute(query.order_by(*order).limit(limit))
            return [File(**row) for row in found.mappings()]

    async def delete(self, tenant: str, file_id: str, now: datetime) -> bool:
        """Remove a file; False if there is none.

        Raises:
            RefusedError: a batch still reads it.
        """
        async with self._store.write() as connection:
            query = (
                select(files.c.file_id)
                .where(files.c.file_id == file_id, *_visible(tenant, now))
                .with_for_update()
            )
            if (await connection.execute(query)).first() is None:
                return False
            reading = (
                select(batches.c.batch_id)
                .where(
                    batches.c.input_file_id == file_id,
                    # A cancelled batch may be resumed, and then reads on.
                    batches.c.status.in_(
                        ("validating", "in_progress", "finalizing", "cancelling", "cancelled")
                    ),
                )
                .limit(1)
            )
            if batch := (await connection.execute(reading)).scalar():
                raise RefusedError(
                    "file_in_use",
                    f"batch '{batch}' reads it; delete it when that is over",
                    "file_id",
                )
            for table in (file_chunks, files):
                await connection.execute(delete(table).where(table.c.file_id == file_id))
        return True

    async def content(self, file: File) -> AsyncIterator[bytes]:
        """The bytes of an uploaded file, a chunk at a time."""
        for number in range(-(-file.bytes // CHUNK)):
            async with self._store.read() as connection:
                found = await self._chunks_in(connection, file.file_id, [number])
            yield found[number]

    async def cut_in(
        self, connection: AsyncConnection, file_id: str, spans: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """Pieces of a file, each an offset and a length in bytes, within a transaction of the caller's."""
        wanted = {
            n
            for start, size in spans
            for n in range(start // CHUNK, (start + size - 1) // CHUNK + 1)
        }
        have = await self._chunks_in(connection, file_id, sorted(wanted))
        cut = []
        for start, size in spans:
            first, last = start // CHUNK, (start + size - 1) // CHUNK
            whole = b"".join(have[number] for number in range(first, last + 1))
            cut.append(whole[start - first * CHUNK : start - first * CHUNK + size])
        return cut

    @staticmethod
    async def _chunks_in(
        connection: AsyncConnection, file_id: str, numbers: Sequence[int]
    ) -> dict[int, bytes]:
        query = select(file_chunks.c.number, file_chunks.c.data).where(
            file_chunks.c.file_id == file_id, file_chunks.c.number.in_(numbers)
        )
        return {row.number: row.data for row in await connection.execute(query)}


def _visible(tenant: str, now: datetime) -> list[ColumnElement[bool]]:
    fresh = or_(files.c.expires_at.is_(None), files.c.expires_at > now)
    return [files.c.tenant == tenant, files.c.is_whole.is_(True), fresh]


def _behind(after: str, *, is_newest_first: bool) -> ColumnElement[bool]:
    since = select(files.c.created_at).where(files.c.file_id == after).scalar_subquery()
    if is_newest_first:
        return or_(
            files.c.created_at < since, (files.c.created_at == since) & (files.c.file_id < after)
        )
    return or_(
        files.c.created_at > since, (files.c.created_at == since) & (files.c.file_id > after)
    )
