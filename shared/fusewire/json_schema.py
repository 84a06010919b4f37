"""Whether a value satisfies a client's JSON Schema, found out in bounded time.

A client writes the schema and, by what it asks or records, the value. Three things in a check have no bound of their
own: patterns, which run on RE2 (Cox, 2010: time linear in the text); references that double at each level, for which
every step is counted; and comparing all items with all others, which is done by their JSON.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import re2
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from referencing import Registry

MOST_STEPS = 300_000
"""Keywords that are looked at in one check: a second or two. An answer as large as a message takes a third of them."""
PATTERN_STEPS = 1_000
"""What the first use of a pattern in a check counts: to compile it takes some milliseconds."""
_PATTERN_BYTES = 256 * 1024
"""What RE2 may use for one pattern."""
_ESCAPE = re.compile(r"(\\\\)|\\u([0-9a-fA-F]{4})")

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooManyStepsError(Exception):
    """The check has no end in sight."""


class _Steps:
    """How many steps of a check are left."""

    def __init__(self, *, has_patterns: bool) -> None:
        self.has_patterns = has_patterns
        self._left = MOST_STEPS
        self._compiled: set[str] = set()

    def take(self, steps: int = 1) -> None:
        """Raises where none are left."""
        self._left -= steps
        if self._left < 0:
            raise _TooManyStepsError

    def compile(self, pattern: str) -> None:
        """The same whether it is compiled already: a check shall come out the same each time."""
        if pattern not in self._compiled:
            self._compiled.add(pattern)
            self.take(PATTERN_STEPS)


_STEPS: ContextVar[_Steps] = ContextVar("steps")


class SchemaCheck:
    """A schema that values are checked against.

    Args:
        schema: of draft 2020-12. A pattern that RE2 cannot read, such as one that looks ahead, lets everything pass.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._has_patterns = "patternProperties" in json.dumps(schema)
        # An empty registry: nothing is ever fetched.
        self._validator = _Validator(schema, registry=Registry())

    def fits(self, value: Any) -> bool:
        """Whether a value satisfies it; not where that takes too long, or a reference leads nowhere."""
        token = _STEPS.set(_Steps(has_patterns=self._has_patterns))
        try:
            return bool(self._validator.is_valid(value))
        except Exception:  # noqa: BLE001 - the library raises whatever a client's schema or number runs into
            return False
        finally:
            _STEPS.reset(token)


def _counted(keyword: Keyword) -> Keyword:
    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _STEPS.get().take()
        yield from keyword(validator, value, instance, schema) or ()

    return check


_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = _PATTERN_BYTES


def _compile(pattern: str) -> Any:
    return re2.compile(
        _ESCAPE.sub(lambda m: m.group(1) or rf"\x{{{m.group(2)}}}", pattern), _OPTIONS
    )


@lru_cache(1024)
def _compiled(pattern: str) -> Any:
    try:
        return _compile(pattern)
    except (re2.error, UnicodeError):
        return None


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression of the kinds that clients write, held to or not."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        try:
            _compile(text)
        except (re2.error, UnicodeError) as exc:
            return "too large" in str(exc)
    return True


def _matches(pattern: str, text: str) -> bool:
    _STEPS.get().compile(pattern)
    found = _compiled(pattern)
    return found is None or found.search(text) is not None


def _pattern(
    validator: Any, pattern: str, instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield ValidationError("it does not match the pattern")


def _pattern_properties(
    validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in patterns.items():
            for name, inner in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(inner, subschema)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, inner in instance.items():
        if name not in known and not any(_matches(pattern, name) for pattern in patterns):
            yield from validator.descend(inner, allowed)


def _unevaluated_properties(
    validator: Any, allowed: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    # Beside patterns the library's own would match them with Python's engine; such a schema is rare.
    if not _STEPS.get().has_patterns:
        yield from (
            Draft202012Validator.VALIDATORS["unevaluatedProperties"](
                validator, allowed, instance, schema
            )
            or ()
        )


def _unique_items(
    validator: Any, is_unique: bool, instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if is_unique and validator.is_type(instance, "array"):
        written = {json.dumps(plain(item), sort_keys=True) for item in instance}
        if len(written) < len(instance):
            yield ValidationError("two items are the same")


def plain(value: Any) -> Any:
    """JSON with 1.0 written as 1, as JSON Schema counts them equal."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        name: _counted(keyword)
        for name, keyword in {
            **Draft202012Validator.VALIDATORS,
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
            "unevaluatedProperties": _unevaluated_properties,
            "uniqueItems": _unique_items,
        }.items()
    },
)
