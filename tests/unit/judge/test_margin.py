"""Judges that decide by probabilities: what they like of a place or a letter falls out of the comparison."""

from collections.abc import Callable
from typing import Any

import pytest

from fusewire.contracts import CONTROL, Call, PlannedJudge
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire.testing.factories import make_member
from fusewire_judge.fusion.case import Said
from fusewire_judge.fusion.wording import MOST_ROTATIONS, rotations

Begin = Callable[..., Any]

EDGE = PlannedJudge(model="m-edge", tier="edge", family="edge", by_margin=True)
OWN = EDGE.model_copy(update={"model": "m-a"})


def judged(play: Any, liking: dict[str, float], *, of_first: float = 0.0) -> Any:
    """Each call is answered with log probabilities: what the judge likes of an answer, and of the first place."""
    for call in play.verdict_calls():
        names = play.order(call)
        scores = tuple(liking[name] + (of_first if place == 0 else 0.0) - 20 for place, name in enumerate(names))
        play.say(call.name, call.choices[0], len(play.rounds), choice_logprobs=scores)
    return play


def begun(begin: Begin, **given: Any) -> Any:
    play = begin(**{"judge": EDGE, **given}).says(**OPEN)
    play.asks()
    return play


def test_each_answer_stands_in_each_place_once_and_each_place_has_its_letter() -> None:
    said = [Said(name, 1.0, f"{name} says", 0) for name in "abc"]
    made = rotations(said, 7, "verdict-1")

    assert [sorted(one.members[place] for one in made) for place in range(3)] == [["a", "b", "c"]] * 3
    assert len({one.labels for one in made}) == 1
    assert all(len(label) == 1 for label in made[0].labels)
    assert len({one.fence for one in made}) == 1


def test_of_many_answers_an_order_and_its_opposite_are_asked() -> None:
    said = [Said(f"m{i}", 1.0, f"{i}", 0) for i in range(MOST_ROTATIONS + 1)]
    first, second = rotations(said, 7, "verdict-1")

    assert first.members == second.members[::-1]


def test_the_calls_offer_letters_and_want_no_text(begin: Begin) -> None:
    play = begun(begin)
    calls: list[Call] = play.verdict_calls()

    assert len(calls) == 3
    assert all(len(call.choices) == 3 and call.sampling.response_schema is None for call in calls)
    assert [label for label, _ in play.shown(calls[0])] == list(calls[0].choices)


def test_what_a_judge_likes_of_the_first_place_decides_nothing(begin: Begin) -> None:
    draft = judged(begun(begin), {"a": 0.0, "b": 0.5, "c": 0.2}, of_first=6.0).ends()

    # Each order by itself names what stands first; together they name b.
    assert [one.winner == one.shown[0] for one in draft.verdicts] == [True] * 3
    assert (draft.status, draft.winner) == ("fused", "b")
    assert draft.reason == "preferred with 43% over 3 orders"
    assert draft.degraded == ()
    assert all(len(one.logprobs) == 3 for one in draft.verdicts)


def test_two_answers_are_compared_by_the_sum_of_both_margins(begin: Begin) -> None:
    play = begin(judge=EDGE, members=[make_member("a"), make_member("b")]).says(a=OPEN["a"], b=OPEN["b"])
    play.asks()
    draft = judged(play, {"a": 1.0, "b": 0.0}, of_first=9.0).ends()

    assert draft.winner == "a"
    assert [one.is_consistent for one in draft.verdicts] == [False, False]


def test_a_weak_voice_needs_more_than_a_small_judge_s_leaning(begin: Begin) -> None:
    members = [make_member("a"), make_member("b", 0.25)]

    def winner(liking: float) -> str:
        play = begin(judge=EDGE, members=members).says(a=OPEN["a"], b=OPEN["b"])
        play.asks()
        return str(judged(play, {"a": 0.0, "b": liking}).ends().winner)

    # A quarter of the weight is made up for by odds of four.
    assert (winner(1.3), winner(1.5)) == ("a", "b")


def test_a_judge_that_prefers_the_control_is_void(begin: Begin) -> None:
    play = begun(begin, policy={"control_share": 1.0})
    draft = judged(play, {"a": 0.0, "b": 0.1, "c": 0.2, CONTROL: 3.0}).ends()

    assert {one.void for one in draft.verdicts} == {"picked_control"}
    assert draft.degraded == ("judge_failed:picked_control",)


def test_a_judge_has_no_voice_on_its_own_answer_unless_the_pool_says_so(begin: Begin) -> None:
    shown = [set(play.order(call)) for play in [begun(begin, judge=OWN)] for call in play.verdict_calls()]
    assert shown == [{"b", "c"}] * 2

    whole = begun(begin, judge=OWN.model_copy(update={"sees_own": True}))
    assert [set(whole.order(call)) for call in whole.verdict_calls()] == [{"a", "b", "c"}] * 3
    assert judged(whole, {"a": 1.0, "b": 0.0, "c": 0.0}).ends().winner == "a"


@pytest.mark.parametrize(("said", "why"), [("!engine_failed", "engine_failed"), ("B", "no_probabilities")])
def test_what_cannot_be_read_is_told_and_not_asked_again(begin: Begin, said: str, why: str) -> None:
    play = begun(begin)
    for call in play.verdict_calls():
        play.say(call.name, said, len(play.rounds))
    draft = play.ends()

    assert draft.degraded == (f"judge_failed:{why}",)
    assert draft.rung == "fallback"


def test_one_order_that_failed_leaves_the_others(begin: Begin) -> None:
    play = begun(begin)
    first, *_ = play.verdict_calls()
    play.say(first.name, "!engine_failed", len(play.rounds))
    draft = judged(play, {"a": 0.0, "b": 2.0, "c": 0.0}).ends()

    assert (draft.winner, draft.degraded) == ("b", ("verdict_void:engine_failed",))
