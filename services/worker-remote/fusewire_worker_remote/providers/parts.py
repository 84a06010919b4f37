"""Pieces of messages and of answers that several protocols share. No IO."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fusewire.contracts import Image, Message, Usage

MOST_BLOCKS = 100_000
"""Most blocks of one answer."""

_MEDIA_TYPES = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp"}


def content_parts(message: Message) -> Iterator[str | Image]:
    """Yield a message's text and images in the order in which they were written; no empty text."""
    start = 0
    for image in message.images:
        if message.content[start : image.at]:
            yield message.content[start : image.at]
            start = image.at
        yield image
    if message.content[start:]:
        yield message.content[start:]


def parse_data_url(url: str) -> tuple[str, str] | None:
    """Return media type and base64 of a `data:` URL; None for any other.

    >>> parse_data_url("data:image/png;base64,AAAA")
    ('image/png', 'AAAA')
    """
    head, comma, data = url.partition(";base64,")
    return (head.removeprefix("data:"), data) if comma and head.startswith("data:") else None


def media_type(url: str) -> str:
    """Return an image's type by the end of its URL's path; JPEG if that is no known one."""
    path = url.partition("?")[0].partition("#")[0].lower()
    return next((kind for end, kind in _MEDIA_TYPES.items() if path.endswith(end)), "image/jpeg")


def system_text(messages: tuple[Message, ...]) -> str:
    """Join all system prompts, for protocols that keep them out of the conversation."""
    prompts = (message.content for message in messages if message.role == "system")
    return "\n\n".join(prompt for prompt in prompts if prompt)


def call_id(original_id: str, valid: re.Pattern[str], length: int) -> str:
    """Return an id of a tool call that a provider accepts; an invalid id is hashed.

    Conversations begin at one provider and go on at another.
    """
    if valid.fullmatch(original_id):
        return original_id
    return hashlib.sha256(original_id.encode()).hexdigest()[:length]


def parse_arguments(text: str) -> dict[str, Any]:
    """Return a call's arguments as an object; any other text or value as its `arguments`.

    >>> parse_arguments('{"city": "Rome"}'), parse_arguments("[1]")
    ({'city': 'Rome'}, {'arguments': [1]})
    """
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = text
    return value if isinstance(value, dict) else {"arguments": value}


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields whose value is not None."""
    return {name: value for name, value in fields.items() if value is not None}


def clean(content: object) -> str:
    """Return the text of a string or of parts, without the lone surrogates that JSON can hold."""
    if isinstance(content, list):
        content = "".join(_text_of(part) for part in content)
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _text_of(part: object) -> str:
    if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"):
        part = part.get("text")
    return part if isinstance(part, str) else ""


def word(value: object) -> str:
    """Return a word of a fixed set, such as a finish reason; empty for anything but text."""
    return value if isinstance(value, str) else ""


MOST_TOKENS = 1_000_000_000
"""Most tokens of one call. A larger number is a server's fault, and does not fit the database."""
MOST_USD = 100_000.0
"""Highest cost of one call, likewise."""


def tokens(value: object) -> int | None:
    """Return a number of tokens, also of a float or text; None for anything else."""
    count = number(value)
    return int(count) if count is not None and count <= MOST_TOKENS else None


def usd(value: object) -> float | None:
    """Return an amount of US dollars; None for anything else."""
    amount = number(value)
    return amount if amount is not None and amount <= MOST_USD else None


