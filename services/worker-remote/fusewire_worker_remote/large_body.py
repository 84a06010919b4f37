"""Request bodies with large images or texts, read from the object store while they are sent.

So a call never holds a large part whole in memory, and none while it awaits the answer
(docs/decisions/0040).
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from fusewire.blobs import Blob, BlobDamagedError, BlobMissingError
from fusewire.errors import Transient
from fusewire_worker_remote.errors import Failure


class BlobSource(Protocol):
    """The store of large parts; see `Blobs`."""

    async def find(self, name: str) -> Blob:
        """See `Blobs.find`."""
        ...

    def read(self, blob: Blob) -> AsyncIterator[bytes]:
        """See `Blobs.read`."""
        ...


class LargeBody:
    """The body of one request.

    Args:
        pieces: JSON text, and the large parts between its pieces.
        source: the store of the large parts.
    """

    def __init__(self, pieces: Sequence[bytes | Blob], source: BlobSource) -> None:
        self._pieces = pieces
        self._source = source
        self.size = sum(piece.size if isinstance(piece, Blob) else len(piece) for piece in pieces)
        """Bytes."""
        self.failure: Failure | None = None
        """Why sending broke off. The server got no whole request, so it has not worked on it."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Read the body, once."""
        try:
            for piece in self._pieces:
                if isinstance(piece, bytes):
                    yield piece
                    continue
                async for part in self._source.read(piece):
                    yield part
        except BlobMissingError:
            # It was there a moment ago: another ingest has stored it anew, or it was erased.
            # The next attempt finds out.
            self.failure = Failure(
                "connect_error",
                "a large part of it was replaced while it was sent",
                retryable=True,
                origin="store",
            )
            raise
        except (Transient, BlobDamagedError) as exc:
            self.failure = _failure(exc)
            raise


async def with_large_parts(
    body: bytes, names: Mapping[str, str], source: BlobSource
) -> LargeBody | Failure:
    """Return the body with the large parts in place of their marks; a failure if one is missing.

    Args:
        body: the request as JSON, with marks.
        names: names of the large parts, by the mark that stands for each.
        source: the store of the large parts.
    """
    try:
        blobs = {mark.encode(): await source.find(name) for mark, name in names.items()}
    except (Transient, BlobMissingError) as exc:
        return _failure(exc)
    texts = re.split(b"(" + b"|".join(map(re.escape, blobs)) + b")", body)
    return LargeBody([blobs.get(text, text) for text in texts], source)


def _failure(exc: Exception) -> Failure:
    if isinstance(exc, Transient):
        return Failure("connect_error", str(exc), retryable=True, origin="store")
    is_missing = isinstance(exc, BlobMissingError)
    fault = "is no longer kept (limits.image_days)" if is_missing else "is damaged"
    return Failure(
        "bad_request",
        f"an image or a long text {fault}; send the prompt again",
        retryable=False,
        origin="store",
    )
