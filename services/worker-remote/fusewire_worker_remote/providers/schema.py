"""JSON Schemas in the forms that providers' strict modes accept. No IO."""

from collections.abc import Iterator, Mapping
from typing import Any

_CHILDREN = ("items", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "$defs", "definitions", "patternProperties")

_NOT_STRICT = frozenset(
    {
        "$ref",
        "oneOf",
        "allOf",
        "not",
        "if",
        "patternProperties",
        "dependentSchemas",
        "dependentRequired",
    }
)
_BOUNDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
)


def parts(schema: object) -> Iterator[dict[str, Any]]:
    """Yield a schema and all the schemas within it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for child in _children(schema):
        yield from parts(child)


def _children(schema: Mapping[str, Any]) -> Iterator[object]:
    for name in _CHILDREN:
        yield schema.get(name)
    for name in _LISTS:
        if isinstance(schema.get(name), list):
            yield from schema[name]
    for name in _MAPS:
        if isinstance(schema.get(name), dict):
            yield from schema[name].values()


def is_object(schema: Mapping[str, Any]) -> bool:
    """Whether a schema may describe an object."""
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return True
    return isinstance(kind, list) and "object" in kind


def is_closed(schema: object) -> bool:
    """Whether every object in a schema names its members and allows no others."""
    return all(
        part.get("properties") and not part.get("additionalProperties")
        for part in parts(schema)
        if is_object(part)
    )


def is_strict(schema: object) -> bool:
    """Whether OpenAI's strict mode accepts a schema.

    It accepts an object; every object in it is closed, and all its members are required.
    """
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return False
    if not all(_NOT_STRICT.isdisjoint(part) for part in parts(schema)):
        return False
    return all(
        part.get("additionalProperties") is False
        and set(part.get("required") or ()) == set(part.get("properties") or ())
        for part in parts(schema)
        if is_object(part)
    )


def without_bounds(schema: Any) -> Any:
    """Return a closed schema in the subset that Anthropic's structured outputs accept.

    Objects allow no further members. Bounds, which it refuses, go into the description.
    """
    if not isinstance(schema, dict):
        return schema  # true and false are schemas too
    narrow_schema = {name: value for name, value in schema.items() if name not in _BOUNDS}
    if bounds := [f"{name}: {schema[name]}" for name in _BOUNDS if name in schema]:
        narrow_schema["description"] = _describe(schema.get("description"), ", ".join(bounds))
    if "oneOf" in narrow_schema:
        narrow_schema["anyOf"] = narrow_schema.pop("oneOf")
    if is_object(narrow_schema):
        narrow_schema["additionalProperties"] = False
    return {name: _without_bounds_in(name, value) for name, value in narrow_schema.items()}


def _describe(description: object, bounds: str) -> str:
    return f"{description} ({bounds})" if description else bounds


def _without_bounds_in(name: str, value: Any) -> Any:
    """Apply `without_bounds` to the schemas that a keyword of a schema holds."""
    if name in _CHILDREN:
        return without_bounds(value)
    if name in _LISTS and isinstance(value, list):
        return [without_bounds(schema) for schema in value]
    if name in _MAPS and isinstance(value, dict):
        return {key: without_bounds(schema) for key, schema in value.items()}
    return value
