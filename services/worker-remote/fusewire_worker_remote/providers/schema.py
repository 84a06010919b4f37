"""JSON Schemas, as far as providers' strict modes take them. No IO."""

from collections.abc import Iterator, Mapping
from typing import Any

_CHILDREN = ("items", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "$defs", "definitions", "patternProperties")

_NOT_STRICT = (
    "$ref",
    "oneOf",
    "allOf",
    "not",
    "if",
    "patternProperties",
    "dependentSchemas",
    "dependentRequired",
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
    """A schema and all the schemas within it."""
    if not isinstance(schema, dict):
        return
    yield schema
    for name in _CHILDREN:
        yield from parts(schema.get(name))
    for name in _LISTS:
        for inner in schema[name] if isinstance(schema.get(name), list) else ():
            yield from parts(inner)
    for name in _MAPS:
        for inner in schema[name].values() if isinstance(schema.get(name), dict) else ():
            yield from parts(inner)


def is_object(schema: Mapping[str, Any]) -> bool:
    """Whether it may describe an object."""
    kind = schema.get("type")
    return (
        kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in schema
    )


def is_closed(schema: object) -> bool:
    """Whether every object in it names all its members, so that nothing is lost by allowing no others."""
    return all(
        part.get("properties") and not part.get("additionalProperties")
        for part in parts(schema)
        if is_object(part)
    )


def is_strict(schema: object) -> bool:
    """Whether OpenAI's strict mode takes it: an object, of which none is open and all members are required."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return False
    if any(name in part for part in parts(schema) for name in _NOT_STRICT):
        return False
    return all(
        part.get("additionalProperties") is False
        and set(part.get("required") or ()) == set(part.get("properties") or ())
        for part in parts(schema)
        if is_object(part)
    )


def without_bounds(schema: Any) -> Any:
    """A closed schema in the narrower tongue of Anthropic's structured outputs.

    Objects allow no further members. Bounds, which it refuses, are told to the model in the description.
    """
    if not isinstance(schema, dict):
        return schema  # true and false are schemas too
    found = {name: value for name, value in schema.items() if name not in _BOUNDS}
    if bounds := {name: schema[name] for name in _BOUNDS if name in schema}:
        told = ", ".join(f"{name}: {value}" for name, value in bounds.items())
        found["description"] = (
            f"{schema['description']} ({told})" if schema.get("description") else told
        )
    if "oneOf" in found:
        found["anyOf"] = found.pop("oneOf")
    if is_object(found):
        found["additionalProperties"] = False
    for name in _CHILDREN:
        if name in found:
            found[name] = without_bounds(found[name])
    for name in _LISTS:
        if isinstance(found.get(name), list):
            found[name] = [without_bounds(inner) for inner in found[name]]
    for name in _MAPS:
        if isinstance(found.get(name), dict):
            found[name] = {key: without_bounds(inner) for key, inner in found[name].items()}
    return found
