"""Pieces of messages and of answers that several protocols share. No IO."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fusewire.contracts import Image, Message, Usage

MOST_BLOCKS = 100_000
"""Of one answer."""

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


def call_id(given_: str, taken: re.Pattern[str], length: int) -> str:
    """An id of a tool call that a provider takes: as it is where it is taken, else the same for the same.

    Conversations begin at one provider and go on at another.
    """
    return (
        given_ if taken.fullmatch(given_) else hashlib.sha256(given_.encode()).hexdigest()[:length]
    )


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
    """Text, of a string or of parts, without the lone surrogates that JSON can carry."""
    if isinstance(content, list):
        content = "".join(_text_of(part) for part in content)
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _text_of(part: object) -> str:
    if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"):
        part = part.get("text")
    return part if isinstance(part, str) else ""


def word(value: object) -> str:
    """A name out of a fixed set, such as a finish reason; empty for what is no text."""
    return value if isinstance(value, str) else ""


MOST_TOKENS = 1_000_000_000
"""Of one call. A number beyond it is a fault of the server, and would not fit the database."""
MOST_USD = 100_000.0
"""For one call, likewise."""


def tokens(value: object) -> int | None:
    """A number of tokens, also as a float or as text; None for what is none."""
    found = number(value)
    return int(found) if found is not None and found <= MOST_TOKENS else None


def usd(value: object) -> float | None:
    """An amount of money; None for what is none."""
    found = number(value)
    return found if found is not None and found <= MOST_USD else None


def number(value: object) -> float | None:
    """A number that is finite and not negative, also as text; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and found >= 0 else None


def position(value: object) -> int:
    """A place in a list that a server gives; 0 for what is none."""
    return value if isinstance(value, int) and 0 <= value <= MOST_BLOCKS else 0


def counted(
    prompt: object,
    completion: object,
    *,
    cached: object = None,
    reasoning: object = None,
    total: object = None,
) -> Usage | None:
    """Tokens as a provider counted them, or None where it did not.

    Args:
        prompt: tokens of the prompt, those from a cache among them.
        completion: tokens of the answer.
        cached: of the prompt's, those that came from a cache.
        reasoning: of the answer's, those that were thought.
        total: of all; some servers count thought there alone, and then it belongs to the answer.
    """
    known_prompt, known_completion = tokens(prompt), tokens(completion)
    known_total = tokens(total)
    if known_prompt is None or known_completion is None or known_prompt + known_completion == 0:
        return None
    if known_total is not None:
        known_completion = max(known_completion, known_total - known_prompt)
    return Usage(
        prompt_tokens=known_prompt,
        completion_tokens=known_completion,
        cached_tokens=min(known_prompt, tokens(cached) or 0),
        reasoning_tokens=min(known_completion, tokens(reasoning) or 0),
    )


class ThoughtFilter:
    """Takes the thought off an answer that begins with `<think>`, as its pieces come.

    Open models write it so where the server does not tell thought and answer apart.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_decided = False
        self._is_thinking = False
        self.text = ""
        """What was thought."""

    def add(self, piece: str) -> str:
        """Take the next piece; return what of it belongs to the answer."""
        if self._is_decided and not self._is_thinking:
            return piece
        self._held += piece
        if not self._is_decided:
            begun = self._held.lstrip()
            if len(begun) < len(_THINK) and _THINK.startswith(begun):
                return ""
            self._is_decided = True
            self._is_thinking = begun.startswith(_THINK)
            if not self._is_thinking:
                return self._take()
            self._held = begun.removeprefix(_THINK)
        thought, end, answer = self._held.partition(_END_THINK)
        if not end:
            return ""
        self.text, self._held, self._is_thinking = thought.strip(), answer.lstrip(), False
        # The space before the answer may come in the next piece.
        self._is_decided = bool(self._held)
        return self._take() if self._is_decided else ""

    def end(self) -> str:
        """The answer is over; return what was held back of it."""
        if self._is_thinking:
            self.text = self._held.strip()
            return ""
        return self._take()

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held.lstrip() if self.text else held


_THINK, _END_THINK = "<think>", "</think>"


def without_thought(content: str) -> tuple[str, str]:
    """An answer that came whole, and what was thought before it."""
    thought = ThoughtFilter()
    answer = thought.add(content) + thought.end()
    return answer, thought.text


def is_json(text: str) -> bool:
    """Whether it is a whole JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def arguments_text(given_: object) -> str:
    """A call's arguments as JSON text: of text, of an object, of text within text, or of nothing."""
    if given_ is None or given_ == "":
        return "{}"
    if not isinstance(given_, str):
        return clean(json.dumps(given_, ensure_ascii=False))
    text = clean(given_)
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return (
        clean(inner)
        if isinstance(inner, str) and inner.lstrip().startswith("{") and is_json(inner)
        else text
    )


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
