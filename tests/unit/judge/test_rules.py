"""Faults that a rule finds in an answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_judge.scoring.rules import rule_fault

FAULTY = [
    ("a product", "3 * 4 = 15", "states 3 * 4 = 15"),
    ("a sum of several", "89 + 71 + 92 = 289", "states 89 + 71 + 92 = 289"),
    ("money, with separators", "$1,200 - $300 = $800", "states $1,200 - $300 = $800"),
    ("by a cross", "12 × 3 = 35 apples", "states 12 × 3 = 35"),
    ("by an x", "93 x 6 = 293", "states 93 x 6 = 293"),
    ("products come first", "2 + 3 * 4 = 20", "states 2 + 3 * 4 = 20"),
    ("a wrong sign", "5 - 100 = 95", "states 5 - 100 = 95"),
    ("a wrong place", "130,000*.15 is 0.15*130,000=195,000", "states 0.15*130,000=195,000"),
    ("a quotient", "7 / 2 = 5", "states 7 / 2 = 5"),
    ("the second of two", "3 * 4 = 12. 12 - 5 = 8.", "states 12 - 5 = 8"),
    ("JSON", 'So:\n```json\n{"a": 1,}\n```\n', "has JSON that does not parse"),
    ("Python", "```python\nprint(1\n```", "has Python that does not parse"),
]
FAULTLESS = [
    "",
    "3 * 4 = 12",
    "7 / 3 = 2.33, and 7 / 3 = 2",
    "19 / 5 = 3 remainder 4",
    "0.1 + 0.2 = 0.3",
    "10 - 2 - 3 = 5, 2 + 3 * 4 = 14",
    # Sums that go on, or begin before what can be read, are left alone.
    "5 + 3 = 8 * 2 = 16",
    "3x + 4 * 2 = 8",
    "x = 3 + 4 = 8",
    "(3 + 4) * 2 = 14",
    "2 * 3% = 6",
    "on 2024-01-05 = a Friday, 10:30 - 11 = 1",
    "1 / 0 = 0",
    "20% of 50 + 1 = 11",
    "```python\n>>> print(1\n```",
    "```python\nfor x in y:\n    ...\n    print(\n```",
    '```json\n{"a": 1, // one\n}\n```',
    "```python\n    return 1\n```",
    "```sh\nprint(1\n```",
    "3 * 4 = 15" + " " * 20_000,
]


@pytest.mark.parametrize(("text", "fault"), [f[1:] for f in FAULTY], ids=[f[0] for f in FAULTY])
def test_a_fault_is_found_and_named(text: str, fault: str) -> None:
    assert rule_fault(text) == fault


@pytest.mark.parametrize("text", FAULTLESS)
def test_what_may_be_right_is_left_alone(text: str) -> None:
    assert rule_fault(text) is None


def test_code_too_deep_for_the_parser_says_nothing() -> None:
    assert rule_fault("```json\n" + "[" * 9_000 + "]" * 9_000 + "\n```") is None


@given(st.text(alphabet="0123456789.,+-*/x= $%()\n", max_size=200))
def test_any_text_can_be_checked(text: str) -> None:
    rule_fault(text)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_right_sums_have_no_fault(a: int, b: int) -> None:
    assert rule_fault(f"{a} + {b} = {a + b}, {a} * {b} = {a * b:,}, {a} - {b} = {a - b}") is None
