"""Words that an answer has and another one lacks."""

from difflib import SequenceMatcher
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_console.figures.differences import (
    MOST_WORDS,
    TextRun,
    common_positions,
    compare,
    words,
)

FEW_WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def marked(text: str, reference: str) -> str:
    comparison = compare(text, reference)
    assert comparison is not None
    return "".join(f"[{run.text}]" if run.is_own else run.text for run in comparison.runs)


def longest(first: list[str], second: list[str]) -> int:
    """The length of a longest common subsequence, by the textbook's table."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for place, other in enumerate(second):
            row.append(lengths[place] + 1 if word == other else max(row[-1], lengths[place + 1]))
        lengths = row
    return lengths[-1]


@given(FEW_WORDS, FEW_WORDS)
def test_the_words_in_common_are_a_longest_common_subsequence(
    first: list[str], second: list[str]
) -> None:
    positions = common_positions(first, second)
    assert len(positions) == longest(first, second)
    rest = iter(second)
    assert all(first[place] in rest for place in sorted(positions)), "it is a subsequence"


@given(st.text(), st.text())
def test_the_runs_are_the_whole_text_in_order(text: str, reference: str) -> None:
    comparison = compare(text, reference)
    assert comparison is not None
    assert "".join(run.text for run in comparison.runs) == text
    assert all(run.text for run in comparison.runs)
    assert all(run.is_own != next_run.is_own for run, next_run in pairwise(comparison.runs))
    assert comparison.n_own + len(words(reference)) == (comparison.n_lacking + comparison.n_words)


@given(FEW_WORDS, FEW_WORDS)
def test_it_finds_at_least_what_difflib_finds(first: list[str], second: list[str]) -> None:
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    found = sum(block.size for block in matcher.get_matching_blocks())
    assert len(common_positions(first, second)) >= found


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("The answer is 43.", "The answer is 42.", "The answer is [43.]"),
        ("THE answer, is: **42**", "the answer is 42", "THE answer, is: **42**"),
        ("a b c d e f g", "a x c d e f g", "a [b] c d e f g"),
        ("x a y", "a", "[x a y]"),  # a single word in common between two marks
        ("東京は大きい", "東京は小さい", "東京は[大き]い"),
        ("שלום עולם", "שלום", "שלום [עולם]"),
        ("e\u0301te\u0301 chaud", "e\u0301te\u0301 froid", "e\u0301te\u0301 [chaud]"),
        ("", "a", ""),
        ("a", "", "[a]"),
    ],
)
def test_marks(text: str, reference: str, expected: str) -> None:
    assert marked(text, reference) == expected


def test_counts_are_of_words_and_not_of_marks() -> None:
    comparison = compare("x a y", "a b")
    assert comparison is not None
    assert (comparison.n_words, comparison.n_own, comparison.n_lacking) == (3, 2, 1)
    assert comparison.runs == (TextRun("x a y", is_own=True),)


@pytest.mark.parametrize(("n_own", "is_unlike"), [(20, False), (25, True)])
def test_a_text_of_which_nearly_all_differs_is_unlike(n_own: int, is_unlike: bool) -> None:
    comparison = compare("x " * n_own + "a " * 10, "a " * 10)
    assert comparison is not None
    assert comparison.is_unlike is is_unlike
    short = compare("43", "42")
    assert short is not None
    assert not short.is_unlike, "one word is marked"


def test_long_texts_are_not_compared() -> None:
    assert compare("a " * MOST_WORDS, "a") is not None
    assert compare("a " * (MOST_WORDS + 1), "a") is None
    assert compare("a", "a " * (MOST_WORDS + 1)) is None
