"""Best-of: closed answers are voted, open ones judged."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fusewire.testing.factories import JUDGE, make_member
from fusewire.testing.factories import OPEN_ANSWERS as OPEN

Begin = Callable[..., Any]


def test_closed_answers_are_voted_without_a_judge_call(begin: Begin) -> None:
    draft = begin().says(a="4", b="5", c="The answer is 4.").ends()

    assert (draft.status, draft.content, draft.winner) == ("voted", "4", "a")
    assert draft.reason == "vote, 2 of 3 say the same"
    assert draft.agreement == pytest.approx(2 / 3)
    assert (draft.rung, draft.shown, draft.degraded) == (None, (), ())


def test_weights_are_votes(begin: Begin) -> None:
    members = [make_member("a"), make_member("b", 3), make_member("c")]

    assert begin(members=members).says(a="4", b="5", c="4").ends().winner == "b"


def test_a_vote_is_taken_without_those_who_are_missing(begin: Begin) -> None:
    draft = begin().says(a="4", b="4").later(45).ends()

    assert (draft.status, draft.degraded) == ("voted", ("missing:c",))


def test_a_tie_goes_to_the_judge(begin: Begin) -> None:
    play = begin(members="ab").says(a="4", b="5")

    asked = play.asks()

    assert list(asked) == ["verdict"]
    draft = play.replies(verdict=play.verdict_for("b")).ends()
    assert (draft.status, draft.winner, draft.rung) == ("fused", "b", "strict")


def test_a_tie_without_a_judge_goes_to_the_first_of_the_pool(begin: Begin) -> None:
    draft = begin(members="ab", judge=None).says(b="5", a="4").ends()

    assert (draft.status, draft.winner, draft.reason) == ("voted", "a", "tie, the first of the pool")


def test_open_answers_are_judged(begin: Begin) -> None:
    play = begin().says(**OPEN)

    shown = play.asks()["verdict"]

    for text in OPEN.values():
        assert text in shown
    for member in play.plan.members:
        assert member.model not in shown
    (call,) = play.rounds[0].calls
    assert (call.kind, call.model, call.member) == ("verdict", JUDGE.model, None)
    assert (call.sampling.temperature, call.sampling.max_tokens) == (0, 256)
    assert call.sampling.response_schema is not None
    assert call.sampling.response_schema["properties"]["winner"]["enum"] == ["A", "B", "C"]

    draft = play.replies(verdict=play.verdict_for("b")).ends()

    assert (draft.status, draft.content, draft.winner) == ("fused", OPEN["b"], "b")
    assert (draft.reason, draft.rung, draft.degraded) == (play.REASON, "strict", ())
    assert sorted(draft.shown) == ["a", "b", "c"]
    assert draft.shown.index("b") == "ABC".index(play.label_of("b"))
    assert draft.agreement is not None
    assert 0 < draft.agreement < 0.5


def test_the_order_shown_is_decided_by_the_seed(begin: Begin) -> None:
    def shown(seed: int) -> tuple[str, ...]:
        play = begin(seed=seed).says(**OPEN)
        play.asks()
        found: tuple[str, ...] = play.replies(verdict=play.verdict_for("a")).ends().shown
        return found

    assert shown(1) == shown(1)
    assert len({shown(seed) for seed in range(12)}) > 1


def test_open_answers_without_a_judge_are_chosen_by_likeness(begin: Begin) -> None:
    texts = {"a": "red green blue stripes everywhere", "b": "red green blue", "c": "red green dots in rows of five"}

    draft = begin(judge=None).says(**texts).ends()

    assert (draft.status, draft.winner, draft.rung) == ("voted", "b", None)
    assert draft.reason == "no judge, the answer most like the others"
    assert draft.degraded == ()


def test_a_repaired_verdict_says_so(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()

    draft = play.replies(verdict=f"```json\n{play.verdict_for('c')}\n```").ends()

    assert (draft.status, draft.winner, draft.rung) == ("fused", "c", "repaired")


def test_an_invalid_verdict_is_asked_for_once_more(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()
    play.replies(verdict="I like the first.")

    assert list(play.asks()) == ["verdict-again"]
    assert play.rounds[1].calls[0].messages == play.rounds[0].calls[0].messages
    draft = play.replies(verdict_again=play.verdict_for("c")).ends()

    assert (draft.status, draft.winner, draft.rung) == ("fused", "c", "reasked")
    assert draft.degraded == ()


INVALID = [
    "I like the first.",
    '{"winner": "A"}',
    '{"reason": "It is simply the best.", "winner": "Z"}',
    "!server_error",
]


@pytest.mark.parametrize("again", INVALID)
def test_after_the_second_invalid_verdict_a_rule_decides(begin: Begin, again: str) -> None:
    play = begin().says(**OPEN)
    play.asks()
    play.replies(verdict="I like the first.")
    play.asks()

    draft = play.replies(verdict_again=again).ends()

    reason = {"I": "not_json", "{": "schema_mismatch", "!": "server_error"}[again[0]]
    assert (draft.status, draft.rung) == ("voted", "fallback")
    assert draft.degraded == (f"judge_failed:{reason}",)
    assert draft.reason == "no usable verdict, the answer most like the others"
    assert draft.winner in OPEN
    assert len(draft.shown) == 3


def test_a_verdict_for_nobody_is_void(begin: Begin) -> None:
    play = begin(members="ab").says(a=OPEN["a"], b=OPEN["b"])
    play.asks()

    play.replies(verdict=json.dumps({"reason": play.REASON, "winner": "C"}))

    assert list(play.asks()) == ["verdict-again"]


def test_a_judge_that_fails_is_not_asked_again(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()

    draft = play.replies(verdict="!insufficient_quota").ends()

    assert (draft.status, draft.rung, draft.degraded) == ("voted", "fallback", ("judge_failed:insufficient_quota",))


def test_a_silent_judge_is_waited_for_until_the_deadline(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()
    assert play.later(59).waits() == 60

    draft = play.later(60).ends()

    assert (draft.status, draft.degraded) == ("voted", ("judge_failed:no_answer",))


def test_a_verdict_that_comes_with_the_deadline_still_counts(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()

    assert play.later(61).replies(verdict=play.verdict_for("b")).ends().winner == "b"
