"""Parse JSON strictly, so that every later hop can read it too. Pure.

Later hops are the bus, the database, and the JSON parsers of other services.
"""

import json
import math
from typing import Any

from fusewire_ingest.admission.refusal import RefusedError

MOST_DEPTH = 64
"""Levels of nesting. The parser of messages stops at 200, and messages nest a prompt deeper."""
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def parse_object(data: bytes | str, limit: int) -> dict[str, Any]:
    """Parse one JSON object.

    Raises:
        RefusedError: it has more than `limit` bytes, or it is not an object that can be stored.
    """
    text = _text(data, limit)
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except RefusedError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError as exc:
        raise _syntax_error(exc) from None
    except ValueError:
        raise RefusedError(
            "invalid_json", "a number in it has too many digits; shorten it"
        ) from None
    if not isinstance(value, dict):
        raise RefusedError("invalid_request", 'it must be a JSON object, such as {"prompt": "…"}')
    # In valid UTF-8, only an escape can become a NUL or half a surrogate pair.
    _check_storable(value, has_escapes="\\u" in text)
    return value


def _syntax_error(exc: json.JSONDecodeError) -> RefusedError:
    place = f"column {exc.colno}"
    if exc.lineno > 1:
        place = f"line {exc.lineno}, {place}"
    return RefusedError("invalid_json", f"it is not valid JSON at {place}: {exc.msg.lower()}")


def _text(data: bytes | str, limit: int) -> str:
    if isinstance(data, str):
        try:
            data = data.encode()
        except UnicodeEncodeError:
            raise _half_a_pair() from None
    if len(data) > limit:
        raise RefusedError(
            "prompt_too_large",
            f"it has {len(data)} bytes, the limit is {limit}; "
            "shorten it or raise limits.prompt_bytes",
        )
    if data.startswith(_BYTE_ORDER_MARKS):
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
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise RefusedError(
            "invalid_json", f"the key '{duplicate[:40]}' stands twice in one object; keep one"
        )
    return unique


def _check_storable(value: Any, depth: int = 0, *, has_escapes: bool) -> None:
    """Refuse what the bus, the database or another service's JSON parser could not read.

    Texts are checked only if the document has escapes.
    """
    if isinstance(value, str):
        if has_escapes:
            check_text(value)
    elif isinstance(value, dict):
        _check_object(value, depth, has_escapes=has_escapes)
    elif isinstance(value, list):
        _check_depth(depth)
        for element in value:
            _check_storable(element, depth + 1, has_escapes=has_escapes)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RefusedError("invalid_json", "a number is too large; use one below 1.8e308")


def _check_object(members: dict[str, Any], depth: int, *, has_escapes: bool) -> None:
    _check_depth(depth)
    for key, value in members.items():
        if has_escapes:
            check_text(key)
        _check_storable(value, depth + 1, has_escapes=has_escapes)


def _check_depth(depth: int) -> None:
    if depth >= MOST_DEPTH:
        raise _too_deep()


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
