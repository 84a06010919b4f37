"""What a client's schema costs to check against, and what it means all the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from fusewire import json_schema
from fusewire.json_schema import SchemaCheck


def doubling(levels: int) -> dict[str, Any]:
    """Each definition asks the next one twice: two to the power of the levels."""
    defs: dict[str, Any] = {
        f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)
    }
    return {"$defs": {**defs, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def recursive(levels: int) -> tuple[dict[str, Any], Any]:
    """The same over the levels of a value."""
    inner = {"properties": {"x": {"$ref": "#/$defs/a"}}}
    value: Any = {}
    for _ in range(levels):
        value = {"x": value}
    return {"$defs": {"a": {"allOf": [inner, inner]}}, "$ref": "#/$defs/a"}, value


RUNS = "a" * 50_000 + "!"
ENDLESS: list[tuple[str, dict[str, Any], Any]] = [
    ("a pattern", {"pattern": "^(a+)+$"}, RUNS),
    ("a pattern of names", {"patternProperties": {"^(a+)+$": False}, "required": ["b"]}, {RUNS: 1}),
    (
        "a pattern of names, where others are not allowed",
        {"patternProperties": {"^(a+)+$": True}, "additionalProperties": False},
        {RUNS: 1},
    ),
    (
        "a pattern of names, where what was not looked at is not allowed",
        {"patternProperties": {"^(a+)+$": True}, "unevaluatedProperties": False, "required": ["b"]},
        {RUNS: 1},
    ),
    ("a pattern for names", {"propertyNames": {"pattern": "^(a+)+$"}}, {RUNS: 1}),
    ("references that double", doubling(60), "x"),
    ("references that double with the value", *recursive(50)),
    (
        "items that are all different",
        {"uniqueItems": True, "required": ["b"], "type": "object"},
        [{"a": i} for i in range(30_000)],
    ),
]


@pytest.mark.parametrize(
    ("schema", "value"), [row[1:] for row in ENDLESS], ids=[row[0] for row in ENDLESS]
)
@pytest.mark.timeout(60)
def test_a_check_ends(schema: dict[str, Any], value: Any) -> None:
    """Each of these would take longer than anybody lives."""
    assert not SchemaCheck(schema).fits(value)


def test_many_different_items_are_compared_in_time() -> None:
    items = [{"a": i} for i in range(30_000)]

    assert SchemaCheck({"uniqueItems": True}).fits(items)
    assert not SchemaCheck({"uniqueItems": True}).fits([*items, {"a": 0.0}])


MEANS: list[tuple[str, dict[str, Any], Any, bool]] = [
    ("a pattern", {"pattern": "^[a-z]{2}$"}, "de", True),
    ("one that is not met", {"pattern": "^[a-z]{2}$"}, "deu", False),
    ("anywhere in the text", {"pattern": "b"}, "abc", True),
    ("a character by its number", {"pattern": r"^\u00e9$"}, "é", True),
    ("a backslash, and no number", {"pattern": r"^\\u00e9$"}, r"\u00e9", True),
    ("a pattern that looks ahead is not held to", {"pattern": "^(?!x)y$"}, "x", True),
    ("no pattern at all", {"pattern": "["}, "x", True),
    ("a pattern is for texts", {"pattern": "x"}, 1, True),
    ("names by a pattern", {"patternProperties": {"^n_": {"type": "number"}}}, {"n_a": "1"}, False),
    ("others by none", {"patternProperties": {"^n_": {"type": "number"}}}, {"m_a": "1"}, True),
    (
        "no others",
        {"properties": {"a": True}, "additionalProperties": False},
        {"a": 1, "b": 1},
        False,
    ),
    ("others of a kind", {"additionalProperties": {"type": "number"}}, {"b": "1"}, False),
    (
        "no others but by a pattern",
        {"patternProperties": {"b": True}, "additionalProperties": False},
        {"b": 1},
        True,
    ),
    (
        "nothing besides",
        {"properties": {"a": True}, "unevaluatedProperties": False},
        {"a": 1, "b": 1},
        False,
    ),
    ("1 and 1.0 are one item", {"uniqueItems": True}, [1, 1.0], False),
    ("1 and true are two", {"uniqueItems": True}, [1, True], True),
    ("a reference that leads nowhere", {"$ref": "#/$defs/none"}, 1, False),
    ("a reference that leads out", {"$ref": "https://example.org/x"}, 1, False),
]


@pytest.mark.parametrize(
    ("schema", "value", "fits"), [row[1:] for row in MEANS], ids=[row[0] for row in MEANS]
)
def test_what_a_schema_means(schema: dict[str, Any], value: Any, fits: bool) -> None:
    assert SchemaCheck(schema).fits(value) is fits


def test_steps_are_counted_anew_for_each_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "MOST_STEPS", 10)
    check = SchemaCheck({"items": {"type": "integer"}})

    assert [check.fits([1] * length) for length in (9, 9, 10, 9)] == [True, True, False, True]


NAMES = st.sampled_from(["a", "ab", "b"])
SCHEMAS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "array", "string", "integer"]),
        "pattern": st.sampled_from(["^a", "b$", "a|b"]),
        "properties": st.dictionaries(
            NAMES, st.sampled_from([True, False, {"type": "integer"}]), max_size=2
        ),
        "patternProperties": st.dictionaries(
            st.sampled_from(["^a", "b"]), st.sampled_from([True, {"type": "string"}])
        ),
        "additionalProperties": st.sampled_from([True, False, {"type": "integer"}]),
        "uniqueItems": st.booleans(),
    },
)
LEAVES = st.integers(0, 2) | st.sampled_from(["a", "ab", 1.0, True])
VALUES = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(NAMES, LEAVES, max_size=3)


@given(SCHEMAS, VALUES)
def test_it_means_what_the_library_says(schema: dict[str, Any], value: Any) -> None:
    assert SchemaCheck(schema).fits(value) is Draft202012Validator(schema).is_valid(value)
