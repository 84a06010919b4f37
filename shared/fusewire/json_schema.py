"""Checks a value against a client's JSON Schema, in bounded time.

Both the schema and, indirectly, the value come from a client. Three parts of a check can take
unbounded time: patterns, which therefore run on RE2 (Cox, 2010: time linear in the text);
references that double at each level, for which the steps are counted; and comparing all items with
all others, which is done with a set of their JSON texts.
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
"""Limit of evaluated keywords in one check, a second or two. An answer as large as a message takes
a third of it."""
PATTERN_STEPS = 1_000
"""Steps of the first use of a pattern in a check, as compiling it takes some milliseconds."""
_PATTERN_BYTES = 256 * 1024
"""Memory that RE2 may use for one pattern."""
_ESCAPE = re.compile(r"(\\\\)|\\u([0-9a-fA-F]{4})")

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooManyStepsError(Exception):
    """The check takes too many steps."""


class _Steps:
    """Counts the steps of one check."""

    def __init__(self, *, has_patterns: bool) -> None:
        self.has_patterns = has_patterns
        self._remaining = MOST_STEPS
        self._patterns: set[str] = set()

    def take(self, steps: int = 1) -> None:
        """Take steps; raises `_TooManyStepsError` if none remain."""
        self._remaining -= steps
        if self._remaining < 0:
            raise _TooManyStepsError

    def compile(self, pattern: str) -> None:
        """Count a pattern's first use in this check.

        It counts even if the pattern is in the cache, so that each check has the same result.
        """
        if pattern not in self._patterns:
            self._patterns.add(pattern)
            self.take(PATTERN_STEPS)


_STEPS: ContextVar[_Steps] = ContextVar("steps")


class SchemaCheck:
    """A schema that values are checked against.

    Args:
        schema: of draft 2020-12. A pattern that RE2 does not support, such as one with a
            lookahead, matches everything.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._has_patterns = "patternProperties" in json.dumps(schema)
        # An empty registry: nothing is ever fetched.
        self._validator = _Validator(schema, registry=Registry())

    def fits(self, value: Any) -> bool:
        """Whether a value satisfies the schema.

        False also if the check takes too long or a `$ref` is broken.
        """
        token = _STEPS.set(_Steps(has_patterns=self._has_patterns))
        try:
            return bool(self._validator.is_valid(value))
        except Exception:  # noqa: BLE001 - the library raises whatever a client's schema or number runs into
            return False
        finally:
            _STEPS.reset(token)


def _count_steps(keyword: Keyword) -> Keyword:
    """A keyword's check that counts as a step."""

    def check(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _STEPS.get().take()
        yield from keyword(validator, value, instance, schema) or ()

    return check


_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = _PATTERN_BYTES


def _compile(pattern: str) -> Any:
    # RE2 does not know Python's escape of four digits after \u; it has \x{…} for it.
    text = _ESCAPE.sub(lambda match: match.group(1) or rf"\x{{{match.group(2)}}}", pattern)
    return re2.compile(text, _OPTIONS)


@lru_cache(1024)
def _compile_or_none(pattern: str) -> Any:
    """The compiled pattern; None if RE2 does not support it."""
    try:
        return _compile(pattern)
    except (re2.error, UnicodeError):
        return None


def is_pattern(text: str) -> bool:
    """Whether a text is a regular expression for Python or for RE2, supported here or not."""
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
    expression = _compile_or_none(pattern)
    return expression is None or expression.search(text) is not None


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
    validator: Any, subschema: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, inner in instance.items():
        if name not in properties and not any(_matches(pattern, name) for pattern in patterns):
            yield from validator.descend(inner, subschema)


def _unevaluated_properties(
    validator: Any, subschema: Any, instance: Any, schema: Any
) -> Iterator[ValidationError]:
    # Not checked in a schema with `patternProperties`, which is rare: the library would match
    # these patterns with Python's engine.
    if not _STEPS.get().has_patterns:
        keyword = Draft202012Validator.VALIDATORS["unevaluatedProperties"]
        yield from keyword(validator, subschema, instance, schema) or ()


def _unique_items(
    validator: Any, is_unique: bool, instance: Any, _schema: Any
) -> Iterator[ValidationError]:
    if is_unique and validator.is_type(instance, "array"):
        texts = {json.dumps(plain(element), sort_keys=True) for element in instance}
        if len(texts) < len(instance):
            yield ValidationError("two items are the same")


def plain(value: Any) -> Any:
    """A JSON value with 1.0 replaced by 1, as JSON Schema defines them as equal.

    >>> plain({"a": [1.0, 1.5]})
    {'a': [1, 1.5]}
    """
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    {
        name: _count_steps(keyword)
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
