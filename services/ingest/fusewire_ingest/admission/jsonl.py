"""JSONL: one submission a line, read as it arrives. Pure."""

from collections.abc import AsyncIterator

from fusewire_ingest.admission.refusal import RefusedError

BOM = b"\xef\xbb\xbf"


async def lines(
    chunks: AsyncIterator[bytes], limit: int, most: int | None = None
) -> AsyncIterator[tuple[int, bytes]]:
    """As `located`, without the offsets."""
    async for number, _, line in located(chunks, limit, most):
        yield number, line


async def located(
    chunks: AsyncIterator[bytes], limit: int, most: int | None = None
) -> AsyncIterator[tuple[int, int, bytes]]:
    """Split a byte stream into numbered lines, from 1, each with its offset; blank lines are passed over but counted.

    Args:
        chunks: the stream, cut anywhere.
        limit: a line longer than this is cut to `limit + 1` bytes, so that whoever parses
            it refuses it, and no line can fill the memory.
        most: lines, blank ones too.

    Raises:
        RefusedError: there are more than `most`.
    """
    number, begun, passed = 1, 0, 0
    held = bytearray()
    async for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if most is not None and number > most:
                raise RefusedError(
                    "invalid_request",
                    f"it has more than {most} lines; upload it as a file, for a batch",
                )
            _keep(held, chunk[start:end], limit)
            if line := _whole(held, number):
                yield number, _past_bom(begun, held, number), line
            held.clear()
            number += 1
            start = end + 1
            begun = passed + start
        _keep(held, chunk[start:], limit)
        passed += len(chunk)
    if line := _whole(held, number):
        yield number, _past_bom(begun, held, number), line


def _past_bom(begun: int, held: bytearray, number: int) -> int:
    return begun + len(BOM) if number == 1 and held.startswith(BOM) else begun


def _keep(held: bytearray, part: bytes, limit: int) -> None:
    room = limit + 1 - len(held)
    if room > 0:
        held += part[:room]


def _whole(held: bytearray, number: int) -> bytes:
    line = bytes(held).rstrip(b"\r")
    if number == 1:
        line = line.removeprefix(BOM)
    return line if line.strip() else b""
