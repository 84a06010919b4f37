import asyncio
import io

import pytest

from fusewire_worker_edge.engine.frames import MAX_BYTES, FrameError, pack, read, read_async

FRAME = {"type": "generate", "text": "Köln – 東京", "numbers": [1, 2.5, None]}


async def read_stream(data: bytes) -> object:
    stream = asyncio.StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    return await read_async(stream)


async def test_a_frame_comes_back_as_it_was() -> None:
    stream = io.BytesIO(pack(FRAME) + pack({"n": 2}))
    assert [read(stream), read(stream), read(stream)] == [FRAME, {"n": 2}, None]
    assert await read_stream(pack(FRAME)) == FRAME


@pytest.mark.parametrize("length", [0, 2, 4, 10])
async def test_a_stream_that_ends_inside_a_frame_has_ended(length: int) -> None:
    data = pack(FRAME)[:length]
    assert read(io.BytesIO(data)) is None
    assert await read_stream(data) is None


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xffx", b"\0\0\0\2[]", b"\0\0\0\3abc", b"\0\0\0\2\xff\xfe"]
)
async def test_what_is_not_a_frame_is_refused_without_being_quoted(data: bytes) -> None:
    with pytest.raises(FrameError) as sync_error:
        read(io.BytesIO(data))
    with pytest.raises(FrameError):
        await read_stream(data)
    assert "abc" not in str(sync_error.value)


def test_a_frame_may_not_exceed_the_limit() -> None:
    with pytest.raises(FrameError, match="too large"):
        pack({"x": "a" * MAX_BYTES})
