"""Debate: members that disagree answer again, then the whole course of it is counted."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fusewire.contracts import Sampling
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire.testing.factories import make_member

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
ERROR = "I added where I should have multiplied."
NUMBERS = {"a": "4", "b": "5", "c": "6"}


def family(name: str, **fields: Any) -> Any:
    return make_member(name, **{"family": "one", **fields})


def test_a_debate_where_all_agree_is_none(begin: Begin) -> None:
    draft = begin("debate").says(a="4", b="4.0", c="The answer is 4").ends()

    assert (draft.status, draft.winner) == ("voted", "a")
    assert draft.reason == "vote, 3 of 3 say the same (no disagreement, no debate)"


def test_open_answers_that_are_alike_are_judged_without_a_debate(begin: Begin) -> None:
    text = "Paris is the capital of France and lies on the Seine"
    play = begin("debate").says(a=text, b=text + ".", c=text + "!")

    assert list(play.asks()) == ["verdict-1-1", "verdict-1-2"]


def test_members_that_disagree_see_the_others_and_answer_again(begin: Begin) -> None:
    sampling = Sampling(seed=3, temperature=0.5, max_tokens=10)
    play = begin("debate", prompt={"sampling": sampling}).says(**NUMBERS)

    assert list(play.asks()) == ["a", "b", "c"]
    for call in play.rounds[0].calls:
        assert (call.kind, call.member, call.model) == ("debate", call.name, f"m-{call.name}")
        assert (call.sampling.seed, call.sampling.temperature, call.sampling.max_tokens) == (
            None,
            0.5,
            170,
        )
        schema = call.sampling.response_schema
        assert schema is not None
        assert schema["required"] == ["error", "answer"]
    draft = play.rebuts(a=(ERROR, "5"), b=("", "5"), c=(ERROR, "5")).ends()
    assert (draft.status, draft.content, draft.winner) == ("voted", "5", "a")
    assert draft.reason == "vote, 4 of 6 say the same (after 1 debate round)"


def test_nobody_is_shown_its_own_answer_as_another_s(begin: Begin) -> None:
    play = begin("debate").says(**OPEN)
    play.asks()

    for call in play.rounds[0].calls:
        assert {text for _, text in play.shown_texts(call)} == {
            text for name, text in OPEN.items() if name != call.name
        }


KEPT = [
    ("no error named", ("", "5")),
    ("an error that says nothing", ("wrong", "5")),
    ("blanks for an error", (" " * 20, "5")),
    ("prose", "I was wrong, it is 5."),
    ("a bare answer", "5"),
    ("no answer", '{"error": "I added where I multiplied."}'),
    ("a failure", "!server_error"),
    ("an error, and nothing", (ERROR, " ")),
    ("an error, and a refusal", (ERROR, "I'm sorry, I cannot help with that.")),
    ("an error, and a loop", (ERROR, "la " * 2000)),
    ("an error, and the same again", (ERROR, "The answer is 4.0")),
]


@pytest.mark.parametrize("turn", [r[1] for r in KEPT], ids=[r[0] for r in KEPT])
def test_a_member_keeps_its_answer(begin: Begin, turn: Any) -> None:
    play = begin("debate").says(**NUMBERS)
    play.asks()
    play.rebuts(a=turn, b=("", "5"), c=("", "6"))

    # Nobody changed, so it is over: a tie, for the judge to settle.
    assert list(play.asks()) == ["verdict-1-1", "verdict-1-2"]
    contents = {
        answer.member: (answer.content, answer.round)
        for answer in play.judge_says("a").ends().answers
    }
    assert contents == {"a": ("4", 0), "b": ("5", 0), "c": ("6", 0)}


def test_a_named_error_changes_the_answer(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1).says(**NUMBERS)
    play.asks()

    draft = play.rebuts(a=(ERROR, "5"), b=("", "5"), c=("", "6")).ends()

    answers = {a.member: (a.content, a.round, a.call) for a in draft.answers}
    assert answers == {
        "a": ("5", 1, "a"), "b": ("5", 0, "b"), "c": ("6", 0, "c")
    }  # fmt: skip
    assert (draft.content, draft.agreement) == ("5", 0.5)


def test_a_silent_member_is_waited_for_until_the_deadline(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1).says(**NUMBERS)
    play.asks()
    play.rebuts(a=(ERROR, "5"), b=("", "5"))
    assert play.waits() == 60

    assert {answer.member: answer.content for answer in play.later(60).ends().answers} == {
        "a": "5",
        "b": "5",
        "c": "6",
    }


def test_it_stops_when_nobody_changes(begin: Begin) -> None:
    play = begin("debate").says(a="4", b="5", c="5")
    play.asks()

    draft = play.rebuts(a=("", "4"), b=("", "5"), c=("", "5")).ends()

    assert (draft.winner, len(play.rounds)) == ("b", 1)
    assert draft.reason == "vote, 4 of 6 say the same (after 1 debate round)"


@pytest.mark.parametrize("most", [1, 2])
def test_it_has_as_many_rounds_as_the_pool_allows(begin: Begin, most: int) -> None:
    play = begin("debate", debate_rounds=most).says(**NUMBERS)
    turns = [{"a": "5", "b": "4", "c": "4"}, {"a": "4", "b": "8", "c": "4"}]
    for turn in turns[:most]:
        assert list(play.asks()) == ["a", "b", "c"]
        play.rebuts(**{name: (ERROR, text) for name, text in turn.items()})

    assert (
        play.ends().reason == f"vote, {3 if most == 1 else 5} of {3 + 3 * most} say the same "
        f"(after {most} debate round{'s' * (most > 1)})"
    )


def test_the_vote_is_over_the_whole_course_so_that_the_talked_out_still_counts(
    begin: Begin,
) -> None:
    play = begin("debate", debate_rounds=1).says(a="4", b="4", c="5")
    play.asks()

    draft = play.rebuts(a=("", "4"), b=(ERROR, "5"), c=(ERROR, "6")).ends()

    assert (draft.content, draft.winner) == ("4", "a")
    assert draft.reason == "vote, 3 of 6 say the same (after 1 debate round)"


def test_an_answer_that_nobody_holds_any_more_can_win(begin: Begin) -> None:
    members = [make_member("a", 2), make_member("b", 2), make_member("c")]
    play = begin("debate", debate_rounds=1, members=members).says(a="4", b="4", c="5")
    play.asks()

    draft = play.rebuts(a=(ERROR, "6"), b=(ERROR, "7"), c=("", "5")).ends()

    assert (draft.content, draft.winner) == ("4", "a")
    assert {answer.member: (answer.content, answer.round) for answer in draft.answers}["a"] == (
        "4",
        0,
    )


def test_a_debate_that_stays_open_is_judged(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1).says(**OPEN)
    play.asks()
    play.rebuts(**{name: (ERROR, text + " Truly.") for name, text in OPEN.items()})

    play.asks()
    draft = play.judge_says("b").ends()

    assert (draft.status, draft.winner, draft.content) == ("selected", "b", OPEN["b"] + " Truly.")
    assert draft.reason == f"{play.REASON} (after 1 debate round)"
    assert [a.content for a in play.outcome(1).answers] == [
        OPEN[name] + " Truly." for name in "abc"
    ]


def test_a_debate_without_a_judge_ends_by_likeness(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1, judge=None).says(**OPEN)
    play.asks()

    draft = play.rebuts(**{name: ("", text) for name, text in OPEN.items()}).ends()

    assert (draft.status, draft.parse_stage) == ("voted", None)


# -- who debates --------------------------------------------------------------------------

BARRED = [
    # what, members, families wanted, why there is none
    ("one family", [family("a"), family("b"), family("c")], 2, "fewer than 2 families, no debate"),
    (
        "one family that can speak",
        [family("a"), family("b", family="two", is_replay_only=True), family("c")],
        2,
        "fewer than 2 families, no debate",
    ),
    (
        "two families where three are wanted",
        [family("a"), family("b", family="two"), family("c")],
        3,
        "fewer than 3 families, no debate",
    ),
    (
        "nobody can speak",
        [family(n, is_replay_only=True, family=n) for n in "abc"],
        2,
        "nobody can be asked again, no debate",
    ),
    (
        "nobody can speak, one family enough",
        [family(n, is_replay_only=True) for n in "abc"],
        1,
        "nobody can be asked again, no debate",
    ),
]


@pytest.mark.parametrize(
    ("members", "least_families", "why"), [r[1:] for r in BARRED], ids=[r[0] for r in BARRED]
)
def test_there_is_no_debate(
    begin: Begin, members: list[Any], least_families: int, why: str
) -> None:
    play = begin("debate", members=members, policy={"debate_families": least_families}).says(
        a="4", b="5", c="5"
    )

    assert play.ends().reason == f"vote, 2 of 3 say the same ({why})"


DEBATED = [
    ("two families", [family("a"), family("b", family="two"), family("c")], 2, ["a", "b", "c"]),
    ("one family, asked for", [family("a"), family("b"), family("c")], 1, ["a", "b", "c"]),
    (
        "a mute member listens",
        [family("a"), family("b", family="two"), family("c", is_replay_only=True)],
        2,
        ["a", "b"],
    ),
]


@pytest.mark.parametrize(
    ("members", "least_families", "speakers"), [r[1:] for r in DEBATED], ids=[r[0] for r in DEBATED]
)
def test_there_is_a_debate(
    begin: Begin, members: list[Any], least_families: int, speakers: list[str]
) -> None:
    play = begin("debate", members=members, policy={"debate_families": least_families}).says(
        a="4", b="5", c="5"
    )

    assert list(play.asks()) == speakers
    assert all(play.shown_texts(call) for call in play.rounds[0].calls)


def test_a_family_that_gave_no_answer_does_not_count(begin: Begin) -> None:
    members = [family("a"), family("b"), family("c", family="two")]
    play = begin("debate", members=members).says(a="4", b="5", c="!timeout")

    assert list(play.asks()) == ["verdict-1-1", "verdict-1-2"]


def test_a_mute_member_s_answer_counts_in_each_turn(begin: Begin) -> None:
    members = [family("a"), family("b", family="two"), family("c", is_replay_only=True)]
    play = begin("debate", members=members, debate_rounds=1).says(a="4", b="5", c="6")
    play.asks()

    draft = play.rebuts(a=(ERROR, "6"), b=("", "5")).ends()

    assert (draft.content, draft.reason) == (
        "6",
        "vote, 3 of 6 say the same (after 1 debate round)",
    )


# -- demanded schemas ---------------------------------------------------------------------

SCHEMA = {"$ref": "#/$defs/sum", "$defs": {"sum": {"type": "object", "required": ["n"]}}}


def test_a_schema_is_demanded_of_the_answer_within_the_reply(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1, prompt={"sampling": Sampling(response_schema=SCHEMA)})
    play.says(a='{"n": 4}', b='{"n": 5}', c='{"n": 6}').asks()

    draft = play.rebuts(a=(ERROR, {"n": 5}), b=(ERROR, "6"), c=(ERROR, {"m": 6})).ends()

    assert (draft.content, draft.winner) == ('{"n": 5}', "a")
    assert {answer.member: answer.content for answer in draft.answers} == {
        "a": '{"n": 5}',
        "b": '{"n": 5}',
        "c": '{"n": 6}',
    }


def test_a_mended_answer_is_not_cut_where_the_first_one_was(begin: Begin) -> None:
    play = begin("debate", debate_rounds=1)
    play.say("a", "4", finish_reason="length").says(b="5", c="5").asks()

    draft = play.rebuts(a=(ERROR, "5"), b=("", "5"), c=("", "5")).ends()

    assert (draft.winner, draft.degraded) == ("a", ())
