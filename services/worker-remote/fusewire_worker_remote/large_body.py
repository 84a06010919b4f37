"""The body of a request with large images or texts, which are read from the object store while it is sent.

So a call never holds one whole, and while its answer is awaited it holds none.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from fusewire.blobs import Blob, BlobDamagedError, BlobMissingError
from fusewire.errors import Transient
from fusewire_worker_remote.errors import Failure


class BlobSource(Protocol):
    """Where they come from; see `Blobs`."""

    async def find(self, name: str) -> Blob:
        """See `Blobs.find`."""
        ...

    def read(self, blob: Blob) -> AsyncIterator[bytes]:
        """See `Blobs.read`."""
        ...


class LargeBody:
    """One request's body.

    Args:
        pieces: JSON, and what is large between.
        source: where that is read.
    """

    def __init__(self, pieces: Sequence[bytes | Blob], source: BlobSource) -> None:
        self._pieces = pieces
        self._source = source
        self.size = sum(piece.size if isinstance(piece, Blob) else len(piece) for piece in pieces)
        """Bytes."""
        self.failure: Failure | None = None
        """Why it broke off. What was sent is no whole request, so nobody has worked on it."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Read it once."""
        try:
            for piece in self._pieces:
                if isinstance(piece, bytes):
                    yield piece
                    continue
                async for part in self._source.read(piece):
                    yield part
        except BlobMissingError:
            # It was there a moment ago: another ingest has put it again, or it was erased. The next attempt finds out.
            self.failure = Failure(
                "connect_error", "a large part of it was replaced while it was sent", retryable=True
            )
            raise
        except (Transient, BlobDamagedError) as exc:
            self.failure = _failure(exc)
            raise


async def with_large_parts(
    body: bytes, names: Mapping[str, str], source: BlobSource
) -> LargeBody | Failure:
    """The body with images and texts in place of their marks, or why one cannot be had.

    Args:
        body: JSON.
        names: of them, by the mark that stands for each.
        source: where they are.
    """
    try:
        found = {mark.encode(): await source.find(name) for mark, name in names.items()}
    except (Transient, BlobMissingError) as exc:
        return _failure(exc)
    texts = re.split(b"(" + b"|".join(map(re.escape, found)) + b")", body)
    return LargeBody([found.get(text, text) for text in texts], source)


def _failure(exc: Exception) -> Failure:
    if isinstance(exc, Transient):
        return Failure("connect_error", str(exc), retryable=True)
    what = (
        "is no longer kept (limits.image_days)"
        if isinstance(exc, BlobMissingError)
        else "is damaged"
    )
    return Failure(
        "bad_request", f"an image or a long text {what}; send the prompt again", retryable=False
    )
