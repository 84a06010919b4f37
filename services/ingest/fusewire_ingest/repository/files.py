"""Files in SQL: inputs of batches, in chunks, and the metadata of the files that batches write."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import ColumnElement, Connection, delete, insert, or_, select, update

from fusewire.store.engine import Store
from fusewire.store.tables import batches, file_chunks, files
from fusewire_ingest.admission.refusal import RefusedError

CHUNK = 256 * 1024
"""Bytes of a chunk; only a file's last chunk may be smaller (docs/decisions/0021)."""
TORN_AFTER = timedelta(hours=24)
"""An upload that has not ended after so long is deleted."""
READING_STATUSES = ("validating", "in_progress", "finalizing", "cancelling", "cancelled")
"""Statuses of batches that may still read their input: a cancelled batch may be resumed."""


@dataclass(frozen=True)
class File:
    """A file.

    `batch_id` is the batch that wrote it, if any: its lines are rendered from outcomes when it is
    read, and not stored here.
    """

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
        """Store an upload while it arrives; returns it with its size.

        It is invisible until it is whole, and deleted if it fails or if the client disconnects.

        Args:
            file: its metadata; the size is not known yet.
            pieces: the content, in pieces of any length.
            limit: the most bytes.

        Raises:
            RefusedError: it has more bytes, or none.
            Transient: it could not be stored.
        """
        async with self._store.write() as connection:
            await connection.execute(insert(files), {**vars(file), "is_whole": False})
        try:
            size = await self._add_chunks(file.file_id, pieces, limit)
            async with self._store.write() as connection:
                completion = (
                    update(files)
                    .where(files.c.file_id == file.file_id)
                    .values(is_whole=True, bytes=size)
                )
                await connection.execute(completion)
        except BaseException:
            await self._delete_all([file.file_id])
            raise
        return File(**{**vars(file), "bytes": size})

    async def _add_chunks(self, file_id: str, pieces: AsyncIterator[bytes], limit: int) -> int:
        """Store the content in chunks; returns its size."""
        buffer, size, number = bytearray(), 0, 0
        async for piece in pieces:
            size += len(piece)
            if size > limit:
                raise RefusedError(
                    "file_too_large",
                    f"it has more than {limit} bytes; split it, or raise limits.file_bytes",
                    "file",
                )
            buffer += piece
            while len(buffer) >= CHUNK:
                await self._add_chunk(file_id, number, bytes(buffer[:CHUNK]))
                del buffer[:CHUNK]
                number += 1
        if not size:
            raise RefusedError("invalid_request", "the file is empty", "file")
        if buffer:
            await self._add_chunk(file_id, number, bytes(buffer))
        return size

    async def _add_chunk(self, file_id: str, number: int, data: bytes) -> None:
        async with self._store.write() as connection:
            await connection.execute(
                insert(file_chunks), {"file_id": file_id, "number": number, "data": data}
            )

    async def _delete_all(self, file_ids: Sequence[str]) -> None:
        async with self._store.write() as connection:
            for table in (file_chunks, files):
                await connection.execute(delete(table).where(table.c.file_id.in_(file_ids)))

    async def forget_torn(self, now: datetime) -> None:
        """Delete incomplete uploads of processes that have crashed."""
        query = select(files.c.file_id).where(
            files.c.is_whole.is_(False), files.c.created_at < now - TORN_AFTER
        )
        async with self._store.read() as connection:
            torn_ids = (await connection.execute(query)).scalars().all()
        if torn_ids:
            await self._delete_all(torn_ids)

    async def get(self, tenant: str, file_id: str, now: datetime) -> File | None:
        """Read the metadata of a tenant's file; None if there is none, or if it has expired."""
        query = select(*_COLUMNS).where(files.c.file_id == file_id, *_visible(tenant, now))
        async with self._store.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else File(**row)

    async def page(
        self,
        tenant: str,
        now: datetime,
        *,
        purpose: str | None,
        after: str | None,
        limit: int,
        is_newest_first: bool,
    ) -> list[File]:
        """List a tenant's files by the time of their creation, those after the file `after`."""
        query = select(*_COLUMNS).where(*_visible(tenant, now))
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            query = query.where(_is_after(tenant, after, is_newest_first=is_newest_first))
        sort_columns = (files.c.created_at, files.c.file_id)
        order = [column.desc() if is_newest_first else column.asc() for column in sort_columns]
        async with self._store.read() as connection:
            rows = await connection.execute(query.order_by(*order).limit(limit))
            return [File(**row) for row in rows.mappings()]

    async def delete(self, tenant: str, file_id: str, now: datetime) -> bool:
        """Delete a file; False if there is none.

        Raises:
            RefusedError: a batch may still read it.
        """
        async with self._store.write() as connection:
            query = (
                select(files.c.file_id)
                .where(files.c.file_id == file_id, *_visible(tenant, now))
                .with_for_update()
            )
            if (await connection.execute(query)).first() is None:
                return False
            reader_query = (
                select(batches.c.batch_id)
                .where(batches.c.input_file_id == file_id, batches.c.status.in_(READING_STATUSES))
                .limit(1)
            )
            if batch_id := (await connection.execute(reader_query)).scalar():
                raise RefusedError(
                    "file_in_use",
                    f"batch '{batch_id}' reads it; delete it when that is over",
                    "file_id",
                )
            for table in (file_chunks, files):
                await connection.execute(delete(table).where(table.c.file_id == file_id))
        return True

    async def content(self, file: File) -> AsyncIterator[bytes]:
        """Read an uploaded file, a chunk at a time."""
        n_chunks = -(-file.bytes // CHUNK)
        for number in range(n_chunks):
            chunks = await self._store.run(
                partial(_chunks_in, file_id=file.file_id, numbers=[number]), write=False
            )
            yield chunks[number]

    def cut_in(
        self, connection: Connection, file_id: str, spans: Sequence[tuple[int, int]]
    ) -> list[bytes]:
        """Read pieces of a file within a transaction of the caller.

        Args:
            connection: the connection of the transaction.
            file_id: the file.
            spans: offset and length of each piece, in bytes.
        """
        numbers: set[int] = set()
        for offset, length in spans:
            numbers.update(_chunk_numbers(offset, length))
        chunks = _chunks_in(connection, file_id, sorted(numbers))
        pieces = []
        for offset, length in spans:
            span_numbers = _chunk_numbers(offset, length)
            joined_chunks = b"".join(chunks[number] for number in span_numbers)
            start = offset - span_numbers.start * CHUNK
            pieces.append(joined_chunks[start : start + length])
        return pieces


def _chunks_in(connection: Connection, file_id: str, numbers: Sequence[int]) -> dict[int, bytes]:
    query = select(file_chunks.c.number, file_chunks.c.data).where(
        file_chunks.c.file_id == file_id, file_chunks.c.number.in_(numbers)
    )
    return {row.number: row.data for row in connection.execute(query)}


def _chunk_numbers(offset: int, length: int) -> range:
    """The chunks in which a span of bytes lies."""
    return range(offset // CHUNK, (offset + length - 1) // CHUNK + 1)


def _visible(tenant: str, now: datetime) -> list[ColumnElement[bool]]:
    """Conditions for a tenant's files that are whole and have not expired."""
    is_fresh = or_(files.c.expires_at.is_(None), files.c.expires_at > now)
    return [files.c.tenant == tenant, files.c.is_whole.is_(True), is_fresh]


def _is_after(tenant: str, file_id: str, *, is_newest_first: bool) -> ColumnElement[bool]:
    """Condition for files after another of the tenant in the order of creation; ids break ties."""
    created_at = (
        select(files.c.created_at)
        .where(files.c.file_id == file_id, files.c.tenant == tenant)
        .scalar_subquery()
    )
    is_same_time = files.c.created_at == created_at
    if is_newest_first:
        return or_(files.c.created_at < created_at, is_same_time & (files.c.file_id < file_id))
    return or_(files.c.created_at > created_at, is_same_time & (files.c.file_id > file_id))
