"""The ladder by which a judge's output is read: strict, repaired, asked again, fallback. Pure."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from json_repair import repair_json

from fusewire.json_schema import SchemaCheck

MOST_CHARS = 100_000
MOST_REPAIRED = 20_000
"""Characters of broken JSON that are mended: the time that takes grows with the square of their number."""

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Read:
    """Output that satisfies its schema."""

    value: dict[str, Any]
    rung: Literal["strict", "repaired"]


@dataclass(frozen=True)
class UnreadableVerdict:
    """Output that does not, and why; never the output itself."""

    reason: str


def read(text: str | None, schema: dict[str, Any]) -> Read | UnreadableVerdict:
    """Read what a judge wrote as the JSON that was asked for.

    The second rung mends broken JSON but never guesses between two objects, or two values of
    one key: that is refused, because the last one is where an injected verdict would stand.
    """
    if not text or not text.strip():
        return UnreadableVerdict("empty")
    if len(text) > MOST_CHARS:
        return UnreadableVerdict("too_long")
    try:
        strict = _valid(lambda: json.loads(text, object_pairs_hook=_distinct), schema)
    except _DuplicateKeyError:
        return UnreadableVerdict("ambiguous")
    if strict is not None:
        return Read(strict, "strict")
    if len(text) <= MOST_REPAIRED:
        repaired = _valid(
            lambda: repair_json(_unfenced(text), return_objects=True, strict=True), schema
        )
        if repaired is not None:
            return Read(repaired, "repaired")
    return UnreadableVerdict("schema_mismatch" if _is_json(text) else "not_json")


def _valid(load: Callable[[], Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    try:
        value = load()
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not SchemaCheck(schema).fits(value):
        return None
    return value if _is_storable(value) else None


class _DuplicateKeyError(Exception):
    """A key stands twice in one object."""


def _unfenced(text: str) -> str:
    """What stands in the one code block, where nothing outside it could be meant instead."""
    blocks = list(_FENCED.finditer(text))
    if len(blocks) != 1 or "{" in text[: blocks[0].start()] + text[blocks[0].end() :]:
        return text
    return blocks[0].group(1)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _DuplicateKeyError
    return found


def _is_storable(value: Any) -> bool:
    """Escapes can hide what no database keeps: NUL, and halves of surrogate pairs."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\\u0000" not in text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
