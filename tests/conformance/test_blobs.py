"""The object store: pieces that are lost or damaged are noticed before anybody has the whole."""

import random

import pytest

from fusewire.blobs import CHUNK, BlobDamagedError, BlobMissingError, Blobs
from fusewire.bus import Bus
from fusewire.testing.large_parts import damage, read


@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 1, 3 * CHUNK])
async def test_what_was_put_is_read(blobs: Blobs, size: int) -> None:
    await blobs.put("other", b"x" * CHUNK)
    data = random.Random(1).randbytes(size)
    await blobs.put("one", data)

    assert await read(blobs, "one") == data
    assert (await blobs.find("one")).size == size


async def test_one_that_was_never_put_or_was_erased_is_missing(blobs: Blobs) -> None:
    await blobs.put("one", b"x")
    await blobs.delete("one")
    await blobs.delete("one")

    for name in ("one", "other"):
        assert not await blobs.has(name)
        with pytest.raises(BlobMissingError):
            await blobs.find(name)


async def test_a_lost_piece_is_noticed(blobs: Blobs, bus: Bus) -> None:
    await blobs.put("one", random.Random(1).randbytes(3 * CHUNK))
    await damage(bus, 2, None)

    with pytest.raises(BlobMissingError):
        await read(blobs, "one")


@pytest.mark.parametrize("other", [b"y" * 1000, b"x" * 999 + b"y", b"x" * 1001])
async def test_of_other_bytes_the_last_piece_never_comes(
    blobs: Blobs, bus: Bus, other: bytes
) -> None:
    await blobs.put("one", b"x" * 1000)
    await damage(bus, 1, other)

    with pytest.raises(BlobDamagedError):
        await read(blobs, "one")
