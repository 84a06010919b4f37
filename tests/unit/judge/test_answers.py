"""Answers compared with each other."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_judge.answers import agreement, canonical, is_tied, medoid, share, similarity, votes
from fusewire_judge.fusion.case import Said

SCHEMA: dict[str, Any] = {"type": "object"}

CANONICAL = [
    # text, what it says
    ("42", "number:42"),
    (" 42.0 ", "number:42"),
    ("42.", "number:42"),
    ("**42**", "number:42"),
    ("1,000,000", "number:1000000"),
    ("$1,000.50", "number:1000.5"),
    ("-3", "number:-3"),
    ("€ 7", "number:7"),
    ("50%", "number:50"),
    ("0.10", "number:0.1"),
    ("100", "number:100"),
    ("(b)", "choice:B"),
    ("B.", "choice:B"),
    ("b)", "choice:B"),
    ("Paris", "label:paris"),
    ("paris.", "label:paris"),
    ("`New  York`", "label:new york"),
    ("Yes!", "label:yes"),
    ("The answer is 42.", "number:42"),
    ("Answer: (C)", "choice:C"),
    ("Final answer: Paris", "label:paris"),
    ("Let me think.\nSix times seven.\nThe final answer is: 42", "number:42"),
    ("We get \\boxed{42} in the end, which is more than enough.", "number:42"),
    ("I think. The answer is blue.", "label:blue"),
    ("The answer is **42**.", "number:42"),
    ("**Answer:** 42", "number:42"),
    ('"Paris".', "label:paris"),
    ("", None),
    ("   ", None),
    ("**", None),
    ("The capital of France is Paris, a city on the Seine.", None),
    ("one two three four five", None),
    ("two\nlines", None),
    ("x" * 33, None),
    ("The answer is that it depends on many things", None),
]


@pytest.mark.parametrize(("text", "expected"), CANONICAL)
def test_canonical(text: str, expected: str | None) -> None:
    assert canonical(text, None) == expected


JSON = [
    ('{"a": 1, "b": [2]}', 'json:{"a":1,"b":[2]}'),
    ('{"b":[2],"a":1}', 'json:{"a":1,"b":[2]}'),
    ("42", "json:42"),
    ("not JSON", None),
    ("", None),
    ("[" * 100_000, None),
    ('{"a":' * 20_000, None),
]


@pytest.mark.parametrize(("text", "expected"), JSON, ids=[t[:12] for t, _ in JSON])
def test_where_a_schema_was_demanded_json_is_compared(text: str, expected: str | None) -> None:
    assert canonical(text, SCHEMA) == expected


@given(st.text(max_size=200))
def test_canonical_takes_anything(text: str) -> None:
    found = canonical(text, None)

    assert found is None or found.partition(":")[0] in ("number", "choice", "label")
    canonical(text, SCHEMA)


def said(*contents: str, weights: str = "1111111") -> list[Said]:
    return [
        Said(name, float(weight), content, 0)
        for name, weight, content in zip("abcdefg", weights, contents, strict=False)
    ]


def members(groups: dict[str, list[Said]] | None) -> dict[str, str] | None:
    return None if groups is None else {value: "".join(s.member for s in group) for value, group in groups.items()}


VOTES = [
    ("all agree", ("4", "4.0", "Answer: 4"), "111", {"number:4": "abc"}),
    ("most agree", ("4", "5", "4"), "111", {"number:4": "ac", "number:5": "b"}),
    ("weight beats heads", ("4", "5", "4"), "151", {"number:5": "b", "number:4": "ac"}),
    ("heads beat the pool's order at equal weight", ("5", "4", "4"), "211", {"number:4": "bc", "number:5": "a"}),
    ("the pool's order is last", ("5", "4"), "11", {"number:5": "a", "number:4": "b"}),
    ("one open answer opens all", ("4", "It is four, as far as I can tell."), "11", None),
]


@pytest.mark.parametrize(("contents", "weights", "expected"), [row[1:] for row in VOTES], ids=[row[0] for row in VOTES])
def test_votes(contents: tuple[str, ...], weights: str, expected: dict[str, str] | None) -> None:
    found = votes(said(*contents, weights=weights), None)

    assert members(found) == expected
    assert list(found or {}) == list(expected or {})


def test_what_breaks_a_demanded_schema_has_no_vote() -> None:
    assert members(votes(said('{"a":1}', "sorry", '{"a": 1}'), SCHEMA)) == {'json:{"a":1}': "ac"}
    assert votes(said("sorry", "no"), SCHEMA) is None


def test_ties_and_shares() -> None:
    tied = votes(said("4", "5"), None)
    led = votes(said("4", "5", "4"), None)
    weighed = votes(said("4", "5", "4", weights="121"), None)
    assert tied
    assert led
    assert weighed

    assert (is_tied(tied), is_tied(led), is_tied(weighed)) == (True, False, True)
    assert share(tied) == 0.5
    assert share(led) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("", "", 1.0), ("a", "", 0.0), ("The cat", "the CAT!", 1.0), ("a b c", "b c d", 0.5), ("a", "b", 0.0)],
)
def test_similarity(a: str, b: str, expected: float) -> None:
    assert similarity(a, b) == expected


def test_agreement_is_the_mean_over_pairs() -> None:
    assert agreement(said("a b", "a b", "c d")) == pytest.approx(1 / 3)
    assert agreement(said("alone")) == 1.0


def test_the_medoid_is_most_like_the_others() -> None:
    assert medoid(said("blue green", "red blue green", "red blue")).member == "b"
    assert medoid(said("x", "y")).member == "a"
    assert medoid(said("x y", "x", "y", weights="119")).member == "a"
    assert medoid(said("x", "y z", "z", "x w", weights="1191")).member == "b"


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_agreement_and_similarity_are_shares(texts: list[str]) -> None:
    all_said = said(*texts)

    assert 0 <= agreement(all_said) <= 1
    assert medoid(all_said) in all_said
