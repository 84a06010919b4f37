"""How much of long texts a page shows, so that it stays small whatever is stored."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

MOST_CHARS = 20_000
"""Characters of one text that a page shows."""
PAGE_BYTES = 90_000
"""Bytes that all texts of a page have together, as HTML in UTF-8."""
JSON_BYTES = 20_000
"""Bytes of JSON that a page shows, as HTML in UTF-8."""
JSON_CHARS = 300
"""Characters of each string in JSON that a page shows."""


def cut(texts: Sequence[str]) -> list[str]:
    """The beginnings of texts that fit on a page: short ones are whole, long ones have equal rooms.

    >>> [len(text) for text in cut(["short", "x" * 50_000])]
    [5, 20000]
    """
    starts = [text[:MOST_CHARS] for text in texts]
    room = _room([_size(text) for text in starts])
    return [_fit(text, room) for text in starts]


def _size(text: str) -> int:
    return len(escape(text).encode())


def _room(sizes: Sequence[int]) -> int:
    """The greatest room that every text may have."""
    rest, count = PAGE_BYTES, len(sizes)
    for size in sorted(sizes):
        if size * count > rest:
            return rest // count
        rest -= size
        count -= 1
    return PAGE_BYTES


def _fit(text: str, room: int) -> str:
    """The longest beginning that has a room, found by halving."""
    if _size(text) <= room:
        return text
    low, high = 0, len(text)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _size(text[:middle]) <= room else (low, middle)
    return text[:low]


def short_json(value: Any) -> str:
    """JSON to look at: indented, with each long string cut and its length said.

    >>> print(short_json({"a": "x" * 400})[:12])
    {
      "a": "xx
    """
    return _fit(json.dumps(_shorten(value), indent=2, ensure_ascii=False), JSON_BYTES)


def _shorten(value: Any) -> Any:
    if isinstance(value, str) and len(value) > JSON_CHARS:
        return f"{value[:JSON_CHARS]}… ({len(value):,} characters)"
    if isinstance(value, Mapping):
        return {key: _shorten(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_shorten(entry) for entry in value]
    return value