def number(value: object) -> float | None:
    """Return a number that is finite and not negative, also of text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed_number = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed_number if math.isfinite(parsed_number) and parsed_number >= 0 else None


def first_object(values: object) -> dict[str, Any] | None:
    """Return the first entry of a list, if it is an object."""
    first = values[0] if isinstance(values, list) and values else None
    return first if isinstance(first, dict) else None


def append_turn(turns: list[dict[str, Any]], role: str, key: str, blocks: list[Any]) -> None:
    """Add blocks to a conversation in which no role has two turns in succession.

    Args:
        turns: the conversation so far; its last turn or its length changes.
        role: the role whose blocks these are.
        key: the name under which a turn holds its blocks.
        blocks: what to add.
    """
    if turns and turns[-1]["role"] == role:
        turns[-1][key] += blocks
    elif blocks:
        turns.append({"role": role, key: blocks})


def position(value: object) -> int:
    """Return an index into a list that a server gives; 0 for anything else."""
    return value if isinstance(value, int) and 0 <= value <= MOST_BLOCKS else 0


def make_usage(
    prompt: object,
    completion: object,
    *,
    from_cache: object = None,
    reasoning: object = None,
    total: object = None,
) -> Usage | None:
    """Return the tokens that a provider counted; None if it did not.

    Args:
        prompt: tokens of the prompt, including those from a cache.
        completion: tokens of the answer.
        from_cache: the prompt's tokens that came from a cache.
        reasoning: the answer's tokens that are thought.
        total: all tokens. Some servers count thought only here; it then belongs to the answer.
    """
    prompt_tokens, completion_tokens = tokens(prompt), tokens(completion)
    total_tokens = tokens(total)
    if prompt_tokens is None or completion_tokens is None:
        return None
    # Zero for an answer that has text is not a count (docs/decisions/0036).
    if prompt_tokens + completion_tokens == 0:
        return None
    if total_tokens is not None:
        completion_tokens = max(completion_tokens, total_tokens - prompt_tokens)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=min(prompt_tokens, tokens(from_cache) or 0),
        reasoning_tokens=min(completion_tokens, tokens(reasoning) or 0),
    )


_THINK, _END_THINK = "<think>", "</think>"


class ThoughtFilter:
    """Removes the thought from an answer that begins with `<think>`, as its pieces come.

    Open models write it so if the server does not separate thought and answer.
    """

    def __init__(self) -> None:
        self._buffer = ""
        self._is_decided = False
        self._is_thinking = False
        self.text = ""
        """The thought, once it has ended."""

    def add(self, piece: str) -> str:
        """Take the next piece; return the text that it adds to the answer."""
        if self._is_decided and not self._is_thinking:
            return piece
        self._buffer += piece
        if not self._is_decided:
            beginning = self._buffer.lstrip()
            if len(beginning) < len(_THINK) and _THINK.startswith(beginning):
                return ""
            self._is_decided = True
            self._is_thinking = beginning.startswith(_THINK)
            if not self._is_thinking:
                return self._flush()
            self._buffer = beginning.removeprefix(_THINK)
        return self._end_thought()

    def end(self) -> str:
        """End the answer; return the rest of its text."""
        if self._is_thinking:
            self.text = self._buffer.strip()
            return ""
        return self._flush()

    def _end_thought(self) -> str:
        """Look for the thought's end in the buffer; return the answer's text behind it."""
        thought_text, end, answer = self._buffer.partition(_END_THINK)
        if not end:
            return ""
        self.text = thought_text.strip()
        self._buffer = answer.lstrip()
        self._is_thinking = False
        # The space before the answer may come in the next piece.
        self._is_decided = bool(self._buffer)
        return self._flush() if self._is_decided else ""

    def _flush(self) -> str:
        text, self._buffer = self._buffer, ""
        return text.lstrip() if self.text else text


def without_thought(content: str) -> tuple[str, str]:
    """Split an answer that came whole into the answer and the thought before it.

    >>> without_thought("<think>It is.</think> Yes.")
    ('Yes.', 'It is.')
    """
    thoughts = ThoughtFilter()
    answer = thoughts.add(content) + thoughts.end()
    return answer, thoughts.text


def is_json(text: str) -> bool:
    """Whether a text is a whole JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def arguments_text(arguments: object) -> str:
    """Return a call's arguments as JSON text.

    Args:
        arguments: JSON text, JSON text within JSON text, an object, or nothing.
    """
    if arguments is None or arguments == "":
        return "{}"
    if not isinstance(arguments, str):
        return clean(json.dumps(arguments, ensure_ascii=False))
    text = clean(arguments)
    try:
        inner = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(inner, str) and inner.lstrip().startswith("{") and is_json(inner):
        return clean(inner)
    return text


class Text:
    """Text that comes in pieces, which may be cut between a character's two surrogates."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._half = ""

    def add(self, piece: object) -> str:
        """Take the next piece; return the text that can be published now."""
        if not isinstance(piece, str) or not piece:
            return ""
        text = self._half + piece
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        whole_text = clean(_join_surrogates(text[: len(text) - len(self._half)]))
        self._pieces.append(whole_text)
        return whole_text

    def __str__(self) -> str:
        return "".join(self._pieces) + clean(self._half)


def _join_surrogates(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
