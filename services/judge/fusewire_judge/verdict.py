"""The ladder by which a judge's output is read: strict, repaired, asked again, fallback. Pure."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from json_repair import repair_json
from jsonschema import Draft202012Validator

MOST_CHARS = 100_000


@dataclass(frozen=True)
class Read:
    """Output that satisfies its schema."""

    value: dict[str, Any]
    rung: Literal["strict", "repaired"]


@dataclass(frozen=True)
class Unreadable:
    """Output that does not, and why; never the output itself."""

    reason: str


def read(text: str | None, schema: dict[str, Any]) -> Read | Unreadable:
    """Read what a judge wrote as the JSON that was asked for.

    The second rung mends broken JSON but never guesses between two objects: text with more
    than one is refused, because the last one is where an injected verdict would stand.
    """
    if not text or not text.strip():
        return Unreadable("empty")
    if len(text) > MOST_CHARS:
        return Unreadable("too_long")
    strict = _valid(lambda: json.loads(text), schema)
    if strict is not None:
        return Read(strict, "strict")
    repaired = _valid(lambda: repair_json(text, return_objects=True, strict=True), schema)
    if repaired is not None:
        return Read(repaired, "repaired")
    return Unreadable("schema_mismatch" if _is_json(text) else "not_json")


def _valid(load: Callable[[], Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    try:
        value = load()
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not Draft202012Validator(schema).is_valid(value):
        return None
    return value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
