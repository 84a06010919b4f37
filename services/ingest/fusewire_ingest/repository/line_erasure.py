"""Erases one custom_id from the lines of batches and from the files that clients uploaded."""

import json
from typing import Any

from sqlalchemy import exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from fusewire.store.engine import Store
from fusewire.store.tables import batch_lines, batches, file_chunks, files
from fusewire_ingest.repository.erasures import ErasureTarget, add_counts
from fusewire_ingest.repository.files import CHUNK


async def erase_lines(store: Store, erasure_id: str, target: ErasureTarget) -> None:
    """Erase a custom_id from the lines of batches and from their input files.

    A line's bytes are overwritten with an empty object of the same length, so that all other
    lines stay where they are.
    """
    for file_id in await _inputs(store, target):
        await _blank(store, erasure_id, file_id, str(target.custom_id))
    query = (
        select(batch_lines)
        .join(batches, batches.c.batch_id == batch_lines.c.batch_id)
        .where(batches.c.tenant == target.tenant, batch_lines.c.custom_id == target.custom_id)
    )
    if target.batch_id is not None:
        query = query.where(batches.c.batch_id == target.batch_id)
    async with store.write() as connection:
        await _lock_batches(connection, target)
        await _forget_errors(connection, target)
        lines = (await connection.execute(query)).all()
        for line in lines:
            await _forget_line(connection, line, erasure_id)
        await add_counts(connection, erasure_id, {"sql.batch_lines": len(lines)})


async def _lock_batches(connection: AsyncConnection, target: ErasureTarget) -> None:
    """Lock the batches that are changed, as their runner and another erasure do."""
    has_line = exists().where(
        batch_lines.c.batch_id == batches.c.batch_id, batch_lines.c.custom_id == target.custom_id
    )
    query = (
        select(batches.c.batch_id)
        .where(batches.c.tenant == target.tenant, or_(batches.c.errors.is_not(None), has_line))
        .order_by(batches.c.batch_id)
        .with_for_update()
    )
    await connection.execute(query)


async def _inputs(store: Store, target: ErasureTarget) -> list[str]:
    """The uploaded files in which the custom_id may be."""
    query = select(files.c.file_id).where(
        files.c.tenant == target.tenant, files.c.batch_id.is_(None)
    )
    if target.batch_id is not None:
        its_input = select(batches.c.input_file_id).where(
            batches.c.tenant == target.tenant, batches.c.batch_id == target.batch_id
        )
        query = query.where(files.c.file_id.in_(its_input))
    async with store.read() as connection:
        return list((await connection.execute(query)).scalars())


async def _blank(store: Store, erasure_id: str, file_id: str, custom_id: str) -> None:
    spans = await _spans(store, file_id, custom_id)
    async with store.write() as connection:
        for offset, length in spans:
            await _overwrite(connection, file_id, offset, b"{" + b" " * (length - 2) + b"}")
        if spans:
            await add_counts(connection, erasure_id, {"sql.file_lines": len(spans)})


async def _spans(store: Store, file_id: str, custom_id: str) -> list[tuple[int, int]]:
    """Offset and length, in bytes, of the lines of a file that have a custom_id."""
    spans = []
    offset, number, rest = 0, 0, b""
    while (data := await _chunk(store, file_id, number)) is not None:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if _has_custom_id(line, custom_id):
                spans.append((offset, len(line)))
            offset += len(line) + 1
        number += 1
    if _has_custom_id(rest, custom_id):
        spans.append((offset, len(rest)))
    return spans


async def _chunk(store: Store, file_id: str, number: int) -> bytes | None:
    query = select(file_chunks.c.data).where(
        file_chunks.c.file_id == file_id, file_chunks.c.number == number
    )
    async with store.read() as connection:
        return (await connection.execute(query)).scalar()


async def _forget_errors(connection: AsyncConnection, target: ErasureTarget) -> None:
    """Erase the custom_id from the errors of batches whose input was refused."""
    query = select(batches.c.batch_id, batches.c.errors).where(
        batches.c.tenant == target.tenant, batches.c.errors.is_not(None)
    )
    for batch_id, errors in (await connection.execute(query)).all():
        faults = json.loads(errors)
        for fault in faults:
            if str(target.custom_id) in str(fault.get("message")):
                fault["message"] = "erased on request"
        row = update(batches).where(batches.c.batch_id == batch_id)
        await connection.execute(row.values(errors=json.dumps(faults)))


async def _forget_line(connection: AsyncConnection, line: Any, erasure_id: str) -> None:
    """Keep a line's place in its batch, and nothing else of it."""
    error = {"code": "erased", "message": "it was erased on request"}
    values: dict[str, Any] = {
        "custom_id": f"{erasure_id}-{line.line}",
        "warnings": None,
        "fusion_id": None,
        "error": json.dumps(error),
        "is_retryable": False,
    }
    batch = update(batches).where(batches.c.batch_id == line.batch_id)
    if line.state == "held":
        # A batch that is resumed must not submit it any more.
        query = select(batches.c.completed + batches.c.failed).where(
            batches.c.batch_id == line.batch_id
        )
        settled = (await connection.execute(query)).scalar_one() + 1
        values |= {"state": "failed", "settled": settled}
        await connection.execute(batch.values(failed=batches.c.failed + 1))
    row = update(batch_lines).where(
        batch_lines.c.batch_id == line.batch_id, batch_lines.c.line == line.line
    )
    await connection.execute(row.values(values))


def _has_custom_id(line: bytes, custom_id: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("custom_id") == custom_id


async def _overwrite(
    connection: AsyncConnection, file_id: str, offset: int, content: bytes
) -> None:
    """Overwrite bytes of a file, chunk by chunk."""
    while content:
        number, start = divmod(offset, CHUNK)
        piece, content = content[: CHUNK - start], content[CHUNK - start :]
        is_chunk = (file_chunks.c.file_id == file_id, file_chunks.c.number == number)
        # Another erasure may overwrite another line of it.
        query = select(file_chunks.c.data).where(*is_chunk).with_for_update()
        data = (await connection.execute(query)).scalar_one()
        new_data = data[:start] + piece + data[start + len(piece) :]
        await connection.execute(update(file_chunks).where(*is_chunk).values(data=new_data))
        offset += len(piece)
