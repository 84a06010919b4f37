"""Merge: the judge compares the answers and writes one from all of them; the guard checks it."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import MERGED, Message, PlannedJudge, Sampling
from fusewire.testing.factories import JUDGE, T0, make_member
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire_judge.strategies.grounding import ungrounded_claims

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
Juror = Callable[[str], PlannedJudge]

VERDICTS = ["verdict-1-1", "verdict-1-2"]
GUARDS = ["guard-1-1", "guard-1-2"]
MERGE = "Paris is the capital, a city on the river Seine."


def write_merge(
    begin: Begin, text: str = MERGE, best: str = "b", **fields: Any
) -> "ScriptedFusion":
    """A merge is written, and `best` is the best single answer."""
    play = begin("merge", **fields).says(**OPEN)
    play.asks()
    play.analyses().judge_says(best).asks()
    return play.replies(write=text)


def test_the_answers_are_compared_and_judged_in_one_round_then_merged_then_guarded(
    begin: Begin,
) -> None:
    play = begin(
        "merge", prompt={"sampling": Sampling(temperature=1.0, seed=3, max_tokens=99)}
    ).says(**OPEN)

    assert sorted(play.asks()) == ["analysis", *VERDICTS]
    assert {c.model for c in play.rounds[0].calls} == {JUDGE.model}
    prompt = play.analyses().judge_says("b").asks()
    assert list(prompt) == ["write"]
    assert "There is a capital." in prompt["write"]
    (call,) = play.rounds[1].calls
    assert (call.kind, call.member) == ("write", None)
    assert (call.sampling.temperature, call.sampling.seed, call.sampling.max_tokens) == (
        None,
        None,
        99,
    )
    play.replies(write=MERGE)
    assert list(play.asks()) == GUARDS
    for guard in play.verdict_calls():
        assert sorted(play.order(guard)) == ["b", MERGED]
    draft = play.judge_says(MERGED).ends()

    assert (draft.status, draft.content, draft.winner, draft.guard) == (
        "fused",
        MERGE,
        None,
        "passed",
    )
    assert (draft.reason, draft.parse_stage, draft.degraded) == (
        "merged from 3 answers",
        "strict",
        (),
    )
    assert [v.kind for v in draft.verdicts] == ["listwise", "listwise", "guard", "guard"]
    assert draft.analysis == play.ANALYSIS
    assert len(draft.answers) == 3


def test_a_merge_that_loses_both_ways_is_refused(begin: Begin) -> None:
    play = write_merge(begin)
    play.asks()

    draft = play.judge_says("b").ends()

    assert (draft.status, draft.content, draft.winner, draft.guard) == (
        "selected",
        OPEN["b"],
        "b",
        "lost",
    )
    assert draft.reason == f"the merge lost to it; {play.REASON}"
    assert (len(draft.verdicts), draft.degraded) == (4, ())
    assert draft.analysis == play.ANALYSIS


def test_a_merge_that_ties_has_not_lost(begin: Begin) -> None:
    play = write_merge(begin)
    play.asks()

    draft = play.judge_says("b", MERGED).ends()

    assert (draft.content, draft.guard) == (MERGE, "passed")


@pytest.mark.parametrize(("readable", "guard"), [(MERGED, "passed"), ("b", "lost")])
def test_one_order_that_can_be_read_decides(begin: Begin, readable: str, guard: str) -> None:
    play = write_merge(begin)
    play.asks()
    first, second = play.verdict_calls()
    play.say(first.name, play.verdict(play.label(first, readable)), 3).say(
        second.name, "!server_error", 3
    )

    assert play.ends().guard == guard


@pytest.mark.parametrize("reply", ["!timeout", "prose"])
def test_a_merge_that_nobody_could_judge_is_refused(begin: Begin, reply: str) -> None:
    play = write_merge(begin)
    play.asks()
    play.judge_writes(reply)
    if reply == "prose":
        play.asks()
        play.judge_writes(reply)

    draft = play.ends()

    why = {"!timeout": "timeout", "prose": "not_json"}[reply]
    assert (draft.content, draft.guard, draft.degraded) == (
        OPEN["b"],
        "unjudged",
        (f"guard_failed:{why}",),
    )
    assert (draft.reason or "").startswith("nobody could judge the merge; ")


@pytest.mark.parametrize("claim", ["in 1974", "see https://example.org/x", "call get_capital()"])
def test_a_merge_that_states_what_nobody_said_is_refused_without_a_call(
    begin: Begin, claim: str
) -> None:
    play = write_merge(begin, f"{MERGE} As told {claim}.")

    draft = play.ends()

    assert (draft.content, draft.winner, draft.guard) == (OPEN["b"], "b", "ungrounded")
    assert (
        draft.reason
        == f"the merge holds a number, address or name that no candidate holds; {play.REASON}"
    )
    assert len(play.rounds) == 2


def test_the_request_s_own_numbers_are_grounded(begin: Begin) -> None:
    prompt = {
        "messages": (Message(role="user", content="Which city was the capital of France in 1974?"),)
    }
    play = write_merge(begin, "In 1974 it was Paris.", prompt=prompt)

    assert list(play.asks()) == GUARDS


def test_without_a_guard_the_merge_is_returned_as_it_is(begin: Begin) -> None:
    play = begin("merge", policy={"guard": False}).says(**OPEN)

    assert list(play.asks()) == ["analysis"]
    play.analyses().asks()
    draft = play.replies(write="Paris, since 1974.").ends()

    assert (draft.status, draft.content, draft.guard, draft.verdicts) == (
        "fused",
        "Paris, since 1974.",
        None,
        (),
    )


STREAMED = [
    # is it read along, is there a guard, is it shown
    (True, False, True),
    (True, True, False),
    (False, False, False),
]


@pytest.mark.parametrize(("is_read", "guard", "is_shown"), STREAMED)
def test_a_merge_is_shown_early_only_where_nothing_can_refuse_it(
    begin: Begin, is_read: bool, guard: bool, is_shown: bool
) -> None:
    play = begin("merge", policy={"guard": guard}, prompt={"is_streamed": is_read}).says(**OPEN)
    play.asks()
    if guard:
        play.judge_says("b")
    play.analyses().asks()

    (call,) = play.rounds[-1].calls
    assert call.name == "write"
    assert call.is_streamed is is_shown
    assert not any(c.is_streamed for c in play.rounds[0].calls)


@pytest.mark.parametrize("is_read", [True, False])
def test_a_merge_is_the_same_whether_it_was_shown_early(begin: Begin, is_read: bool) -> None:
    play = begin("merge", policy={"guard": False}, prompt={"is_streamed": is_read}).says(**OPEN)
    play.asks()
    play.analyses().asks()

    assert play.replies(write=" Paris.\n").ends().content == "Paris."


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_merge_of_blanks_has_failed_though_it_was_shown(begin: Begin, text: str) -> None:
    play = begin("merge", policy={"guard": False}, prompt={"is_streamed": True}).says(**OPEN)
    play.asks()
    play.analyses().asks()

    assert play.replies(write=text).ends().degraded == ("merge_failed:no_answer",)


def test_the_writer_does_not_judge_its_merge_where_there_is_a_jury(
    begin: Begin, juror: Juror
) -> None:
    writer = juror("w")
    play = write_merge(begin, judge=writer, jury=(writer, juror("x"), juror("y")))

    play.asks()

    assert [c.model for c in play.verdict_calls()] == ["x", "x", "y", "y"]
    assert {c.model for c in play.rounds[0].calls if c.kind == "verdict"} == {"w", "x", "y"}


def test_a_sole_judge_judges_what_it_wrote(begin: Begin) -> None:
    play = write_merge(begin)

    play.asks()

    assert {c.model for c in play.verdict_calls()} == {JUDGE.model}


# -- what can fail ------------------------------------------------------------------------


@pytest.mark.parametrize(("reply", "why"), [("!server_error", "server_error"), (" ", "no_answer")])
def test_where_the_writing_fails_the_best_single_answer_stands(
    begin: Begin, reply: str, why: str
) -> None:
    draft = write_merge(begin, reply, best="c").ends()

    assert (draft.status, draft.content, draft.winner, draft.guard) == (
        "selected",
        OPEN["c"],
        "c",
        None,
    )
    assert draft.degraded == (f"merge_failed:{why}",)
    assert draft.analysis is not None


def test_where_writing_and_judging_fail_the_answer_most_like_the_others_stands(
    begin: Begin,
) -> None:
    play = begin("merge").says(**OPEN)
    play.asks()
    play.analyses().judge_writes("!timeout").asks()

    draft = play.replies(write="!timeout").ends()

    assert (draft.status, draft.parse_stage) == ("voted", "fallback")
    assert draft.degraded == ("judge_failed:timeout", "merge_failed:timeout")


def test_a_writer_that_is_silent_is_waited_for_until_the_deadline(begin: Begin) -> None:
    play = begin("merge").says(**OPEN)
    play.asks()
    play.analyses().judge_says("a").asks()
    assert play.waits() == 60

    draft = play.later(60).ends()

    assert (draft.winner, draft.degraded) == ("a", ("merge_failed:no_answer",))


def test_it_is_written_without_an_analysis_that_cannot_be_read(begin: Begin) -> None:
    play = begin("merge").says(**OPEN)
    play.asks()
    play.analyses("nonsense").judge_says("a")
    assert list(play.asks()) == ["analysis-again"]
    play.analyses("nonsense").asks()
    play.replies(write=MERGE).asks()

    draft = play.judge_says(MERGED).ends()

    assert (draft.content, draft.parse_stage, draft.analysis) == (MERGE, "fallback", None)
    assert draft.degraded == ("analysis_failed:not_json",)


def test_an_analysis_that_comes_after_the_writing_was_asked_is_too_late(begin: Begin) -> None:
    play = begin("merge", policy={"guard": False}).says(**OPEN)
    play.asks()
    play.rounds[-1] = play.rounds[-1].model_copy(update={"deadline_at": T0 + timedelta(seconds=10)})
    assert list(play.later(10).asks()) == ["write"]
    play.say("analysis", json.dumps(play.ANALYSIS), 1).replies(write=MERGE)

    draft = play.ends()

    assert (draft.analysis, draft.degraded) == (None, ("analysis_failed:no_answer",))


def test_judge_and_writer_go_on_side_by_side(begin: Begin) -> None:
    """The one's second asking does not wait for the other's end."""
    play = begin("merge").says(**OPEN)
    play.asks()
    play.analyses().judge_writes("prose")

    assert sorted(play.asks()) == ["verdict-1-1-again", "verdict-1-2-again", "write"]
    play.replies(write=MERGE).judge_says("a").asks()
    assert play.judge_says("a").ends().guard == "lost"


def test_a_merge_that_was_cut_says_so(begin: Begin) -> None:
    play = begin("merge", policy={"guard": False}).says(**OPEN)
    play.asks()
    play.analyses().asks()

    draft = play.say("write", "Paris is", 2, finish_reason="length").ends()

    assert (draft.status, draft.degraded) == ("fused", ("merge_cut_at_length",))


@pytest.mark.parametrize("is_read", [True, False])
def test_fences_that_the_writer_copied_are_taken_out_though_they_were_shown(
    begin: Begin, is_read: bool
) -> None:
    play = begin("merge", policy={"guard": False}, prompt={"is_streamed": is_read}).says(**OPEN)
    play.asks()
    user = play.analyses().asks()["write"]
    fence = user[user.index("[[") : user.index("]]") + 2]

    assert play.replies(write=f"{fence}\nParis.\n").ends().content == "Paris."


def test_fences_that_the_writer_copied_are_taken_out(begin: Begin) -> None:
    play = begin("merge", policy={"guard": False}).says(**OPEN)
    play.asks()
    play.analyses().asks()
    fence = play.rounds[1].calls[0].messages[0].content.split("[[")[1].split(" ")[0]

    draft = play.replies(write=f"[[{fence} BC]]\nParis.\n[[/{fence} BC]]").ends()

    assert draft.content == "Paris."


def test_the_analysis_names_members_where_it_had_labels(begin: Begin) -> None:
    play = begin("merge", policy={"guard": False}).says(**OPEN)
    play.asks()
    first, second, third = (label for label, _ in play.shown_texts(play.rounds[0].calls[0]))
    analysis = play.ANALYSIS | {
        "contradictions": [
            {
                "topic": "which",
                "stances": [{"model": first, "stance": "Paris"}, {"model": "Q", "stance": "?"}],
            }
        ],
        "partial_coverage": [{"models": [second, third.lower()], "point": "rivers"}],
        "unique_insights": [{"model": first, "insight": "the Seine"}],
    }
    play.analyses(json.dumps(analysis)).asks()

    draft = play.replies(write="Paris.").ends()

    first_member, second_member, third_member = draft.lineup
    assert draft.analysis == {
        **analysis,
        "contradictions": [
            {
                "topic": "which",
                "stances": [
                    {"model": first_member, "stance": "Paris"},
                    {"model": "unknown", "stance": "?"},
                ],
            }
        ],
        "partial_coverage": [{"models": [second_member, third_member], "point": "rivers"}],
        "unique_insights": [{"model": first_member, "insight": "the Seine"}],
    }


# -- closed answers are not merged --------------------------------------------------------


def test_closed_answers_are_voted(begin: Begin) -> None:
    draft = begin("merge").says(a="4", b="5", c="5").ends()

    assert (draft.status, draft.winner, draft.guard) == ("voted", "b", None)


def test_closed_answers_that_tie_are_judged_and_not_merged(begin: Begin) -> None:
    play = begin("merge").says(a="4", b="5", c="6")

    assert list(play.asks()) == VERDICTS
    draft = play.judge_says("c").ends()
    assert (draft.content, draft.winner) == ("6", "c")


def test_without_a_judge_it_chooses(begin: Begin) -> None:
    draft = begin("merge", judge=None).says(**OPEN).ends()

    assert (draft.status, draft.reason) == (
        "voted",
        "no judge to merge, the answer most like the others",
    )


def test_a_judge_that_is_a_member_and_writes(begin: Begin, juror: Juror) -> None:
    """It may write from its own answer, but not say that it is the best."""
    play = begin("merge", judge=juror("m-a"), members=[make_member(n) for n in "abc"]).says(**OPEN)
    play.asks()

    assert sorted(play.order(play.verdict_calls()[0])) == ["b", "c"]
    analysis_call = next(call for call in play.rounds[0].calls if call.name == "analysis")
    assert {text for _, text in play.shown_texts(analysis_call)} == set(OPEN.values())


# -- grounding ----------------------------------------------------------------------------

GROUNDED = [
    # what, merge, source
    ("the same number", "It has 2100 rooms.", "2100 of them"),
    ("thousands separators", "It has 2,100,000 people.", "about 2100000"),
    ("thousands separators in the source", "It has 2100000 people.", "about 2,100,000"),
    ("zeros behind the point", "It costs 12.50.", "It costs 12.5"),
    ("a sign", "-40 it is", "40 below"),
    ("small counts", "There are 3 reasons and 10 steps.", ""),
    ("a numbered list", "1. One\n12. Two\n(13) Three", ""),
    ("a bulleted list", "- One\n* Two\n# Three", ""),
    ("the same address", "See https://example.org/a.", "https://example.org/a"),
    (
        "an address at the end of a sentence",
        "See https://example.org/a",
        "Look at https://example.org/a!",
    ),
    ("an identifier in other letters", "Call get_x()", "GET_X"),
    ("words", "Nothing but plain Words, NASA and e-mail.", ""),
]
UNGROUNDED = [
    ("a number", "It has 2101 rooms.", "2100", ("2101",)),
    ("a year", "In 1974.", "In 1975.", ("1974",)),
    ("part of a number", "It has 210 rooms.", "2100", ("210",)),
    ("a decimal", "It is 12.51", "12.5", ("12.51",)),
    ("an address", "https://evil.example/a", "https://example.org/a", ("https://evil.example/a",)),
    (
        "a longer address",
        "https://example.org/a?x=1",
        "https://example.org/a",
        ("https://example.org/a?x=1",),
    ),
    ("snake_case", "call get_capital", "", ("get_capital",)),
    ("camelCase", "call getCapital", "", ("getcapital",)),
    ("a dotted name", "import os.path", "", ("os.path",)),
    ("letters with digits", "the B52 bomber", "", ("b52",)),
    ("a hash that begins with a digit", "at 4e07a085", "at 4b22", ("4e07a085",)),
    ("a key", "CVE-2024 and ABC-123", "", ("cve-2024", "abc-123")),
    ("each once, in order", "99 and 77 and 99", "", ("99", "77")),
    ("a number in a list", "1. It has 55", "", ("55",)),
]


@pytest.mark.parametrize(
    ("text", "source"), [r[1:] for r in GROUNDED], ids=[r[0] for r in GROUNDED]
)
def test_grounded(text: str, source: str) -> None:
    assert ungrounded_claims(text, ["Something else.", source]) == ()


@pytest.mark.parametrize(
    ("text", "source", "claims"), [r[1:] for r in UNGROUNDED], ids=[r[0] for r in UNGROUNDED]
)
def test_not_grounded(text: str, source: str, claims: tuple[str, ...]) -> None:
    assert ungrounded_claims(text, [source]) == claims


@given(st.text(max_size=200) | st.text("0123456789.,-aB_ /:hwtps\n", max_size=80))
def test_a_text_is_grounded_in_itself(text: str) -> None:
    assert ungrounded_claims(text, [text]) == ()


def test_pages_of_blank_lines_are_no_trouble() -> None:
    """Work that grows with the square of them would take many minutes."""
    assert ungrounded_claims("x" + "\n" * 200_000 + "in 1974", []) == ("1974",)
