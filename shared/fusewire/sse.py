"""Server-sent events, read as their bytes come in, and written.

After the event stream format of the HTML standard, section 9.2.6. No IO. Two deviations, for
servers as they are: an event whose closing blank line is missing counts at the end of the stream,
and `id` and `retry` are ignored.
"""

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_TEXT_LINE_END = re.compile("\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is empty if the stream gives none."""

    data: str
    name: str = ""


class EventReader:
    """Turns chunks of bytes, cut anywhere, into events."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        """Pieces of a line that has not ended."""
        self._is_begun = False
        self._is_after_return = False
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes; return the events that they complete."""
        if self._is_after_return and chunk:
            # The carriage return has already ended the line; its line feed ends no further one.
            self._is_after_return = False
            chunk = chunk.removeprefix(b"\n")
        if not self._is_begun:
            chunk = b"".join(self._rest) + chunk
            self._rest = []
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._rest = [chunk]
                return []
            self._is_begun = True
            chunk = chunk.removeprefix(_BOM)
        self._is_after_return = self._is_after_return or chunk.endswith(b"\r")
        first, *following = _LINE_END.split(chunk)
        # Joined only when the line ends: joining at each piece takes quadratic time.
        self._rest.append(first)
        if not following:
            return []
        lines = [b"".join(self._rest), *following[:-1]]
        self._rest = [following[-1]]
        return [event for line in lines if (event := self._take(line)) is not None]

    def end(self) -> list[Event]:
        """End the stream; return the event that was not closed, if there is one."""
        rest, self._rest = b"".join(self._rest), []
        events = [self._take(rest) if rest else None, self._take(b"")]
        return [event for event in events if event is not None]

    def _take(self, line: bytes) -> Event | None:
        """Take a line without its end; return the event that it completes, if any."""
        if not line:
            event = Event("\n".join(self._data), self._name) if self._data else None
            self._name, self._data = "", []
            return event
        field, _, value = line.partition(b":")  # a comment's field is empty
        text = value.removeprefix(b" ").decode(errors="replace")
        if field == b"error" and text:
            # llama.cpp's server wrote its errors so until 2025.
            return Event(text, "error")
        if field == b"data":
            self._data.append(text)
        elif field == b"event":
            self._name = text
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
    lines += [f"data: {line}" for line in _TEXT_LINE_END.split(data)]
    return ("\n".join(lines) + "\n\n").encode()
