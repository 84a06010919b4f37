"""Server-sent events: read from bytes, and written. Pure.

The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass

_LINE_END = re.compile("\r\n|\r|\n")


@dataclass(frozen=True)
class ServerEvent:
    """One event."""

    name: str
    """Empty for a comment, which only says that the sender lives."""
    data: str


COMMENT = ServerEvent("", "")


class EventReader:
    """Reads events from the pieces of a stream."""

    def __init__(self) -> None:
        # A character may be cut between two pieces.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._name = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[ServerEvent]:
        r"""Read the events that end in the next piece.

        >>> reader = EventReader()
        >>> [*reader.feed(b"event: plan\nda"), *reader.feed(b'ta: {}\n\n')]
        [ServerEvent(name='plan', data='{}')]
        """
        *lines, self._line = _LINE_END.split(self._line + self._decoder.decode(piece))
        for line in lines:
            event = self._read(line)
            if event is not None:
                yield event

    def _read(self, line: str) -> ServerEvent | None:
        if line.startswith(":"):
            return COMMENT
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        elif not line and self._data:
            event = ServerEvent(self._name or "message", "\n".join(self._data))
            self._name, self._data = "", []
            return event
        return None


def encode(data: str, *, name: str = "", retry_ms: int | None = None) -> bytes:
    r"""Write an event.

    Args:
        data: its text; each of its lines becomes a line of the event.
        name: its name; htmx puts events without a name into the page.
        retry_ms: how long the browser shall wait before it connects again.

    >>> encode("a\r\nb", name="end")
    b'event: end\ndata: a\ndata: b\n\n'
    """
    lines = [f"event: {name}"] if name else []
    if retry_ms is not None:
        lines.append(f"retry: {retry_ms}")
    lines += [f"data: {line}" for line in _LINE_END.split(data)]
    return ("\n".join(lines) + "\n\n").encode()
