import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.sse import Event, EventReader, encode


def read(*chunks: bytes) -> list[Event]:
    reader = EventReader()
    events: list[Event] = []
    for chunk in chunks:
        events += reader.feed(chunk)
    return events + reader.end()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"", []),
        (b"data: one\n\ndata: two\n\n", [Event("one"), Event("two")]),
        (b"error: odd\n\ndata: one\n\n", [Event("odd", "error"), Event("one")]),
        (b"data: one\r\n\r\ndata: two\r\n\r\n", [Event("one"), Event("two")]),
        (b"data: one\r\rdata: two\r\r", [Event("one"), Event("two")]),
        (b"\xef\xbb\xbfdata: one\n\n", [Event("one")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: one\n\n", []),  # one mark and no more
        (b": comment\n\n:\n\ndata: one\n\n", [Event("one")]),
        (b"data: one\ndata: two\n\n", [Event("one\ntwo")]),
        (b"data: one\r\ndata: two\r\n\r\n", [Event("one\ntwo")]),
        (b"data:one\n\ndata:  two\n\n", [Event("one"), Event(" two")]),
        (b"data\n\n", [Event("")]),
        (b"event: ping\n\ndata: one\n\n", [Event("one")]),
        (b"event: error\nid: 7\nretry: 10\nunknown: x\ndata: one\n\n", [Event("one", "error")]),
        (b"data: [DONE]", [Event("[DONE]")]),
        (b"data: one\n", [Event("one")]),
        (b"\n\n\ndata: one\n\n\n\n", [Event("one")]),
        ("data: Köln 日本 🙂\n\n".encode(), [Event("Köln 日本 🙂")]),
        (b"data: \xff\n\n", [Event("\ufffd")]),
        (b"data: a: b\n\n", [Event("a: b")]),
    ],
)
def test_a_stream_has_its_events(stream: bytes, events: list[Event]) -> None:
    assert read(stream) == events
    assert read(*(stream[at : at + 1] for at in range(len(stream)))) == events


def test_an_event_is_given_as_soon_as_it_is_closed() -> None:
    reader = EventReader()
    assert reader.feed(b"data: one\r\n\r") == [Event("one")]
    assert reader.feed(b"\ndata: two\n") == []
    assert reader.feed(b"\n") == [Event("two")]
    assert reader.end() == []


LINES = [b"data: one", b"data:two", b"event: error", b": ping", b"", b"", b"data"]
PIECES = st.tuples(st.sampled_from(LINES), st.sampled_from([b"\r\n", b"\n", b"\r"])).map(
    b"".join
) | st.sampled_from(
    [
        b"\r",
        b"\n",
        b"\r\n",
        b"data:",
        b"data: ",
        b"event: ",
        b"{}",
        b":",
        b" ",
        b"\xef\xbb\xbf",
        "é🙂".encode(),
        b"x",
    ]
)


@given(pieces=st.lists(PIECES, max_size=30), cuts=st.lists(st.integers(0, 120), max_size=12))
def test_events_are_the_same_however_the_bytes_are_cut(
    pieces: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(pieces)
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert read(*chunks) == read(stream)


def test_a_long_line_takes_time_in_proportion() -> None:
    """A line of 16 MiB in pieces of 1 KiB; joined at each piece, it would be copied 128 GiB."""
    reader = EventReader()
    piece = b"x" * 1024
    early_events = reader.feed(b"data: ")
    for _ in range(16 * 1024):
        early_events += reader.feed(piece)
    (event,) = reader.feed(b"\n\n")
    assert (len(event.data), early_events) == (16 * 1024 * 1024, [])


@given(st.text())
def test_what_is_written_is_read(text: str) -> None:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    assert EventReader().feed(encode(text, name="x")) == [Event(lines, "x")]


def test_a_retry_comes_with_its_data() -> None:
    assert encode("a", retry_ms=10) == b"retry: 10\ndata: a\n\n"
