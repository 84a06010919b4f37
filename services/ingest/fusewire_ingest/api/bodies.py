"""Bodies of requests: their types, encodings and limits. Nothing is held beyond a limit."""

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
"""Bytes that are decompressed at once."""
MOST_UNHEARD = 8 * 1024 * 1024
"""So much of a refused body is still taken and thrown away: a client that is cut off while it sends may never
read why."""

MOST_ESCAPED = 3
"""Bytes of JSON for a byte of text: `json.dumps` of Python writes six for a character of two or three."""

_GZIP = 16 + zlib.MAX_WBITS


def kind(request: Request) -> str:
    """The media type of a body, without parameters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def json_object(request: Request, limit: int) -> dict[str, Any]:
    """Read a JSON object. Raises as `whole` and `parse_object` do."""
    return parse_object(await whole(request, limit), limit)


@dataclass(frozen=True)
class BodyLimit:
    """What a body may have.

    Attributes:
        limit: the most bytes.
        is_large: whether it is too large for a message of the bus, unless what is large in it stands apart.
    """

    limit: int
    is_large: bool


@contextlib.asynccontextmanager
async def room(request: Request, limits: Limits, memory: ByteBudget) -> AsyncIterator[BodyLimit]:
    """Wait for room for a body with large images or texts.

    One that does not say its length, or is compressed, may only have the bytes of a prompt without them.
    """
    said = request.headers.get("content-length", "")
    length = int(said) if said.isascii() and said.isdigit() and len(said) < 16 else 0
    if length <= limits.prompt_bytes or "content-encoding" in request.headers:
        yield BodyLimit(limits.prompt_bytes, is_large=False)
        return
    most = limits.prompt_bytes + limits.text_bytes * MOST_ESCAPED + -(-limits.image_bytes * 4 // 3)
    async with memory.hold(min(length, most)):
        yield BodyLimit(most, is_large=True)


async def whole(request: Request, limit: int) -> bytes:
    """Read a body of JSON.

    Args:
        request: whose body it is.
        limit: the most bytes it may have, decompressed.

    Raises:
        RefusedError: it is too large.
        HttpError: it is of another type, or compressed in a way that is not known or broken.
    """
    # Types that a form on any web page can send are not among them.
    if (found := kind(request)) not in JSON_TYPES and not found.endswith("+json"):
        raise HttpError(
            415,
            "unsupported_media_type",
            f"the body's type is '{found[:80]}'; send JSON as application/json",
        )
    held, unheard = bytearray(), 0
    async for piece in pieces(request):
        if len(held) <= limit:
            held += piece
        else:
            unheard += len(piece)
        if unheard > MOST_UNHEARD:
            break
    if len(held) > limit:
        raise RefusedError(
            "prompt_too_large",
            f"the body has more than {limit} bytes; shorten it or raise limits.prompt_bytes, limits.text_bytes or "
            "limits.image_bytes",
        )
    return bytes(held)


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """Read a body as it comes, decompressed, in pieces of at most PIECE bytes where it was compressed.

    Raises:
        HttpError: it is compressed in a way that is not known, or broken.
        ClientDisconnect: the client went away.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise HttpError(
            415,
            "unsupported_encoding",
            f"content-encoding '{encoding[:40]}' is not supported; use gzip or none",
        )
    async for chunk in request.stream() if encoding == "identity" else _unzipped(request.stream()):
        yield chunk


async def _unzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    unzip = zlib.decompressobj(_GZIP)
    try:
        async for chunk in chunks:
            if chunk and unzip.eof:
                raise _broken("something follows its end")
            rest = chunk
            while rest and not unzip.eof:
                if piece := unzip.decompress(rest, PIECE):
                    yield piece
                rest = unzip.unconsumed_tail
                # A thousand times as much may be in it as came: others have their turn between.
                await asyncio.sleep(0)
            if unzip.unused_data:
                raise _broken("something follows its end")
    except zlib.error:
        raise _broken("it cannot be decompressed") from None
    if not unzip.eof:
        raise _broken("its end is missing")


def _broken(why: str) -> HttpError:
    return HttpError(400, "invalid_encoding", f"the body is not valid gzip: {why}")
