"""Codes of outcomes as sentences."""

from typing import Any, get_args

import pytest

from fusewire.contracts.degraded import DegradedCode, DegradedReason
from fusewire.contracts.outcome import ClosedBy, Guard
from fusewire_console.figures import analysis, explanations

OUTCOME: dict[str, Any] = {
    "closed_by": None,
    "hedges": 0,
    "verdict_parse": None,
    "guard": None,
    "missing_weight": 0.0,
    "is_replay": False,
}


@pytest.mark.parametrize("code", get_args(DegradedCode))
def test_each_reason_has_a_sentence(code: DegradedCode) -> None:
    (sentence,) = explanations.degraded([DegradedReason(code, "gpt", "timeout")])
    assert sentence != f"{code}:gpt:timeout"
    assert sentence.endswith(".")
    assert "{" not in sentence


@pytest.mark.parametrize("closed_by", get_args(ClosedBy))
def test_each_end_of_a_panel_has_a_sentence(closed_by: str) -> None:
    (sentence,) = explanations.ending({**OUTCOME, "closed_by": closed_by})
    assert sentence != f"The panel closed because {closed_by}."


@pytest.mark.parametrize("guard", get_args(Guard))
def test_each_guard_has_a_sentence(guard: str) -> None:
    assert len(explanations.ending({**OUTCOME, "guard": guard})) == 1


def test_what_a_member_is_called_is_never_formatted() -> None:
    assert explanations.degraded(["failed:{subject.__class__}:{0}"]) == [
        "{subject.__class__} failed: {0}."
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ("text", []),
        ({"consensus": "text"}, []),
        ({"consensus": [1, None, "yes"]}, [("What all say", ["yes"])]),
        (
            {
                "contradictions": [
                    {"topic": "date", "stances": [{"model": "a", "stance": "May"}, {"model": "b"}]}
                ],
                "partial_coverage": [{"models": ["a", "b"], "point": "cost"}],
            },
            [
                ("Where they contradict each other", ["date: a: May; b"]),
                ("What only some say", ["a, b: cost"]),
            ],
        ),
    ],
)
def test_a_judge_s_comparison_of_any_form_becomes_lines(value: object, expected: object) -> None:
    assert analysis.lines(value) == expected
