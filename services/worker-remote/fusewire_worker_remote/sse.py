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
        self._rest: list[bytes] = []
        """Pieces of a line that has not ended."""
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
        if not self._is_begun:
            chunk = b"".join(self._rest) + chunk
            self._rest = []
            if len(chunk) < len(_BOM) and _BOM.startswith(chunk):
                self._rest = [chunk]
                return []
            self._is_begun = True
            chunk = chunk.removeprefix(_BOM)
        self._is_after_return = self._is_after_return or chunk.endswith(b"\r")
        first, *others = _LINE_END.split(chunk)
        # Joined only when the line ends: to join at each piece would take time in the square of a long line.
        self._rest.append(first)
        if not others:
            return []
        lines = [b"".join(self._rest), *others[:-1]]
        self._rest = [others[-1]]
        return [event for line in lines if (event := self._take(line)) is not None]

    def end(self) -> list[Event]:
        """The stream has ended: the event that was not closed, if there is one."""
        rest, self._rest = b"".join(self._rest), []
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
