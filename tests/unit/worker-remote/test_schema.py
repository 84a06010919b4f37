from typing import Any

import pytest

from fusewire.contracts import Image, Message
from fusewire_worker_remote.providers.parts import (
    content_parts,
    media_type,
    parse_arguments,
    parse_data_url,
)
from fusewire_worker_remote.providers.schema import is_closed, is_strict, without_bounds

CLOSED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
STRICT = {**CLOSED, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "is_closed_schema", "is_strict_schema"),
    [
        (STRICT, True, True),
        (CLOSED, True, False),
        ({**STRICT, "required": []}, True, False),
        ({"type": "object"}, False, False),
        ({**CLOSED, "additionalProperties": True}, False, False),
        ({**CLOSED, "additionalProperties": {"type": "string"}}, False, False),
        ({"type": ["object", "null"]}, False, False),
        ({"type": "array", "items": {"type": "object"}}, False, False),
        ({"anyOf": [STRICT, {"type": "object"}]}, False, False),
        ({"$defs": {"x": {"type": "object"}}, "type": "string"}, False, False),
        ({"type": "string"}, True, False),
        ({"anyOf": 3, "properties": None, "items": True}, False, False),
    ],
)
def test_schemas_are_told_apart(
    schema: dict[str, Any], is_closed_schema: bool, is_strict_schema: bool
) -> None:
    assert (is_closed(schema), is_strict(schema)) == (is_closed_schema, is_strict_schema)


def test_bounds_become_words() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "minLength": 2, "description": "A word."},
            "b": {
                "type": "array",
                "items": {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
            },
            "c": True,
        },
    }
    before = repr(schema)
    assert without_bounds(schema) == {
        "type": "object",
        "properties": {
            "a": {"type": "string", "description": "A word. (minLength: 2)"},
            "b": {
                "type": "array",
                "items": {
                    "anyOf": [{"type": "integer", "description": "minimum: 1"}, {"type": "null"}]
                },
            },
            "c": True,
        },
        "additionalProperties": False,
    }
    assert repr(schema) == before


def test_images_beyond_the_text_stand_at_its_end() -> None:
    image = Image(url="https://images.example/a", at=99)
    assert list(content_parts(Message(role="user", content="abc", images=(image,)))) == [
        "abc",
        image,
    ]


def test_urls_of_images() -> None:
    assert parse_data_url("data:image/webp;base64,QUJD") == ("image/webp", "QUJD")
    assert parse_data_url("https://images.example/data:;base64,x") is None
    assert media_type("https://images.example/a.PNG?size=2#x") == "image/png"
    assert media_type("https://images.example/a") == "image/jpeg"


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"a": 1}', {"a": 1}), ("", {}), ("[1]", {"arguments": [1]}), ("{x", {"arguments": "{x"})],
)
def test_arguments_are_objects(text: str, value: object) -> None:
    assert parse_arguments(text) == value
