"""JSON objects over a pipe, each preceded by its length in four bytes, big-endian."""

import asyncio
import json
from typing import Any, BinaryIO

MAX_BYTES = 16 * 1024 * 1024
"""Largest frame. A larger length means that the pipe carries something else."""

_PREFIX = 4

Frame = dict[str, Any]


class FrameError(Exception):
    """The bytes read are not a frame. The message has nothing of their content."""


def pack(frame: Frame) -> bytes:
    """Serialise a frame.

    Raises:
        FrameError: the frame is larger than `MAX_BYTES`.
    """
    body = json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode()
    if len(body) > MAX_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is too large")
    return len(body).to_bytes(_PREFIX, "big") + body


def _length(prefix: bytes) -> int:
    length = int.from_bytes(prefix, "big")
    if length > MAX_BYTES:
        raise FrameError(f"a frame of {length} bytes was announced")
    return length


def _unpack(body: bytes) -> Frame:
    try:
        frame = json.loads(body)
    except ValueError:
        frame = None
    if not isinstance(frame, dict):
        raise FrameError("a frame is not a JSON object")
    return frame


def read(stream: BinaryIO) -> Frame | None:
    """Read the next frame; None at the end of the stream, even in the middle of a frame.

    Raises:
        FrameError: the bytes read are not a frame.
    """
    prefix = stream.read(_PREFIX)
    if len(prefix) < _PREFIX:
        return None
    length = _length(prefix)
    body = stream.read(length)
    return _unpack(body) if len(body) == length else None


async def read_async(stream: asyncio.StreamReader) -> Frame | None:
    """`read` for asyncio."""
    try:
        length = _length(await stream.readexactly(_PREFIX))
        body = await stream.readexactly(length)
    except asyncio.IncompleteReadError:
        return None
    return _unpack(body)
