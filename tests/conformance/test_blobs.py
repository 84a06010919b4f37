"""The object store: pieces that are lost or damaged are noticed before anybody has the whole."""

import random
from typing import Any

import pytest

from fusewire.blobs import CHUNK, BlobDamagedError, BlobMissingError, Blobs, pieces_subject
from fusewire.bus import Bus
from fusewire.errors import Transient
from fusewire.testing.large_parts import damage, read
from fusewire.topology import BLOB_STORE


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


async def test_what_a_put_that_failed_has_left_is_replaced(blobs: Blobs, bus: Bus) -> None:
    subject = pieces_subject(BLOB_STORE, "one")
    await bus.js.publish(subject, b"y" * 10)

    await blobs.put("one", b"x" * 20)

    assert await read(blobs, "one") == b"x" * 20
    (pieces,) = (await pieces_of(bus)).values()
    assert pieces == 1


async def test_a_piece_that_arrives_late_is_in_no_object(
    blobs: Blobs, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece of an attempt that was given up arrives when the next one has begun."""
    subject = pieces_subject(BLOB_STORE, "one")
    purge = bus.js.purge_stream

    async def purge_and_receive(stream: str, **options: Any) -> None:
        await purge(stream, **options)
        await bus.js.publish(subject, b"y" * 10)

    with monkeypatch.context() as patch:
        patch.setattr(blobs._js, "purge_stream", purge_and_receive)
        with pytest.raises(Transient):
            await blobs.put("one", b"x" * 20)
    assert not await blobs.has("one")
    await blobs.put("one", b"x" * 20)
    assert await read(blobs, "one") == b"x" * 20


async def test_what_a_put_that_failed_has_left_is_deleted(blobs: Blobs, bus: Bus) -> None:
    await bus.js.publish(pieces_subject(BLOB_STORE, "one"), b"y")
    await blobs.delete("one")
    assert await pieces_of(bus) == {}


async def test_an_object_of_an_earlier_release_is_read_and_deleted(blobs: Blobs, bus: Bus) -> None:
    """Its pieces have the subject that nats-py gave them."""
    store = await bus.js.object_store(BLOB_STORE)
    await store.put("one", b"x" * 20)
    assert await read(blobs, "one") == b"x" * 20
    await blobs.delete("one")
    assert await pieces_of(bus) == {}


async def pieces_of(bus: Bus) -> dict[str, int]:
    """How many pieces there are, by subject."""
    info = await bus.js.stream_info(f"OBJ_{BLOB_STORE}", subjects_filter=f"$O.{BLOB_STORE}.C.>")
    return info.state.subjects or {}


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
