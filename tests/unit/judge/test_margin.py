"""Judges that decide by how probable they find each answer as their own reply."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fusewire.contracts import CONTROL, MERGED, Call, Message, PlannedJudge, Verdict
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire.testing.factories import make_candidate, make_member, make_prompt
from fusewire_judge.judging.ballot import poll
from fusewire_judge.judging.prompts import PLAIN
from fusewire_judge.judging.tally import Tally
from fusewire_judge.model import Case, MemberAnswer

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]

EDGE = PlannedJudge(model="m-edge", tier="edge", family="edge", by_margin=True)
OWN = EDGE.model_copy(update={"model": "m-a"})


def order(call: Call) -> list[str]:
    """Who is behind each of the texts."""
    by_text = {text: name for name, text in OPEN.items()}
    return [by_text.get(text, CONTROL) for text in call.choices]


def judge(play: "ScriptedFusion", liking: dict[str, float]) -> "ScriptedFusion":
    """Each call is answered with what the judge finds of each text."""
    for call in play.verdict_calls():
        scores = tuple(liking[name] - 20 for name in order(call))
        play.say(call.name, call.choices[0], len(play.rounds), choice_logprobs=scores)
    return play


def begin_open(begin: Begin, **fields: Any) -> "ScriptedFusion":
    play = begin(**{"judge": EDGE, **fields}).says(**OPEN)
    play.asks()
    return play


def test_one_call_reads_every_answer_after_the_request_itself(begin: Begin) -> None:
    (call,) = begin_open(begin).verdict_calls()

    assert sorted(call.choices) == sorted(OPEN.values())
    assert call.sampling.response_schema is None
    assert [(m.role, m.content) for m in call.messages] == [
        ("system", PLAIN),
        ("user", make_prompt().messages[0].content),
    ]


def test_a_conversation_stays_one_and_the_pool_s_criteria_are_asked_for(begin: Begin) -> None:
    messages = [
        Message(role="system", content="You are a guide."),
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Good day."),
        Message(role="user", content="Where to?"),
    ]
    play = begin_open(
        begin, prompt={"messages": tuple(messages)}, policy={"criteria": "kind first"}
    )
    (call,) = play.verdict_calls()

    assert call.messages[0].content == "You are a guide.\n\nAnswer by this: kind first."
    assert list(call.messages[1:]) == messages[1:]


def test_what_it_finds_most_probable_wins(begin: Begin) -> None:
    draft = judge(begin_open(begin), {"a": 0.0, "b": 0.5, "c": 0.2}).ends()

    assert (draft.status, draft.winner) == ("selected", "b")
    # Odds of e^(2.9 * 0.3) over c and e^(2.9 * 0.5) over a.
    assert draft.reason == "preferred with 60%"
    assert draft.degraded == ()
    (verdict,) = draft.verdicts
    assert (verdict.winner, verdict.rung, verdict.is_consistent) == ("b", "strict", None)
    assert dict(zip(verdict.shown, verdict.logprobs, strict=True)) == {
        "a": -20.0,
        "b": -19.5,
        "c": -19.8,
    }


def test_a_weak_voice_needs_more_than_a_small_judge_s_leaning(begin: Begin) -> None:
    members = [make_member("a"), make_member("b", 0.25)]

    def winner(liking: float) -> str:
        play = begin(judge=EDGE, members=members).says(a=OPEN["a"], b=OPEN["b"])
        play.asks()
        return str(judge(play, {"a": 0.0, "b": liking}).ends().winner)

    # Odds of four outweigh a quarter of the weight: 2.9 times 0.478 is ln 4.
    assert (winner(0.47), winner(0.49)) == ("a", "b")


def test_an_answer_that_was_cut_off_is_not_read_beside_two_whole_ones(begin: Begin) -> None:
    play = (
        begin(judge=EDGE).says(a=OPEN["a"], b=OPEN["b"]).say("c", OPEN["c"], finish_reason="length")
    )
    play.asks()
    (call,) = play.verdict_calls()
    assert set(order(call)) == {"a", "b"}
    draft = judge(play, {"a": 0.0, "b": 1.0}).ends()
    # Nor is it a doubt that it was not.
    assert (draft.winner, draft.reason) == ("b", "preferred with 95%")

    play = begin(judge=EDGE).says(a=OPEN["a"])
    for member in "bc":
        play.say(member, OPEN[member], finish_reason="length")
    play.asks()
    (call,) = play.verdict_calls()
    assert set(order(call)) == {"a", "b", "c"}


def test_a_judge_that_prefers_the_control_is_void(begin: Begin) -> None:
    play = begin_open(begin, policy={"control_share": 1.0})
    draft = judge(play, {"a": 0.0, "b": 0.1, "c": 0.2, CONTROL: 3.0}).ends()

    assert {verdict.void for verdict in draft.verdicts} == {"picked_control"}
    assert draft.degraded == ("judge_failed:picked_control",)


def test_a_judge_has_no_voice_on_its_own_answer_unless_the_pool_says_so(begin: Begin) -> None:
    (call,) = begin_open(begin, judge=OWN).verdict_calls()
    assert set(order(call)) == {"b", "c"}

    whole = begin_open(begin, judge=OWN.model_copy(update={"sees_own": True}))
    assert set(order(*whole.verdict_calls())) == {"a", "b", "c"}
    assert judge(whole, {"a": 1.0, "b": 0.0, "c": 0.0}).ends().winner == "a"


def test_judges_by_margin_that_disagree_are_not_asked_the_same_again(begin: Begin) -> None:
    other = EDGE.model_copy(update={"model": "m-other"})
    play = begin_open(begin, judge=EDGE, jury=(EDGE, other))
    likings = iter(({"a": 1.0, "b": 0.0, "c": 0.0}, {"a": 0.0, "b": 1.0, "c": 0.0}))
    for call in play.verdict_calls():
        liking = next(likings)
        scores = tuple(liking[name] - 20 for name in order(call))
        play.say(call.name, call.choices[0], len(play.rounds), choice_logprobs=scores)
    draft = play.ends()

    assert (draft.reason or "").startswith("the judges are tied")


@pytest.mark.parametrize(
    ("reply", "why"), [("!engine_failed", "engine_failed"), ("B", "no_probabilities")]
)
def test_what_cannot_be_read_is_told_and_not_asked_again(
    begin: Begin, reply: str, why: str
) -> None:
    play = begin_open(begin)
    (call,) = play.verdict_calls()
    play.say(call.name, reply, len(play.rounds))
    draft = play.ends()

    assert draft.degraded == (f"judge_failed:{why}",)
    assert draft.parse_stage == "fallback"


def guard_tally(case: Case, juror: PlannedJudge) -> Tally:
    """Of a guard that likes the answer of `b` a little better than the merge."""
    answers = (MemberAnswer(MERGED, 1.0, "Both.", 0), MemberAnswer("b", 0.25, OPEN["b"], 0))
    steps = poll(case, answers, "guard", "guard", [juror])
    (call,) = next(steps)()
    liking = {"Both.": -20.0, OPEN["b"]: -19.9}
    reply = make_candidate(
        call=call.name, choice_logprobs=tuple(liking[text] for text in call.choices)
    )

    with pytest.raises(StopIteration) as stop:
        steps.send({call.name: reply})

    tally: Tally = stop.value.value
    return tally


def test_a_guard_compares_without_weights(begin: Begin) -> None:
    case = begin(judge=EDGE).says(**OPEN).case

    assert guard_tally(case, EDGE).leaders() == ["b"]


def test_what_written_verdicts_have_shown_to_say_holds_for_no_judge_by_margin(
    begin: Begin,
) -> None:
    case = begin(judge=EDGE).says(**OPEN).case
    juror = EDGE.model_copy(update={"verdict_edge": 0.2})

    assert guard_tally(case, juror) == guard_tally(case, EDGE)


def test_what_saw_no_order_says_nothing_of_places() -> None:
    members = ("a", "b")
    by_place = Verdict(call="1", kind="listwise", judge_model="m", shown=members, winner="a")
    by_margin = Verdict(
        call="2", kind="listwise", judge_model="e", shown=members, winner="b", logprobs=(-2.0, -1.0)
    )

    assert Tally(verdicts=(by_place, by_margin)).follows_place
    assert not Tally(verdicts=(by_margin,)).follows_place
