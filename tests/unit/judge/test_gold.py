"""Which answers are right by a gold label."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import Gold, Match
from fusewire_judge.scoring.gold import is_right

RIGHT: list[tuple[Match, str, str]] = [
    ("number", "18", "18"),
    ("number", "18", "She makes 9 * 2 = $18 a day.\nA: 18"),
    ("number", "18", "A: 20\nNo, wait.\nA: $18.00"),
    ("number", "18", "18%"),
    ("number", "18%", "It is 18 %."),
    ("number", "$1,000", "Answer: 1000.0 dollars"),
    ("number", "1000", "so the total is **1,000** km"),
    ("number", "2E+3", "A: 2000"),
    ("number", "-7", "#### -7"),
    ("number", "-7", "**Answer:** −7 °C"),
    ("number", "-7", "-$7"),
    ("number", "0.5", "The answer is .5"),
    ("number", "36", "The answer is 3 * 12 = 36."),
    ("number", "36", "first \\boxed{5}, then \\boxed{36}"),
    ("number", "4", "\\boxed{\\text{4 apples}}"),
    ("number", "18", "Final answer:\n\n18"),
    ("choice", "B", "B"),
    ("choice", "(b)", "b."),
    ("choice", "B", "(B) Paris"),
    ("choice", "B", "B) Paris\nbecause A is no city"),
    ("choice", "B", "I think the answer is B, since C is not."),
    ("choice", "B", "**Answer: (B)** Paris"),
    ("choice", "B", "\\boxed{\\text{B}}"),
    ("choice", "B", "Let me see. A and C are wrong.\nB"),
    ("choice", "B", "I choose (B), the second"),
    ("choice", "A", "A: Paris"),
    ("choice", "C", "A: Apple\nB: Banana\nAnswer: C"),
    ("exact", "New York", "  new\nYORK. "),
    ("exact", "New York", "It is big.\nThe answer is **New York**."),
    ("exact", "answer: x", "answer: x"),
    ("json", '{"a": 1, "b": [true]}', '{"b": [true], "a": 1.0}'),
    ("json", '{"a": 1}', 'Here it is:\n```json\n{"a": 1e0}\n```\n'),
    ("json", "[1]", "```\n[1]```"),
]

WRONG: list[tuple[Match, str, str | None]] = [
    ("number", "18", None),
    ("number", "18", ""),
    ("number", "18", "18 is near, but no.\nA: 19"),
    ("number", "18", "I have 18 eggs. The answer is unknown."),
    ("number", "1", "A: 1/2"),
    ("number", "3", "A: 3.14"),
    ("number", "7", "A: -7"),
    ("number", "5", "A: v5"),
    ("number", "nothing", "nothing"),
    ("number", "3", "three"),
    ("choice", "A", "A dog"),
    ("choice", "I", "I choose (B)"),
    ("choice", "A", "Answer: a dog"),
    ("choice", "E", "e.g. this"),
    ("choice", "B", "Answer: Brussels"),
    ("choice", "B", "either (A) or (B)"),
    ("choice", "?", "?"),
    ("exact", "New York", "New York City"),
    ("exact", "5", "$5"),
    ("exact", ".", "!"),
    ("json", '{"a": 1}', '{"a": true}'),
    ("json", '{"a": 1}', '{"a": "1"}'),
    ("json", '{"a": 1}', '{"a": 1, "b": 2}'),
    ("json", "[1]", "[1, 1]"),
    ("json", "[1]", "no json"),
    ("json", "NaN", "NaN"),
    ("json", "1e99999999999999999999", "1e99999999999999999999"),
]


@pytest.mark.parametrize(("match", "gold", "content"), RIGHT)
def test_right(match: Match, gold: str, content: str) -> None:
    assert is_right(content, Gold(answer=gold, match=match))


@pytest.mark.parametrize(("match", "gold", "content"), WRONG)
def test_wrong(match: Match, gold: str, content: str | None) -> None:
    assert not is_right(content, Gold(answer=gold, match=match))


MEGABYTE = 1_000_000
HOSTILE = [
    "9" * 100_000,
    "1," * (MEGABYTE // 2),
    "A:" * (MEGABYTE // 2),
    "A:\n" * (MEGABYTE // 3),
    "answer" * (MEGABYTE // 6),
    "answer " + " " * MEGABYTE,
    "\\boxed{" * (MEGABYTE // 7),
    "\\boxed{" + "{" * MEGABYTE,
    "(" * MEGABYTE,
    " " * MEGABYTE,
    "[" * MEGABYTE,
    '{"a":' * (MEGABYTE // 5),
    "[" + "9" * MEGABYTE + "]",
    "```" * (MEGABYTE // 3),
    "-$" * (MEGABYTE // 2),
    "1e999999",
    "1e999999999999999999",
    "NaN",
    "sNaN",
    "Infinity",
    "\x00\ud800",
]


@pytest.mark.parametrize("match", ["exact", "number", "choice", "json"])
@pytest.mark.parametrize("content", HOSTILE, ids=lambda c: c[:8])
def test_a_hostile_answer_neither_raises_nor_takes_long(match: Match, content: str) -> None:
    # Quadratic work on a megabyte would not end within the run.
    assert is_right(content, Gold(answer="12", match=match)) is False
    is_right("12", Gold(answer=content, match=match))


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=3
    )
)
def test_a_number_is_right_in_every_spelling(value: object) -> None:
    gold = Gold(answer=str(value), match="number")
    for spelling in (
        f"{value}",
        f"{value:,}",
        f"so\nA: ${value}",
        f"The answer is {value:,} km.",
        f"\\boxed{{{value}}}",
    ):
        assert is_right(spelling, gold)


@given(st.text(), st.text(), st.sampled_from(["exact", "number", "choice", "json"]))
def test_any_text_is_right_or_wrong(content: str, gold: str, match: Match) -> None:
    assert is_right(content, Gold(answer=gold, match=match)) in (True, False)
