"""What is too large for a message: an object store of JetStream, written by ingest and read by worker-remote."""

import asyncio
import base64
import functools
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ObjectInfo, ObjectMeta, ObjectMetaOptions
from nats.js.errors import APIError, NotFoundError
from nats.js.object_store import ObjectStore

from fusewire.errors import Transient

CHUNK = 512 * 1024
PAUSES_S = (0.2, 1.0)

T = TypeVar("T")


class BlobMissingError(Exception):
    """It is not there: it has expired, was erased, or the broker's store was lost."""


class BlobDamagedError(Exception):
    """What is there is not what was put there."""


@dataclass(frozen=True)
class Blob:
    """What is there, before it is read.

    Attributes:
        name: as it was asked for.
        size: bytes.
        digest: SHA-256, as JetStream writes it.
        subject: of its pieces.
    """

    name: str
    size: int
    digest: str
    subject: str


class Blobs:
    """One object store. Names are made of contents: what has one never changes.

    It is read by single messages, in place of the consumer that nats-py would make: a worker's permissions allow no
    more.

    Args:
        js: the connection.
        bucket: its name.
    """

    def __init__(self, js: JetStreamContext, bucket: str) -> None:
        self._js = js
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"
        self._store = ObjectStore(bucket, self._stream, js)

    async def has(self, name: str) -> bool:
        """Whether it is there. Raises Transient."""
        return await self._info(name) is not None

    async def put(self, name: str, data: bytes) -> None:
        """Keep it. Raises Transient, also where the store is full."""
        meta = ObjectMeta(name=name, options=ObjectMetaOptions(max_chunk_size=CHUNK))
        try:
            await self._store.put(name, data, meta)
        except (NatsError, TimeoutError, OSError) as exc:
            raise Transient(
                f"the object store {self._bucket} does not take it: {type(exc).__name__}"
            ) from exc

    async def delete(self, name: str) -> None:
        """Erase it, if it is there. Raises Transient."""
        if await self.has(name):
            try:
                await self._store.delete(name)
            except (NatsError, TimeoutError, OSError) as exc:
                raise Transient(
                    f"the object store {self._bucket} does not erase: {type(exc).__name__}"
                ) from exc

    async def find(self, name: str) -> Blob:
        """Look for one.

        Raises:
            Transient: the store does not answer.
            BlobMissingError: it is not there.
        """
        info = await self._info(name)
        if info is None:
            raise BlobMissingError(name)
        return Blob(name, info.size or 0, info.digest or "", f"$O.{self._bucket}.C.{info.nuid}")

    async def read(self, blob: Blob) -> AsyncIterator[bytes]:
        """Read it, piece by piece; the last comes only when the whole is known to be right.

        Raises:
            Transient: the store does not answer.
            BlobMissingError: it is no longer there.
            BlobDamagedError: it is not what was put there.
        """
        hashed = hashlib.sha256()
        count, sequence = 0, 1
        while count < blob.size:
            get = functools.partial(
                self._js.get_msg, self._stream, seq=sequence, subject=blob.subject, next=True
            )
            message = await _tried(get)
            if message is None or message.seq is None:
                raise BlobMissingError(blob.name)
            piece = message.data or b""
            hashed.update(piece)
            count += len(piece)
            sequence = message.seq + 1
            if count >= blob.size:
                digest = base64.urlsafe_b64encode(hashed.digest()).decode()
                if count > blob.size or blob.digest != f"SHA-256={digest}":
                    raise BlobDamagedError(blob.name)
            yield piece

    async def _info(self, name: str) -> ObjectInfo | None:
        return await _tried(lambda: self._store.get_info(name))


async def _tried(call: Callable[[], Awaitable[T]]) -> T | None:
    """Call until it is answered; None for what is not there."""
    for pause in (*PAUSES_S, None):
        try:
            return await call()
        except NotFoundError:
            return None
        except (NatsError, TimeoutError, OSError) as exc:
            if pause is None or (isinstance(exc, APIError) and exc.code not in {None, 500, 503}):
                raise Transient(f"the object store does not answer: {type(exc).__name__}") from exc
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")
