"""Read bodies of requests: media types, encodings and limits."""

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from fusewire.settings import Limits
from fusewire_ingest.admission.admit import RefusedError, parse_object
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.memory import ByteBudget

JSON_TYPES = ("application/json", "application/octet-stream")
JSONL_TYPES = ("application/x-ndjson", "application/jsonl", "application/jsonlines")
PIECE = 65_536
"""The most bytes that are decompressed at once."""
MOST_DISCARDED = 8 * 1024 * 1024
"""Bytes of a body beyond its limit that are read and discarded: a client that is cut off while it
sends may never read the reply."""
MOST_ESCAPED = 3
"""The most bytes of JSON for a byte of text: `json.dumps` writes six for a character of two."""

_GZIP = 16 + zlib.MAX_WBITS


def media_type(request: Request) -> str:
    """The media type of a body, without parameters; empty if the request names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_object(request: Request, limit: int) -> dict[str, Any]:
    """Read a JSON object. Raises what `whole` and `parse_object` raise."""
    return parse_object(await whole(request, limit), limit)


@dataclass(frozen=True)
class BodyLimit:
    """The limit of a body.

    Attributes:
        limit: the most bytes.
        is_large: whether the body may be too large for a message of the bus, so that large parts
            have to be stored apart.
    """

    limit: int
    is_large: bool


@contextlib.asynccontextmanager
async def room(request: Request, limits: Limits, memory: ByteBudget) -> AsyncIterator[BodyLimit]:
    """Reserve memory for a body with large images or texts; wait until there is some.

    A compressed body, or one without a content-length, has the limit of a prompt without them.
    """
    length = _content_length(request)
    if length <= limits.prompt_bytes or "content-encoding" in request.headers:
        yield BodyLimit(limits.prompt_bytes, is_large=False)
        return
    most = limits.prompt_bytes + limits.text_bytes * MOST_ESCAPED + -(-limits.image_bytes * 4 // 3)
    async with memory.hold(min(length, most)):
        yield BodyLimit(most, is_large=True)


def _content_length(request: Request) -> int:
    """Bytes of the body; 0 if the request does not say, or not in a sensible way."""
    text = request.headers.get("content-length", "")
    is_number = text.isascii() and text.isdigit() and len(text) < 16
    return int(text) if is_number else 0


async def whole(request: Request, limit: int) -> bytes:
    """Read a body of JSON.

    Args:
        request: the request.
        limit: the most bytes of the body, decompressed.

    Raises:
        RefusedError: the body is too large.
        HttpError: it has another media type, or its compression is unknown or broken.
    """
    # JSON_TYPES has no type that a form on any web page can send (cross-site requests).
    body_type = media_type(request)
    if body_type not in JSON_TYPES and not body_type.endswith("+json"):
        raise HttpError(
            415,
            "unsupported_media_type",
            f"the body's type is '{body_type[:80]}'; send JSON as application/json",
        )
    buffer = bytearray()
    discarded_bytes = 0
    async for piece in pieces(request):
        if len(buffer) <= limit:
            buffer += piece
        else:
            discarded_bytes += len(piece)
        if discarded_bytes > MOST_DISCARDED:
            break
    if len(buffer) > limit:
        raise RefusedError(
            "prompt_too_large",
            f"the body has more than {limit} bytes; shorten it or raise limits.prompt_bytes, "
            "limits.text_bytes or limits.image_bytes",
        )
    return bytes(buffer)


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """Read a body as it arrives, decompressed. Decompressed pieces have at most PIECE bytes.

    Raises:
        HttpError: the body's compression is unknown or broken.
        ClientDisconnect: the client disconnected.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise HttpError(
            415,
            "unsupported_encoding",
            f"content-encoding '{encoding[:40]}' is not supported; use gzip or none",
        )
    chunks = request.stream()
    async for chunk in chunks if encoding == "identity" else _decompress(chunks):
        yield chunk


async def _decompress(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    decompressor = zlib.decompressobj(_GZIP)
    try:
        async for chunk in chunks:
            # Data after the end is a fault, in the same chunk or in a later one.
            if chunk and decompressor.eof:
                raise _gzip_error("something follows its end")
            async for piece in _decompress_chunk(decompressor, chunk):
                yield piece
            if decompressor.unused_data:
                raise _gzip_error("something follows its end")
    except zlib.error:
        raise _gzip_error("it cannot be decompressed") from None
    if not decompressor.eof:
        raise _gzip_error("its end is missing")


async def _decompress_chunk(decompressor: "zlib._Decompress", chunk: bytes) -> AsyncIterator[bytes]:
    remainder = chunk
    while remainder and not decompressor.eof:
        if piece := decompressor.decompress(remainder, PIECE):
            yield piece
        remainder = decompressor.unconsumed_tail
        # A chunk may expand a thousandfold: let other requests run between pieces.
        await asyncio.sleep(0)


def _gzip_error(reason: str) -> HttpError:
    return HttpError(400, "invalid_encoding", f"the body is not valid gzip: {reason}")
