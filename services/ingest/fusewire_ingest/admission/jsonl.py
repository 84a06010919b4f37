"""JSONL: one submission a line, read as it arrives. Pure."""

from collections.abc import AsyncIterator

from fusewire_ingest.admission.refusal import RefusedError

BOM = b"\xef\xbb\xbf"


async def lines(
    chunks: AsyncIterator[bytes], limit: int, most: int | None = None
) -> AsyncIterator[tuple[int, bytes]]:
    """As `located_lines`, without the offsets."""
    async for number, _, line in located_lines(chunks, limit, most):
        yield number, line


async def located_lines(
    chunks: AsyncIterator[bytes], limit: int, most: int | None = None
) -> AsyncIterator[tuple[int, int, bytes]]:
    """Split a byte stream into lines. Yields number (from 1), offset in bytes, and line.

    Blank lines are counted, and not yielded.

    Args:
        chunks: the stream, cut anywhere.
        limit: a line longer than this is cut to `limit + 1` bytes, so that the parser
            refuses it, and no line can fill the memory. More than two carriage returns at its
            end count.
        most: the most lines, blank ones included.

    Raises:
        RefusedError: there are more than `most`.
    """
    number = 1
    line_offset = 0
    chunk_offset = 0
    buffer = bytearray()
    async for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            _check_count(number, most)
            _append(buffer, chunk[start:end], limit)
            if line := _strip(buffer, number, limit):
                yield number, _skip_bom(line_offset, buffer, number), line
            buffer.clear()
            number += 1
            start = end + 1
            line_offset = chunk_offset + start
        _append(buffer, chunk[start:], limit)
        chunk_offset += len(chunk)
    if line := _strip(buffer, number, limit):
        yield number, _skip_bom(line_offset, buffer, number), line


def _check_count(number: int, most: int | None) -> None:
    if most is not None and number > most:
        raise RefusedError(
            "invalid_request", f"it has more than {most} lines; upload it as a file, for a batch"
        )


def _skip_bom(offset: int, buffer: bytearray, number: int) -> int:
    if number == 1 and buffer.startswith(BOM):
        return offset + len(BOM)
    return offset


def _append(buffer: bytearray, part: bytes, limit: int) -> None:
    room = _most_kept(limit) - len(buffer)
    if room > 0:
        buffer += part[:room]


def _most_kept(limit: int) -> int:
    return limit + 1 + len(BOM)


def _strip(buffer: bytearray, number: int, limit: int) -> bytes:
    """Return the line without byte order mark and carriage return; empty if it is blank."""
    line = bytes(buffer)
    if number == 1:
        line = line.removeprefix(BOM)
    if len(buffer) >= _most_kept(limit):
        # Whatever follows is unknown: a cut line is neither blank nor one that fits.
        return line[: limit + 1]
    line = line.rstrip(b"\r")
    return line[: limit + 1] if line.strip() else b""
