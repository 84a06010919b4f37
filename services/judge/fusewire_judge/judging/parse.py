"""Parse what a judge wrote: strictly, or with broken JSON repaired. Pure.

These are the first two parse stages. The other two, `reasked` and `fallback`, are the callers'.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from json_repair import repair_json

from fusewire.json_schema import SchemaCheck

MOST_CHARS = 100_000
MOST_REPAIRED = 20_000
"""Characters of broken JSON that are repaired: the time grows with the square of their number."""

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Read:
    """Output that satisfies its schema."""

    value: dict[str, Any]
    parse_stage: Literal["strict", "repaired"]


@dataclass(frozen=True)
class UnreadableVerdict:
    """Why an output does not satisfy its schema; never the output itself."""

    reason: str


def read(text: str | None, schema: dict[str, Any]) -> Read | UnreadableVerdict:
    """Parse what a judge wrote as JSON that satisfies the schema.

    Broken JSON is repaired, but an output with two objects, or with two values of one key, is
    refused as ambiguous: the last one is where an injected verdict would stand.
    """
    if not text or not text.strip():
        return UnreadableVerdict("empty")
    if len(text) > MOST_CHARS:
        return UnreadableVerdict("too_long")
    try:
        verdict = _valid(lambda: json.loads(text, object_pairs_hook=_check_keys), schema)
    except _DuplicateKeyError:
        return UnreadableVerdict("ambiguous")
    if verdict is not None:
        return Read(verdict, "strict")
    if len(text) <= MOST_REPAIRED:
        verdict = _valid(
            lambda: repair_json(_strip_fence(text), return_objects=True, strict=True), schema
        )
        if verdict is not None:
            return Read(verdict, "repaired")
    return UnreadableVerdict("schema_mismatch" if _is_json(text) else "not_json")


def _valid(load: Callable[[], Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """The loaded object, if it satisfies the schema and can be stored."""
    try:
        value = load()
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not SchemaCheck(schema).fits(value):
        return None
    return value if _is_storable(value) else None


class _DuplicateKeyError(Exception):
    """An object has the same key twice."""


def _strip_fence(text: str) -> str:
    """The content of the only code block, if no JSON object stands outside it; else the text."""
    blocks = list(_FENCED.finditer(text))
    if len(blocks) != 1 or "{" in text[: blocks[0].start()] + text[blocks[0].end() :]:
        return text
    return blocks[0].group(1)


def _check_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs. Raises _DuplicateKeyError."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise _DuplicateKeyError
    return mapping


def _is_storable(value: Any) -> bool:
    """Whether a database can store the value: without NUL and halves of surrogate pairs.

    JSON escapes can hide both.
    """
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
