"""Merge: the judge compares the answers, then writes one from all of them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fusewire.contracts import Sampling
from fusewire.testing.factories import JUDGE
from fusewire.testing.factories import OPEN_ANSWERS as OPEN

Begin = Callable[..., Any]


ANALYSIS: dict[str, Any] = {
    "consensus": ["There is a capital."],
    "contradictions": [
        {"topic": "which", "stances": [{"model": "A", "stance": "Paris"}, {"model": "Q", "stance": "?"}]}
    ],
    "partial_coverage": [{"models": ["B", "c"], "point": "rivers"}],
    "unique_insights": [{"model": "a", "insight": "the Seine"}],
    "blind_spots": [],
}


def test_merge_analyses_then_writes(begin: Begin) -> None:
    play = begin("merge", Sampling(temperature=1.0, seed=3, max_tokens=99)).says(**OPEN)

    assert list(play.asks()) == ["analysis"]
    play.replies(analysis=json.dumps(ANALYSIS))
    written = play.asks()["write"]
    (call,) = play.rounds[1].calls
    assert (call.kind, call.model, call.member) == ("write", JUDGE.model, None)
    assert (call.sampling.temperature, call.sampling.seed, call.sampling.max_tokens) == (0.0, None, 99)
    assert "There is a capital." in written
    draft = play.replies(write="Paris, on the Seine.").ends()

    assert (draft.status, draft.content, draft.winner) == ("fused", "Paris, on the Seine.", None)
    assert (draft.reason, draft.rung, draft.degraded) == ("merged from 3 answers", "strict", ())
    assert len(draft.said) == 3


def test_the_analysis_names_members_where_it_had_letters(begin: Begin) -> None:
    play = begin("merge").says(**OPEN)
    play.asks()
    play.replies(analysis=json.dumps(ANALYSIS))
    play.asks()

    draft = play.replies(write="Paris.").ends()

    first, second, third = draft.shown
    assert draft.analysis == {
        **ANALYSIS,
        "contradictions": [
            {"topic": "which", "stances": [{"model": first, "stance": "Paris"}, {"model": "unknown", "stance": "?"}]}
        ],
        "partial_coverage": [{"models": [second, third], "point": "rivers"}],
        "unique_insights": [{"model": first, "insight": "the Seine"}],
    }


@pytest.mark.parametrize("mode", ["merge", "debate"])
def test_closed_answers_that_agree_are_voted_in_every_mode(begin: Begin, mode: str) -> None:
    draft = begin(mode).says(a="4", b="4", c="4").ends()

    assert (draft.status, draft.content) == ("voted", "4")


def test_merge_votes_over_closed_answers(begin: Begin) -> None:
    assert begin("merge").says(a="4", b="5", c="5").ends().winner == "b"


def test_merge_without_a_judge_chooses(begin: Begin) -> None:
    draft = begin("merge", judge=None).says(**OPEN).ends()

    assert (draft.status, draft.reason) == ("voted", "no judge to merge, the answer most like the others")


def test_merge_writes_without_an_analysis_that_cannot_be_read(begin: Begin) -> None:
    play = begin("merge").says(**OPEN)
    play.asks()
    play.replies(analysis="nonsense")
    assert list(play.asks()) == ["analysis-again"]
    play.replies(analysis_again="nonsense")
    play.asks()

    draft = play.replies(write="Paris.").ends()

    assert (draft.status, draft.content, draft.rung) == ("fused", "Paris.", "fallback")
    assert draft.degraded == ("analysis_failed:not_json",)
    assert draft.analysis is None


def test_a_merge_that_was_cut_says_so(begin: Begin) -> None:
    play = begin("merge").says(**OPEN)
    play.asks()
    play.replies(analysis=json.dumps(ANALYSIS))
    play.asks()
    play.hear(play.spoken(2, "write", "Paris is", finish_reason="length"))

    draft = play.ends()

    assert (draft.status, draft.degraded) == ("fused", ("merge_cut_at_length",))


@pytest.mark.parametrize(("reply", "why"), [("!server_error", "server_error"), (" ", "no_answer")])
def test_a_merge_that_fails_falls_back_to_an_answer(begin: Begin, reply: str, why: str) -> None:
    play = begin("merge").says(**OPEN)
    play.asks()
    play.replies(analysis=json.dumps(ANALYSIS))
    play.asks()

    draft = play.replies(write=reply).ends()

    assert (draft.status, draft.rung, draft.degraded) == ("voted", "fallback", (f"merge_failed:{why}",))
    assert draft.winner in OPEN
    assert draft.analysis is not None


def test_a_merge_whose_writer_is_silent_falls_back_at_the_deadline(begin: Begin) -> None:
    play = begin("merge").says(**OPEN)
    play.asks()
    play.replies(analysis=json.dumps(ANALYSIS))
    play.asks()
    assert play.waits() == 60

    assert play.later(60).ends().degraded == ("merge_failed:no_answer",)
