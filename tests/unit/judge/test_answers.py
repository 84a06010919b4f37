"""Answers compared with each other."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_judge.model import MemberAnswer
from fusewire_judge.scoring.answers import (
    agreement,
    agrees_with_others,
    canonical,
    flaw,
    is_tied,
    kind_of,
    medoid,
    posterior,
    share,
    similarity,
    votes,
)

SCHEMA: dict[str, Any] = {"type": "object"}
OPEN = "It depends on whom one asks, and on the day."

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
    ("Six times seven.\nA: 42", "number:42"),
    ("Six times seven.\n#### 42", "number:42"),
    ("A: 42\nThat is all there is to say of it.", None),
    ("-0.0", "number:0"),
    ("1" * 30 + "2", "number:" + "1" * 30 + "2"),
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
    ('{"a": 1.0, "b": [2.0, {"c": 1e1}]}', 'json:{"a":1,"b":[2,{"c":10}]}'),
    ("42", None),
    ('{"a": NaN}', None),
    ('{"a": Infinity}', None),
    ('["a"]', None),
    ("not JSON", None),
    ("", None),
    ("[" * 100_000, None),
    ('{"a":' * 20_000, None),
]


@pytest.mark.parametrize(("text", "expected"), JSON, ids=[t[:12] for t, _ in JSON])
def test_where_a_schema_was_demanded_json_is_compared(text: str, expected: str | None) -> None:
    assert canonical(text, SCHEMA) == expected


BROKEN = [{"$ref": "#/nowhere"}, {"$ref": "https://example.org/x"}, {"type": "no such"}]


@pytest.mark.parametrize("schema", BROKEN, ids=str)
def test_a_schema_that_leads_nowhere_is_satisfied_by_nothing(schema: dict[str, Any]) -> None:
    assert canonical('"a"', schema) is None


@given(st.text(max_size=200))
def test_canonical_takes_anything(text: str) -> None:
    groups = canonical(text, None)

    assert groups is None or groups.partition(":")[0] in ("number", "choice", "label")
    canonical(text, SCHEMA)


def make_answers(*contents: str, weights: str = "1111111") -> list[MemberAnswer]:
    return [
        MemberAnswer(name, float(weight), content, 0)
        for name, weight, content in zip("abcdefg", weights, contents, strict=False)
    ]


def members(groups: dict[str, list[MemberAnswer]]) -> dict[str, str]:
    names = {}
    for value, group in groups.items():
        names[value] = "".join(answer.member for answer in group)
    return names


VOTES = [
    ("all agree", ("4", "4.0", "Answer: 4"), "111", {"number:4": "abc"}),
    ("most agree", ("4", "5", "4"), "111", {"number:4": "ac", "number:5": "b"}),
    ("weight beats heads", ("4", "5", "4"), "151", {"number:5": "b", "number:4": "ac"}),
    (
        "heads beat the pool's order at equal weight",
        ("5", "4", "4"),
        "211",
        {"number:4": "bc", "number:5": "a"},
    ),
    ("the pool's order is last", ("5", "4"), "11", {"number:5": "a", "number:4": "b"}),
    (
        "an open answer has no vote",
        ("4", "It is four, as far as I can tell.", "5"),
        "191",
        {"number:4": "a", "number:5": "c"},
    ),
    ("nobody has", ("It is four, as far as I can tell.",), "1", {}),
]


@pytest.mark.parametrize(
    ("contents", "weights", "expected"), [row[1:] for row in VOTES], ids=[row[0] for row in VOTES]
)
def test_votes(contents: tuple[str, ...], weights: str, expected: dict[str, str]) -> None:
    groups = votes(make_answers(*contents, weights=weights), None)

    assert members(groups) == expected
    assert list(groups) == list(expected)


def test_what_breaks_a_demanded_schema_has_no_vote() -> None:
    assert members(votes(make_answers('{"a":1}', "sorry", '{"a": 1}'), SCHEMA)) == {
        'json:{"a":1}': "ac"
    }
    assert votes(make_answers("sorry", "no"), SCHEMA) == {}


KINDS = [
    ("numbers", ("4", "5"), None, "number"),
    ("the most common kind", ("4", "(b)", "5"), None, "number"),
    ("two of three are closed", ("yes", OPEN, "no"), None, "label"),
    ("one of two is", ("yes", OPEN), None, "open"),
    ("three of five are", ("4", "4", "4", OPEN, OPEN), None, "open"),
    ("none is", (OPEN,), None, "open"),
    ("choices", ("(a)", "b."), None, "choice"),
    ("JSON", ('{"a":1}', "no"), SCHEMA, "json"),
    ("no JSON where it was demanded", ("no", "4"), SCHEMA, "open"),
]


@pytest.mark.parametrize(
    ("contents", "schema", "kind"), [r[1:] for r in KINDS], ids=[r[0] for r in KINDS]
)
def test_kinds(contents: tuple[str, ...], schema: Any, kind: str) -> None:
    assert kind_of(contents, schema) == kind


FLAWS = [
    ("", "empty"),
    (" \n\t ", "empty"),
    ("I'm sorry, but I can't help with that.", "refused"),
    ("I’m sorry, I cannot assist with this request.", "refused"),
    ("As an AI, I am unable to do so.", "refused"),
    ("I apologize, but I won't do that.", "refused"),
    ("Sorry for the delay: it is Paris.", None),
    ("I'm sorry, I can't see it. " + "But let me say more of it. " * 20, None),
    ("You can't do that.", None),
    ("la " * 2000, "looped"),
    ("\n".join(f"Line {n} of a table says {n * n}." for n in range(200)), None),
    ("a" * 999, None),
    ("a" * 1000, "looped"),
]


@pytest.mark.parametrize(("text", "expected"), FLAWS, ids=[repr(text[:30]) for text, _ in FLAWS])
def test_flaws(text: str, expected: str | None) -> None:
    assert flaw(text) == expected


AGREED = [
    # what, contents, who, agrees_with_others
    ("with two others", ("4", "4", "4"), "a", True),
    ("with one other of two", ("4", "4", "5"), "a", None),
    ("against two others", ("5", "4", "4"), "a", False),
    ("two answers lead alike", ("4", "4", "5", "5"), "a", None),
    ("its own voice is left out", ("4", "4", "4", "5", "5"), "a", None),
    ("with two of four others", ("4", "4", "4", "5", "6"), "a", True),
    ("others tie", ("6", "4", "4", "5", "5"), "a", None),
    ("no vote", (OPEN, "4", "4"), "a", None),
]


@pytest.mark.parametrize(
    ("contents", "who", "expected"), [r[1:] for r in AGREED], ids=[r[0] for r in AGREED]
)
def test_agreed(contents: tuple[str, ...], who: str, expected: bool | None) -> None:
    assert agrees_with_others(who, votes(make_answers(*contents), None)) is expected


POSTERIOR = [
    (2, 0, 0.875),
    (3, 0, 0.9375),
    (4, 0, 0.9688),
    (3, 1, 0.8125),
    (4, 1, 0.8906),
    (5, 0, 0.9844),
    (1, 1, 0.5),
]


@pytest.mark.parametrize(("leading", "trailing", "expected"), POSTERIOR)
def test_the_posterior_of_a_lead(leading: int, trailing: int, expected: float) -> None:
    assert posterior(leading, trailing) == pytest.approx(expected, abs=5e-5)


def test_ties_and_shares() -> None:
    tie = votes(make_answers("4", "5"), None)
    clear_lead = votes(make_answers("4", "5", "4"), None)
    weight_tie = votes(make_answers("4", "5", "4", weights="121"), None)

    assert (is_tied(tie), is_tied(clear_lead), is_tied(weight_tie)) == (True, False, True)
    assert share(tie) == 0.5
    assert share(clear_lead) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "", 1.0),
        ("a", "", 0.0),
        ("The cat", "the CAT!", 1.0),
        ("a b c", "b c d", 0.5),
        ("a", "b", 0.0),
    ],
)
def test_similarity(a: str, b: str, expected: float) -> None:
    assert similarity(a, b) == expected


def test_agreement_is_the_mean_over_pairs() -> None:
    assert agreement(make_answers("a b", "a b", "c d")) == pytest.approx(1 / 3)
    assert agreement(make_answers("alone")) == 1.0


def test_the_medoid_is_most_like_the_others() -> None:
    assert medoid(make_answers("blue green", "red blue green", "red blue")).member == "b"
    assert medoid(make_answers("x", "y")).member == "a"
    assert medoid(make_answers("x y", "x", "y", weights="112")).member == "a"


def test_of_two_the_heavier_is_the_medoid() -> None:
    assert medoid(make_answers("red green", "red blue", weights="12")).member == "b"
    assert medoid(make_answers("red green", "red blue", weights="21")).member == "a"


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5))
def test_agreement_and_similarity_are_shares(texts: list[str]) -> None:
    all_said = make_answers(*texts)

    assert 0 <= agreement(all_said) <= 1
    assert medoid(all_said) in all_said
