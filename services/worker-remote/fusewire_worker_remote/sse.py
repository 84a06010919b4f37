"""Server-sent events, read as their bytes come in.

After the event stream format of the HTML standard, section 9.2.6. No IO. Two liberties, for the servers there are: an
event whose closing blank line is missing counts at the end of the stream, and `id` and `retry` are not kept.
"""

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is empty where the stream gives none."""

    data: str
    name: str = ""


class EventReader:
    """Turns chunks, cut anywhere, into events."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_begun = False
        self._is_after_return = False
        self._name = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes; return the events that they complete."""
        if self._is_after_return and chunk:
            # A carriage return ended the last line at once; the line feed that belongs to it ends none.
            self._is_after_return = False
            chunk = chunk.removeprefix(b"\n")
        buffer = self._rest + chunk
        if not self._is_begun:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._rest = buffer
                return []
            self._is_begun = True
            buffer = buffer.removeprefix(_BOM)
        self._is_after_return = self._is_after_return or buffer.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(buffer)
        return [event for line in lines if (event := self._take(line)) is not None]

    def end(self) -> list[Event]:
        """The stream has ended: the event that was not closed, if there is one."""
        rest, self._rest = self._rest, b""
        found = [self._take(rest) if rest else None, self._take(b"")]
        return [event for event in found if event is not None]

    def _take(self, line: bytes) -> Event | None:
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
