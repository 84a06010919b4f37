"""Content that is too large for a message: an object store of JetStream.

Ingest writes it, and worker-remote reads it.
"""

import asyncio
import base64
import functools
import hashlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import Header, ObjectInfo, ObjectMetaOptions
from nats.js.errors import APIError, NotFoundError
from nats.js.kv import MSG_ROLLUP_SUBJECT
from nats.js.object_store import ObjectStore

from fusewire.errors import Transient

CHUNK = 512 * 1024
PAUSES_S = (0.2, 1.0)
FOLLOWS = Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value
"""A piece's header with the sequence of the piece before it, or 0; the server checks it."""

T = TypeVar("T")


class BlobMissingError(Exception):
    """The object does not exist: it expired, was erased, or the broker's store was lost."""


class BlobDamagedError(Exception):
    """The stored content differs from what was written."""


@dataclass(frozen=True)
class Blob:
    """An object's metadata.

    Attributes:
        name: the object's name.
        size: its size in bytes.
        digest: SHA-256, as JetStream writes it.
        subject: the subject of its pieces.
    """

    name: str
    size: int
    digest: str
    subject: str


class Blobs:
    """One object store. Names are derived from contents, so an object never changes.

    It is read message by message, without the consumer that nats-py would create: a worker's
    permissions do not allow one.

    Args:
        js: the connection.
        bucket: the store's name.
    """

    def __init__(self, js: JetStreamContext, bucket: str) -> None:
        self._js = js
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"
        self._store = ObjectStore(bucket, self._stream, js)

    async def has(self, name: str) -> bool:
        """Whether an object exists. Raises Transient."""
        return await self._info(name) is not None

    async def put(self, name: str, data: bytes) -> None:
        """Store an object. Raises Transient, also if the store is full.

        nats-py's own `put` gives the pieces of each attempt another subject, so that those of an
        attempt that failed could not be found to be erased.
        """
        try:
            await self._put(name, data)
        except (NatsError, TimeoutError, OSError) as exc:
            raise Transient(
                f"the object store {self._bucket} does not take it: {type(exc).__name__}"
            ) from exc

    async def _put(self, name: str, data: bytes) -> None:
        subject = pieces_subject(self._bucket, name)
        await self._js.purge_stream(self._stream, subject=subject)
        last_sequence = 0
        for start in range(0, len(data), CHUNK):
            # Refused where a piece of an earlier attempt has only just arrived.
            expected = {FOLLOWS: str(last_sequence)}
            piece = data[start : start + CHUNK]
            last_sequence = (await self._js.publish(subject, piece, headers=expected)).seq
        info = ObjectInfo(
            name=name,
            bucket=self._bucket,
            nuid=subject.rpartition(".")[2],
            size=len(data),
            chunks=math.ceil(len(data) / CHUNK),
            digest=_digest(hashlib.sha256(data).digest()),
            options=ObjectMetaOptions(max_chunk_size=CHUNK),
        )
        body = json.dumps(info.as_dict()).encode()
        rollup = {Header.ROLLUP.value: MSG_ROLLUP_SUBJECT}
        await self._js.publish(description_subject(self._bucket, name), body, headers=rollup)

    async def delete(self, name: str) -> None:
        """Delete an object and what a failed `put` has left of it. Raises Transient."""
        is_stored = await self.has(name)
        try:
            if is_stored:
                await self._store.delete(name)
            await self._js.purge_stream(self._stream, subject=pieces_subject(self._bucket, name))
        except (NatsError, TimeoutError, OSError) as exc:
            raise Transient(
                f"the object store {self._bucket} does not erase: {type(exc).__name__}"
            ) from exc

    async def find(self, name: str) -> Blob:
        """Look up an object's metadata.

        Raises:
            Transient: the store does not answer.
            BlobMissingError: the object does not exist.
        """
        info = await self._info(name)
        if info is None:
            raise BlobMissingError(name)
        return Blob(name, info.size or 0, info.digest or "", f"$O.{self._bucket}.C.{info.nuid}")

    async def read(self, blob: Blob) -> AsyncIterator[bytes]:
        """Read an object piece by piece; the last one is yielded after the digest was checked.

        Raises:
            Transient: the store does not answer.
            BlobMissingError: the object does not exist any more.
            BlobDamagedError: its content differs from what was written.
        """
        hasher = hashlib.sha256()
        size, sequence = 0, 0
        while size < blob.size:
            piece, sequence = await self._piece(blob, sequence)
            hasher.update(piece)
            size += len(piece)
            # Checked before the last piece goes out, so that no provider gets a damaged request
            # whole (docs/decisions/0040).
            is_last = size >= blob.size
            if is_last and (size > blob.size or blob.digest != _digest(hasher.digest())):
                raise BlobDamagedError(blob.name)
            yield piece

    async def _piece(self, blob: Blob, previous: int) -> tuple[bytes, int]:
        """The piece after the one with a stream sequence, or the first after 0; and its own."""
        get = functools.partial(
            self._js.get_msg, self._stream, seq=previous + 1, subject=blob.subject, next=True
        )
        message = await _retry(get)
        if message is None or message.seq is None:
            raise BlobMissingError(blob.name)
        if previous and (message.headers or {}).get(FOLLOWS) == "0":
            # The object was put again: the copy that was begun is gone.
            raise BlobMissingError(blob.name)
        return message.data or b"", message.seq

    async def _info(self, name: str) -> ObjectInfo | None:
        return await _retry(lambda: self._store.get_info(name))


def description_subject(bucket: str, name: str) -> str:
    """The subject of an object's metadata, as all clients of NATS name it."""
    return f"$O.{bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def pieces_subject(bucket: str, name: str) -> str:
    """The subject of an object's pieces, by its name."""
    return f"$O.{bucket}.C.{hashlib.sha256(name.encode()).hexdigest()}"


def _digest(sha256: bytes) -> str:
    """A digest as JetStream writes it."""
    return f"SHA-256={base64.urlsafe_b64encode(sha256).decode()}"


async def _retry(call: Callable[[], Awaitable[T]]) -> T | None:
    """Call until the server answers; None if the object does not exist.

    Raises Transient after the last of `PAUSES_S`.
    """
    for pause in (*PAUSES_S, None):
        try:
            return await call()
        except NotFoundError:
            return None
        except (NatsError, TimeoutError, OSError) as exc:
            # Any other code is a refusal, which a repetition does not change.
            if pause is None or (isinstance(exc, APIError) and exc.code not in {None, 500, 503}):
                raise Transient(f"the object store does not answer: {type(exc).__name__}") from exc
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")
