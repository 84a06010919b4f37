"""For tests: images and texts that are too large for a message of the bus."""

import base64
import random

from fusewire.blobs import Blobs
from fusewire.bus import Bus
from fusewire.contracts import Image, Message
from fusewire.topology import BLOB_STORE

LONG = "".join(f'{number} "ä\\ \n' for number in range(120_000))
"""1.5 MB of text, as JSON and UTF-8 write it in more than one byte a character."""


def picture(size: int, seed: int = 1) -> str:
    """A data URL of so many bytes."""
    return "data:image/png;base64," + base64.b64encode(random.Random(seed).randbytes(size)).decode()


def showing(*urls: str) -> Message:
    """A message with these images."""
    return Message(role="user", content="Which?", images=tuple(Image(url=url) for url in urls))


async def read(blobs: Blobs, name: str) -> bytes:
    """The whole of what an object store holds by a name."""
    return b"".join([piece async for piece in blobs.read(await blobs.find(name))])


async def damage(bus: Bus, sequence: int, data: bytes | None) -> None:
    """Take a message out of the object store, and put another in its place."""
    stream = f"OBJ_{BLOB_STORE}"
    subject = str((await bus.js.get_msg(stream, sequence)).subject)
    await bus.js.delete_msg(stream, sequence)
    if data is not None:
        await bus.js.publish(subject, data)
