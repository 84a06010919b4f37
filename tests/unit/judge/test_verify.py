"""Verify: each distinct answer is checked on its own, and what is known before counts too."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fusewire.contracts import CONTROL, PlannedJudge
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire.testing.factories import make_member
from fusewire_judge.judging.checks import most_swing

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
Juror = Callable[[str], PlannedJudge]

EDGE = PlannedJudge(model="m-edge", tier="edge", family="edge", by_margin=True)


def begin_verify(begin: Begin, answers: dict[str, str], **fields: Any) -> "ScriptedFusion":
    return begin("verify", **fields).says(**answers)


def shown(play: "ScriptedFusion") -> list[str]:
    """Whose answers are checked, in the order of the calls."""
    return ["".join(play.order(call)) for call in play.check_calls()]


# -- what is asked ------------------------------------------------------------------------


def test_each_distinct_answer_is_checked_on_its_own(begin: Begin) -> None:
    play = begin_verify(begin, OPEN)

    texts = play.asks()

    assert list(texts) == ["check-1-1-1", "check-1-2-1", "check-1-3-1"]
    assert shown(play) == ["a", "b", "c"]
    for call, (name, answer) in zip(play.check_calls(), OPEN.items(), strict=True):
        assert play.prompt.messages[0].content in texts[call.name]
        assert [text for _, text in play.shown_texts(call)] == [answer], name
    marks = {play.shown_texts(call)[0][0] for call in play.check_calls()}
    assert len(marks) == 3, "no answer can guess the fence of another"


def test_answers_that_say_the_same_are_one(begin: Begin) -> None:
    play = begin_verify(begin, {"a": "4", "b": "The answer is 4.", "c": "5"})

    play.asks()

    assert shown(play) == ["a", "c"]


def test_nothing_is_checked_where_all_say_the_same(begin: Begin) -> None:
    draft = begin_verify(begin, {"a": "4", "b": "4.0", "c": "The answer is 4"}).ends()
    assert (draft.status, draft.winner, draft.verdicts) == ("voted", "a", ())
    assert draft.reason == "all say the same, nothing to check"

    text = "Paris, on the Seine, is the capital of France; it has been so for centuries."
    draft = begin_verify(begin, dict.fromkeys("abc", text)).ends()
    assert (draft.status, draft.content) == ("voted", text)


def test_no_judge_is_asked_where_no_check_could_change_the_choice(begin: Begin) -> None:
    members = [make_member("a", 9.0), make_member("b"), make_member("c")]

    draft = begin_verify(begin, {"a": "4", "b": "5", "c": "6"}, members=members).ends()

    assert (draft.winner, draft.status) == ("a", "voted")
    assert draft.reason == "so probable that no check could change it"


def test_an_answer_is_checked_as_often_as_the_pool_says(begin: Begin) -> None:
    play = begin_verify(begin, {"a": "4", "b": "5"}, members="ab", policy={"checks": 3})

    assert list(play.asks()) == [f"check-1-{n}-{k}" for n in (1, 2) for k in (1, 2, 3)]


def test_a_jury_checks_together_and_nobody_its_own(begin: Begin, juror: Juror) -> None:
    jury = (juror("m-a"), juror("other"))
    play = begin_verify(begin, {"a": "4", "b": "5", "c": "6"}, jury=jury)

    play.asks()

    assert [play.order(call) for call in play.check_calls("m-a")] == [["b"], ["c"]]
    assert [play.order(call) for call in play.check_calls("other")] == [["a"], ["b"], ["c"]]


def test_where_all_answers_are_its_own_a_judge_checks_them(begin: Begin, juror: Juror) -> None:
    members = [make_member(name, model="m") for name in "ab"]
    play = begin_verify(begin, {"a": "4", "b": "5"}, members=members, judge=juror("m"))

    play.asks()

    assert shown(play) == ["a", "b"]


def test_a_vote_is_not_stopped_early_unless_all_agree(begin: Begin) -> None:
    members = [make_member("a", 2.0), make_member("b"), make_member("c", 0.5)]

    assert begin("verify", members=members).says(a="4", b="5").waits() > 0
    assert begin("best-of", members=members).says(a="4", b="5").closed_by() == "certain"
    assert begin("verify", members="abcd").says(a="4", b="4", c="4").closed_by() == "likely"


# -- what is chosen -----------------------------------------------------------------------

ONE = {"a": "4", "b": "5", "c": "6"}
PAIR = {"a": "4", "b": "4", "c": "5"}
CHOICES = [
    # what, answers, weights, who passes, who wins
    ("the only one that passes", ONE, {}, "b", "b"),
    ("a pass outweighs one more vote", PAIR, {}, "c", "c"),
    ("votes decide among those that pass", PAIR, {}, "ac", "a"),
    ("and where none does", PAIR, {}, "", "a"),
    ("a pass outweighs a better record", ONE, {"a": 2.0}, "b", "b"),
    ("a better record decides where both pass", ONE, {"a": 2.0}, "ab", "a"),
    ("a tie goes to the best record", ONE, {"c": 1.01}, "abc", "c"),
    ("open: the only one that passes", OPEN, {}, "c", "c"),
]


@pytest.mark.parametrize(
    ("answers", "weights", "passing", "winner"),
    [c[1:] for c in CHOICES],
    ids=[c[0] for c in CHOICES],
)
def test_the_most_probable_answer_wins(
    begin: Begin, answers: dict[str, str], weights: dict[str, float], passing: str, winner: str
) -> None:
    members = [make_member(name, weights.get(name, 1.0)) for name in "abc"]
    play = begin_verify(begin, answers, members=members)
    play.asks()

    draft = play.checks(passing).ends()

    assert (draft.winner, draft.status, draft.parse_stage) == (winner, "selected", "strict")
    assert draft.content == answers[winner]


def test_the_odds_of_open_answers_count(begin: Begin) -> None:
    members = [make_member("a", learned={"open": 4.0}), make_member("b", learned={"open": 0.25})]
    play = begin_verify(begin, {"a": OPEN["a"], "b": OPEN["b"]}, members=members)

    assert play.ends().reason == "so probable that no check could change it"

    closer = [make_member("a", learned={"open": 2.0}), make_member("b", learned={"open": 0.8})]
    play = begin_verify(begin, {"a": OPEN["a"], "b": OPEN["b"]}, members=closer)
    play.asks()
    assert play.checks("ab").ends().winner == "a"


def test_samples_of_one_judge_are_one_opinion(begin: Begin) -> None:
    """Two of three passes are less than one of one."""
    play = begin_verify(begin, {"a": "4", "b": "5"}, members="ab", policy={"checks": 3})
    play.asks()
    for call, passes in zip(play.check_calls(), (True, True, False, True, True, True), strict=True):
        play.say(call.name, play.check(passes=passes), 1)

    draft = play.ends()

    assert draft.winner == "b"
    assert draft.reason == f"{play.REASON} (passed 3 of 3 checks)"


def test_the_reason_says_how_many_checks_it_passed(begin: Begin) -> None:
    play = begin_verify(begin, PAIR)
    play.asks()
    assert play.checks("").ends().reason == "passed 0 of 1 check, and no other answer is likelier"


def test_what_was_not_checked_may_win(begin: Begin, juror: Juror) -> None:
    play = begin_verify(begin, ONE, judge=juror("m-a"))
    play.asks()
    assert play.checks("").ends().reason == "not checked, and more probable than what was"


# -- rules --------------------------------------------------------------------------------

WRONG = "3 * 4 = 15, so the answer is:\nA: 15"
RIGHT = "3 * 4 = 12, so the answer is:\nA: 12"


def test_a_fault_by_rule_counts_before_the_judge_is_asked(begin: Begin) -> None:
    play = begin_verify(begin, {"a": WRONG, "b": RIGHT}, members="ab")
    play.asks()
    assert play.checks("ab").ends().winner == "b"


def test_of_those_that_say_the_same_one_without_a_fault_is_checked(begin: Begin) -> None:
    answers = {"a": "3 * 4 = 13\nA: 12", "b": RIGHT, "c": "A: 15"}
    play = begin_verify(begin, answers)

    play.asks()

    assert shown(play) == ["b", "c"]
    draft = play.checks("b").ends()
    assert (draft.winner, draft.content) == ("b", RIGHT)


def test_without_a_judge_the_rules_decide_alone(begin: Begin) -> None:
    draft = begin_verify(begin, {"a": WRONG, "b": RIGHT}, members="ab", judge=None).ends()

    assert (draft.winner, draft.status) == ("b", "voted")
    assert draft.reason == "no judge, the most probable answer"


# -- judges that fail ---------------------------------------------------------------------


def test_without_a_check_that_counts_the_vote_stands_and_is_degraded(begin: Begin) -> None:
    play = begin_verify(begin, PAIR)
    play.asks()
    draft = play.replies(check_1_1_1="!server_error", check_1_2_1="!server_error").ends()

    assert (draft.winner, draft.status, draft.parse_stage) == ("a", "voted", "fallback")
    assert draft.degraded == ("judge_failed:server_error",)
    assert [verdict.void for verdict in draft.verdicts] == ["server_error"] * 2


def test_what_cannot_be_read_is_asked_once_more(begin: Begin) -> None:
    play = begin_verify(begin, PAIR)
    play.asks()
    play.replies(check_1_1_1="It looks right to me.", check_1_2_1=play.check(passes=False))

    assert list(play.asks()) == ["check-1-1-1-again"]

    draft = play.replies(check_1_1_1_again=play.check(passes=True)).ends()
    assert (draft.winner, draft.parse_stage, draft.degraded) == ("a", "reasked", ())


def test_a_judge_that_passes_a_control_is_void(begin: Begin) -> None:
    play = begin_verify(begin, PAIR, policy={"control_share": 1.0})
    play.asks()
    assert play.order(play.check_calls()[-1]) == [CONTROL]

    draft = play.checks(f"c{CONTROL}").ends()

    assert (draft.winner, draft.degraded) == ("a", ("judge_failed:picked_control",))
    control = draft.verdicts[-1]
    assert (control.shown, control.winner) == ((CONTROL,), CONTROL)
    assert {verdict.void for verdict in draft.verdicts} == {"picked_control"}

    play = begin_verify(begin, PAIR, policy={"control_share": 1.0})
    play.asks()
    assert play.checks("c").ends().winner == "c"


def test_after_the_deadline_the_vote_stands(begin: Begin) -> None:
    play = begin_verify(begin, PAIR)
    play.asks()

    draft = play.later(61).ends()

    assert (draft.winner, draft.degraded) == ("a", ("judge_failed:no_answer",))


# -- what is stored -----------------------------------------------------------------------


def test_a_check_is_stored_as_a_verdict_on_one_answer(begin: Begin) -> None:
    play = begin_verify(begin, {"a": "4", "b": "5"}, members="ab")
    play.asks()
    outcome = play.checks("b").outcome()

    said = [(v.call, v.kind, v.shown, v.winner, v.void) for v in outcome.verdicts]
    assert said == [
        ("check-1-1-1", "check", ("a",), None, None),
        ("check-1-2-1", "check", ("b",), "b", None),
    ]
    assert (outcome.mode, outcome.judge_model, outcome.swap_consistent) == (
        "verify",
        "m-judge",
        None,
    )


# -- judges by margin ---------------------------------------------------------------------


def test_a_judge_by_margin_says_yes_with_a_probability(begin: Begin) -> None:
    play = begin_verify(begin, {"a": "4", "b": "5"}, members="ab", judge=EDGE, policy={"checks": 5})
    play.asks()
    first, second = play.check_calls()
    assert (first.choices, first.sampling.response_schema) == (("yes", "no"), None)
    play.say(first.name, "yes", 1, choice_logprobs=(-1.0, -0.5))
    play.say(second.name, "yes", 1, choice_logprobs=(-0.5, -1.0))

    draft = play.ends()

    assert (draft.winner, draft.reason) == ("b", "right with 62% (passed 1 of 1 check)")
    assert [verdict.logprobs for verdict in draft.verdicts] == [(-1.0, -0.5), (-0.5, -1.0)]


UNREADABLE = [("no_probabilities", {"choice_logprobs": ()}), ("no_probabilities", {})]


@pytest.mark.parametrize(("why", "reply"), UNREADABLE)
def test_a_margin_that_cannot_be_read_is_not_asked_for_again(
    begin: Begin, why: str, reply: dict[str, Any]
) -> None:
    play = begin_verify(begin, PAIR, judge=EDGE)
    play.asks()
    for call in play.check_calls():
        play.say(call.name, "yes", 1, **reply)

    assert play.ends().degraded == (f"judge_failed:{why}",)


def test_probabilities_beyond_what_a_number_holds_do_no_harm(begin: Begin) -> None:
    play = begin_verify(begin, {"a": "4", "b": "5"}, members="ab", judge=EDGE)
    play.asks()
    first, second = play.check_calls()
    play.say(first.name, "yes", 1, choice_logprobs=(-1e9, 0.0))
    play.say(second.name, "yes", 1, choice_logprobs=(0.0, -1e9))

    assert play.ends().winner == "b"


def test_most_swing_is_from_a_failure_to_a_pass(juror: Juror) -> None:
    """An ordinary judge passes 85 % of right answers and 45 % of wrong ones."""
    ordinary, learned = (
        juror("x"),
        juror("y").model_copy(update={"pass_edge": 2.0, "fail_edge": -1.0}),
    )
    assert math.exp(most_swing([ordinary])) == pytest.approx(0.85 / 0.45 / (0.15 / 0.55))
    assert most_swing([ordinary, learned]) == pytest.approx(most_swing([ordinary]) + 3.0)


def test_a_judge_whose_checks_say_nothing_changes_nothing(begin: Begin, juror: Juror) -> None:
    useless = juror("x").model_copy(update={"pass_edge": 0.0, "fail_edge": 0.0})
    draft = begin_verify(begin, PAIR, judge=useless).ends()
    assert (draft.winner, draft.status) == ("a", "voted")


def test_a_judge_that_has_been_right_outweighs_two_votes(begin: Begin, juror: Juror) -> None:
    good = juror("x").model_copy(update={"pass_edge": 2.5, "fail_edge": -2.5})
    play = begin_verify(begin, {"a": "4", "b": "4", "c": "4", "d": "5"}, members="abcd", judge=good)
    play.asks()
    assert play.checks("d").ends().winner == "d"
