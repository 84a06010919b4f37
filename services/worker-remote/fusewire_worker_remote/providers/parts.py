"""Pieces of messages and of answers that several protocols share. No IO."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fusewire.contracts import Image, Message

_MEDIA_TYPES = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp"}


def interleaved(message: Message) -> Iterator[str | Image]:
    """A message's text and images in the order in which they were written; no empty text."""
    start = 0
    for image in message.images:
        if message.content[start : image.at]:
            yield message.content[start : image.at]
            start = image.at
        yield image
    if message.content[start:]:
        yield message.content[start:]


def inline(url: str) -> tuple[str, str] | None:
    """Media type and base64 of a `data:` URL; None of any other."""
    head, comma, data = url.partition(";base64,")
    return (head.removeprefix("data:"), data) if comma and head.startswith("data:") else None


def media_type(url: str) -> str:
    """An image's type by the end of its URL's path; JPEG where that says nothing."""
    path = url.partition("?")[0].partition("#")[0].lower()
    return next((kind for end, kind in _MEDIA_TYPES.items() if path.endswith(end)), "image/jpeg")


def system_text(messages: tuple[Message, ...]) -> str:
    """All system prompts as one, for protocols in which they are no part of the conversation."""
    return "\n\n".join(m.content for m in messages if m.role == "system" and m.content)


def arguments_of(text: str) -> dict[str, Any]:
    """A call's arguments as an object; what is none is kept as the member `arguments` of one."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = text
    return value if isinstance(value, dict) else {"arguments": value}


def given(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None."""
    return {name: value for name, value in wanted.items() if value is not None}


def clean(content: object) -> str:
    """Text, of a string or of typed parts, without the lone surrogates that JSON can carry."""
    if isinstance(content, list):
        texts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        content = "".join(t for t in texts if isinstance(t, str))
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def word(value: object) -> str:
    """A name out of a fixed set, such as a finish reason; empty for what is no text."""
    return value if isinstance(value, str) else ""


def count(value: object) -> int:
    """A number of tokens; 0 for what is none."""
    return value if isinstance(value, int) and value > 0 else 0


class Text:
    """Text that comes in pieces, of which one may end in the middle of a character of two surrogates."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._half = ""

    def add(self, piece: object) -> str:
        """Take the next piece; return what can be shown now."""
        if not isinstance(piece, str) or not piece:
            return ""
        text = self._half + piece
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        shown = clean(_paired(text[: len(text) - len(self._half)]))
        self._pieces.append(shown)
        return shown

    def __str__(self) -> str:
        return "".join(self._pieces) + clean(self._half)


def _paired(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
