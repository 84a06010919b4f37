"""JSON that every later hop can read too: the bus, the database, and the parsers of other services. Pure."""

import json
import math
from typing import Any

from fusewire_ingest.admission.refusal import RefusedError

MOST_DEPTH = 64
"""Levels of nesting; the parser that reads messages gives up at 200, and a round wraps a prompt in some more."""
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def parse_object(data: bytes | str, limit: int) -> dict[str, Any]:
    """Read one JSON object that every later hop can read too.

    Raises:
        RefusedError: it is too large, or no such object.
    """
    text = _text(data, limit)
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except RefusedError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as exc:
        where = (
            f"column {exc.colno}" if exc.lineno == 1 else f"line {exc.lineno}, column {exc.colno}"
        )
        raise RefusedError(
            "invalid_json", f"it is not valid JSON at {where}: {exc.msg.lower()}"
        ) from None
    except ValueError:
        raise RefusedError(
            "invalid_json", "a number in it has too many digits; shorten it"
        ) from None
    if not isinstance(value, dict):
        raise RefusedError("invalid_request", 'it must be a JSON object, such as {"prompt": "…"}')
    # Of valid UTF-8, only an escape can become a NUL or half a surrogate pair.
    _storable(value, strings="\\u" in text)
    return value


def _text(data: bytes | str, limit: int) -> str:
    if isinstance(data, str):
        try:
            data = data.encode()
        except UnicodeEncodeError:
            raise _half_a_pair() from None
    if len(data) > limit:
        raise RefusedError(
            "prompt_too_large",
            f"it has {len(data)} bytes, the limit is {limit}; shorten it or raise limits.prompt_bytes",
        )
    if data.startswith(_MARKS):
        raise RefusedError(
            "invalid_json", "it begins with a byte order mark; send UTF-8 without one"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise RefusedError(
            "invalid_json", f"it is not valid JSON: not UTF-8 from byte {exc.start + 1} on"
        ) from None


def _no_constant(name: str) -> float:
    raise RefusedError("invalid_json", f"{name} is not valid JSON; use a number or null")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [k for k, _ in pairs]
        twice = next(n for n in names if names.count(n) > 1)
        raise RefusedError(
            "invalid_json", f"the key '{twice[:40]}' stands twice in one object; keep one"
        )
    return found


def _storable(value: Any, depth: int = 0, *, strings: bool = True) -> None:
    """Refuse what a later hop could not read: the bus, the database, or another service's JSON parser."""
    if isinstance(value, str):
        if strings:
            check_text(value)
    elif isinstance(value, dict):
        if depth >= MOST_DEPTH:
            raise _too_deep()
        for key, inner in value.items():
            if strings:
                check_text(key)
            _storable(inner, depth + 1, strings=strings)
    elif isinstance(value, list):
        if depth >= MOST_DEPTH:
            raise _too_deep()
        for inner in value:
            _storable(inner, depth + 1, strings=strings)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RefusedError("invalid_json", "a number is too large; use one below 1.8e308")


def check_text(value: str) -> None:
    """Refuse a text that cannot be stored. Raises RefusedError."""
    if "\x00" in value:
        raise RefusedError(
            "invalid_request", "it holds a NUL character, which no database keeps; remove it"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _half_a_pair() from None


def _half_a_pair() -> RefusedError:
    return RefusedError("invalid_json", "it holds half of a surrogate pair; send valid Unicode")


def _too_deep() -> RefusedError:
    return RefusedError(
        "invalid_request", f"it is nested more than {MOST_DEPTH} deep; make it flatter"
    )
