"""Debate: members that disagree answer again, then the whole course of it is counted."""

from collections.abc import Callable
from typing import Any

from fusewire.contracts import Sampling
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire.testing.factories import make_member

Begin = Callable[..., Any]


def test_a_debate_where_all_agree_is_none(begin: Begin) -> None:
    draft = begin("debate").says(a="4", b="4.0", c="The answer is 4").ends()

    assert (draft.status, draft.winner) == ("voted", "a")
    assert draft.reason == "vote, 3 of 3 say the same (no disagreement, no debate)"


def test_open_answers_that_are_alike_are_judged_without_a_debate(begin: Begin) -> None:
    text = "Paris is the capital of France and lies on the Seine"
    play = begin("debate").says(a=text, b=text + ".", c=text + "!")

    assert list(play.asks()) == ["verdict"]
    assert play.replies(verdict=play.verdict_for("a")).ends().reason == f"{play.REASON} (no disagreement, no debate)"


def test_members_that_disagree_see_the_others_and_answer_again(begin: Begin) -> None:
    play = begin("debate", Sampling(seed=3, temperature=0.5)).says(a="4", b="5", c="6")

    asked = play.asks()

    assert list(asked) == ["a", "b", "c"]
    for call in play.rounds[0].calls:
        assert (call.kind, call.member, call.model) == ("debate", call.name, f"m-{call.name}")
        assert (call.sampling.seed, call.sampling.temperature) == (None, 0.5)
    draft = play.replies(a="5", b="5", c="5").ends()
    assert (draft.status, draft.content, draft.winner) == ("voted", "5", "a")
    assert draft.reason == "vote, 4 of 6 say the same (after 1 debate round)"


def test_nobody_is_shown_its_own_answer_as_another_s(begin: Begin) -> None:
    play = begin("debate").says(**OPEN)

    for name, text in play.asks().items():
        others = text.partition("Others answered")[2]
        assert OPEN[name] not in others
        assert all(said in others for other, said in OPEN.items() if other != name)


def test_a_debate_ends_when_nobody_changes(begin: Begin) -> None:
    play = begin("debate", members="abc").says(a="4", b="5", c="5")
    play.asks()

    draft = play.replies(a="4", b="5", c="5").ends()

    assert (draft.status, draft.winner) == ("voted", "b")
    assert draft.reason == "vote, 4 of 6 say the same (after 1 debate round)"


def test_a_debate_has_two_rounds_at_most(begin: Begin) -> None:
    play = begin("debate").says(a="4", b="5", c="6")
    play.asks()
    play.replies(a="5", b="6", c="4")
    play.asks()
    play.replies(a="7", b="8", c="4")

    draft = play.ends()

    assert (draft.status, draft.content, draft.winner) == ("voted", "4", "c")
    assert draft.reason == "vote, 3 of 9 say the same (after 2 debate rounds)"


def test_a_debate_of_one_round_has_one(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1).says(a="4", b="5", c="6")
    play.asks()
    play.replies(a="5", b="5", c="6")

    assert play.ends().reason == "vote, 3 of 6 say the same (after 1 debate round)"


def test_the_vote_is_over_the_whole_course_so_that_the_talked_out_still_counts(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1).says(a="4", b="4", c="5")
    play.asks()

    draft = play.replies(a="4", b="5", c="6").ends()

    assert (draft.content, draft.winner) == ("4", "a")
    assert draft.reason == "vote, 3 of 6 say the same (after 1 debate round)"


def test_an_answer_that_nobody_holds_any_more_can_win(begin: Begin) -> None:
    members = [make_member("a", 2), make_member("b", 2), make_member("c")]
    play = begin("debate", debate_rounds=1, members=members).says(a="4", b="4", c="5")
    play.asks()

    draft = play.replies(a="6", b="7", c="5").ends()

    assert (draft.content, draft.winner) == ("4", "a")
    assert {one.member: (one.content, one.round) for one in draft.said}["a"] == ("4", 0)


def test_a_member_whose_reply_is_missing_or_failed_keeps_its_answer(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1).says(a="4", b="5", c="6")
    play.asks()
    play.replies(a="5", b="!server_error")
    assert play.waits() == 60

    draft = play.later(60).ends()

    assert {one.member: (one.content, one.round) for one in draft.said} == {"a": ("5", 1), "b": ("5", 0), "c": ("6", 0)}
    assert (draft.content, draft.agreement) == ("5", 0.5)


def test_a_debate_that_stays_open_is_judged(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1).says(**OPEN)
    play.asks()
    play.replies(**{name: text + " Truly." for name, text in OPEN.items()})

    assert list(play.asks()) == ["verdict"]
    draft = play.replies(verdict=play.verdict_for("b")).ends()

    assert (draft.status, draft.winner, draft.content) == ("fused", "b", OPEN["b"] + " Truly.")
    assert draft.reason == f"{play.REASON} (after 1 debate round)"


def test_a_debate_without_a_judge_ends_by_likeness(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1, judge=None).says(**OPEN)
    play.asks()

    draft = play.replies(**OPEN).ends()

    assert (draft.status, draft.rung) == ("voted", None)
