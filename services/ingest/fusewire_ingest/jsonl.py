"""JSONL: one submission a line, read as it arrives. Pure."""

from collections.abc import AsyncIterator

from fusewire_ingest.refusal import RefusedError


async def lines(chunks: AsyncIterator[bytes], limit: int, most: int | None = None) -> AsyncIterator[tuple[int, bytes]]:
    """Split a byte stream into numbered lines, from 1; blank lines are passed over but counted.

    Args:
        chunks: the stream, cut anywhere.
        limit: a line longer than this is cut to `limit + 1` bytes, so that whoever parses
            it refuses it, and no line can fill the memory.
        most: lines, blank ones too.

    Raises:
        RefusedError: there are more than `most`.
    """
    number = 1
    held = bytearray()
    async for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if most is not None and number > most:
                raise RefusedError(
                    "invalid_request", f"it has more than {most} lines; upload it as a file, for a batch"
                )
            _keep(held, chunk[start:end], limit)
            if line := _whole(held, number):
                yield number, line
            held.clear()
            number += 1
            start = end + 1
        _keep(held, chunk[start:], limit)
    if line := _whole(held, number):
        yield number, line


def _keep(held: bytearray, part: bytes, limit: int) -> None:
    room = limit + 1 - len(held)
    if room > 0:
        held += part[:room]


def _whole(held: bytearray, number: int) -> bytes:
    line = bytes(held).rstrip(b"\r")
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    return line if line.strip() else b""
