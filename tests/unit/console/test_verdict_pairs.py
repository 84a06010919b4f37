"""Verdicts beside those of the opposite order."""

import json
from typing import Any

import pytest

from fusewire_console.figures import verdicts


def row(call: str, **values: Any) -> dict[str, Any]:
    return {
        "call": call,
        "kind": "listwise",
        "judge_model": "judge",
        "winner": "alpha",
        "verdict_parse": "strict",
        "void": None,
        "is_consistent": None,
        "shown": '["alpha", "beta"]',
        "swap_of": None,
        "is_by_margin": False,
        "output": None,
        **values,
    }


def test_two_orders_stand_together_once() -> None:
    rows = [
        row("guard-1-1"),
        row("verdict-1-1", swap_of="verdict-1-2", is_consistent=False),
        row("verdict-1-2", swap_of="verdict-1-1", is_consistent=False, winner="beta"),
    ]
    found_pairs = verdicts.pairs(rows)
    assert [[v.call for v in pair.verdicts] for pair in found_pairs] == [
        ["guard-1-1"],
        ["verdict-1-1", "verdict-1-2"],
    ]
    assert [pair.is_consistent for pair in found_pairs] == [None, False]
    assert found_pairs[1].verdicts[0].shown == ("alpha", "beta")


@pytest.mark.parametrize(
    ("output", "sentence", "label"),
    [
        (json.dumps({"reason": "It is right.", "winner": "BB"}), "It is right.", "BB"),
        ("I like the first", "I like the first", None),
        ("[1]", "[1]", None),
        ('{"reason": 1}', '{"reason": 1}', None),
        ("[" * 100_000, "[" * 300, None),
        (None, None, None),
        ("", None, None),
    ],
)
def test_a_judge_s_sentence_is_read_as_far_as_it_can_be(
    output: str | None, sentence: str | None, label: str | None
) -> None:
    (pair,) = verdicts.pairs([row("verdict-1-1", output=output)])
    assert pair.verdicts[0].sentence == sentence
    assert pair.verdicts[0].label == label
