"""Server-sent events, read from any pieces and written so that each text comes back."""

from hypothesis import given
from hypothesis import strategies as st

from fusewire_console.sse import COMMENT, EventReader, ServerEvent, encode

STREAM = 'event: plan\r\ndata: {"a":1}\r\n\r\n: alive\n\nid: 7\ndata: é\ndata:  two\n\n'.encode()
EVENTS = [ServerEvent("plan", '{"a":1}'), COMMENT, ServerEvent("message", "é\n two")]


def read(*pieces: bytes) -> list[ServerEvent]:
    reader = EventReader()
    return [event for piece in pieces for event in reader.feed(piece)]


def test_events_are_read_whole() -> None:
    assert read(STREAM) == EVENTS


def test_a_character_may_be_cut_between_pieces() -> None:
    for at in range(len(STREAM)):
        # A CR LF that is cut is an empty line more, which ends no event twice.
        assert read(STREAM[:at], STREAM[at:]) == EVENTS, at


def test_an_event_without_its_end_is_not_told() -> None:
    assert read(b"data: half\n") == []


@given(st.text())
def test_what_is_written_is_read(text: str) -> None:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    assert read(encode(text, name="x")) == [ServerEvent("x", lines)]


def test_a_retry_comes_with_its_data() -> None:
    assert encode("a", retry_ms=10) == b"retry: 10\ndata: a\n\n"
