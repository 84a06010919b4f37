"""The panel: who is heard, who is waited for, who is asked a second time or not at all."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fusewire.contracts import ExcludedMember, Sampling, Tool, ToolCall
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire.testing.factories import make_member
from fusewire_judge.model import Ask
from fusewire_judge.strategies.decide import decide

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
PANEL_S = 45.0
REFUSAL = "I'm sorry, but I can't help with that."

# -- quorum, grace, required members --------------------------------------------------------


def test_it_waits_for_the_panel(begin: Begin) -> None:
    play = begin()

    assert play.waits() == PANEL_S
    assert play.says(a="4").waits() == PANEL_S
    assert play.later(4).says(b="5").waits() == pytest.approx(5.4)
    assert play.later(5.4).asks()
    assert play.judge_says("a").closed_by() == "quorum"


GRACE = [
    # what, when quorum was, most, closes at
    ("0.35 of what it took", 20, 10, 27),
    ("half a second at least", 0.2, 10, 0.7),
    ("ten seconds at most", 32, 10, 42),
    ("what the pool allows", 20, 2, 22),
    ("none, where the pool allows none", 20, 0, 20),
    ("never beyond the panel's deadline", 44, 10, PANEL_S),
]


@pytest.mark.parametrize(
    ("took", "most", "closes"), [r[1:] for r in GRACE], ids=[r[0] for r in GRACE]
)
def test_grace(begin: Begin, took: float, most: float, closes: float) -> None:
    play = begin(policy={"grace_most_s": most}).later(took).says(a=OPEN["a"], b=OPEN["b"])

    if closes > took:
        assert play.waits() == pytest.approx(closes)
    play.later(closes).asks()
    assert [c.name for c in play.rounds[0].calls] == ["verdict-1-1", "verdict-1-2"]


def test_a_required_member_is_waited_for_until_the_deadline(begin: Begin) -> None:
    members = [make_member("a"), make_member("b"), make_member("c", is_required=True)]
    play = begin(members=members).says(a="4", b="4").later(30)

    assert play.waits() == PANEL_S
    assert play.later(PANEL_S).ends().degraded == ("missing:c:0.33:deadline",)
    assert play.closed_by() == "deadline"


def test_a_required_member_that_failed_is_not_waited_for(begin: Begin) -> None:
    members = [
        make_member("a"),
        make_member("b"),
        make_member("c", is_required=True),
        make_member("d"),
    ]
    play = begin(members=members, quorum=0.5).says(a=OPEN["a"], b=OPEN["b"], c="!server_error")

    assert play.waits() == 0.5


@pytest.mark.parametrize("bad", ["", " \n", REFUSAL, "la la la " * 500, "!server_error"])
def test_what_is_no_answer_makes_no_quorum(begin: Begin, bad: str) -> None:
    play = begin().says(a=bad, b=bad).later(1)

    assert play.waits() == PANEL_S
    assert play.says(c=OPEN["c"]).ends().content == OPEN["c"]


# -- early stop -------------------------------------------------------------------------------

EARLY = [
    # what, members, answers, tau, closes by (None: waits)
    ("2-0 of three is certain", "abc", "44", 0.93, "certain"),
    ("2-0 of four, tau .93", "abcd", "44", 0.93, None),
    ("2-0 of four, tau .87", "abcd", "44", 0.87, "likely"),
    ("2-0 of four, exactly tau", "abcd", "44", 0.875, "likely"),
    ("2-0 of four, tau .88", "abcd", "44", 0.88, None),
    ("3-0 of seven, tau .93", "abcdefg", "444", 0.93, "likely"),
    ("3-0 of seven, tau .94", "abcdefg", "444", 0.94, None),
    ("4-0 of nine, tau .96", "abcdefghi", "4444", 0.96, "likely"),
    ("3-1 of seven, tau .81", "abcdefg", "4445", 0.81, "likely"),
    ("3-1 of seven, tau .82", "abcdefg", "4445", 0.82, None),
    ("4-1 of nine, tau .89", "abcdefghi", "44445", 0.89, "likely"),
    ("4-1 of nine, tau .9", "abcdefghi", "44445", 0.9, None),
    ("5-0 of eleven, tau .98", "abcdefghijk", "44444", 0.98, "likely"),
    ("5-0 of eleven, tau .99", "abcdefghijk", "44444", 0.99, None),
    ("1-0 is never enough", "abcd", "4", 0.51, None),
    ("1-1 is no lead", "abcdefg", "45", 0.51, None),
    ("2-2 is no lead", "abcdefghi", "4455", 0.51, None),
    ("tau 1 waits for all", "abc", "44", 1.0, None),
    ("3 of 5 cannot be caught", "abcde", "444", 0.99, "certain"),
    ("3-1 of five cannot be caught", "abcde", "4445", 0.99, "certain"),
    ("2-1 of four can be", "abcd", "445", 0.99, None),
]


def begin_with_answers(begin: Begin, names: str, answers: str, **fields: Any) -> Any:
    play = begin(members=names, quorum=1.0, **fields)
    return play.says(**dict(zip(names, answers, strict=False)))


@pytest.mark.parametrize(
    ("names", "answers", "tau", "closes"), [r[1:] for r in EARLY], ids=[r[0] for r in EARLY]
)
def test_a_vote_stops_early(
    begin: Begin, names: str, answers: str, tau: float, closes: str | None
) -> None:
    play = begin_with_answers(begin, names, answers, policy={"early_stop": tau})

    if closes is None:
        assert play.waits() == PANEL_S
        return
    assert play.closed_by() == closes
    assert (play.ends().content, play.ends().degraded) == ("4", ())
    assert play.outcome().missing_weight == 0


def test_a_vote_stops_early_by_what_the_prompt_s_schema_takes_for_the_same(begin: Begin) -> None:
    sampling = Sampling(response_schema={"type": "object", "required": ["n"]})
    play = begin(quorum=1.0, prompt={"sampling": sampling}).says(a='{"n": 4}', b='{ "n":4.0 }')

    assert play.closed_by() == "certain"


def test_certain_is_by_weight(begin: Begin) -> None:
    members = [make_member("a", 3), make_member("b", 3), make_member("c"), make_member("d")]

    assert begin(members=members, quorum=1.0).says(a="4", b="4").closed_by() == "certain"
    heavier = [*members[:3], make_member("d", learned={"number": 6.0})]
    assert begin(members=heavier, quorum=1.0).says(a="4", b="4").waits() == PANEL_S


NEVER_EARLY = [
    ("open answers", "best-of", OPEN["a"], OPEN["a"]),
    ("open and closed", "best-of", "4", OPEN["a"]),
    ("refusals", "best-of", "Sorry, can't.", "Sorry, can't."),
    ("a debate with dissent", "debate", "4", "5"),
]


@pytest.mark.parametrize(
    ("mode", "first", "second"), [r[1:] for r in NEVER_EARLY], ids=[r[0] for r in NEVER_EARLY]
)
def test_it_does_not_stop_early(begin: Begin, mode: str, first: str, second: str) -> None:
    play = begin(mode, quorum=1.0, policy={"early_stop": 0.87}).says(a=first, b=second)

    assert play.waits() == PANEL_S


def test_a_debate_stops_early_only_without_dissent(begin: Begin) -> None:
    dissent = begin_with_answers(
        begin, "abcdefg", "44445", mode="debate", policy={"early_stop": 0.8}
    )
    agreement = begin_with_answers(
        begin, "abcdefg", "4444", mode="debate", policy={"early_stop": 0.8}
    )

    assert dissent.waits() == PANEL_S
    assert agreement.closed_by() == "likely"


def test_a_required_member_is_not_stopped_without(begin: Begin) -> None:
    members = [make_member("a"), make_member("b"), make_member("c", is_required=True)]

    assert begin(members=members).says(a="4", b="4").waits() == PANEL_S


# -- a second wave: the gate ------------------------------------------------------------------

EDGE: dict[str, Any] = {"tier": "edge"}


def begin_gated(
    begin: Begin, *, edges: str = "e", samples: int = 3, hosted_names: str = "xy", **fields: Any
) -> "ScriptedFusion":
    members = [
        *(make_member(name, samples=samples, **EDGE) for name in edges),
        *(make_member(name, wave=1) for name in hosted_names),
    ]
    policy = {"gate": "edge-first", **fields.pop("policy", {})}
    return begin(members=members, policy=policy, **fields)


def say_samples(play: "ScriptedFusion", member: str, *texts: str) -> "ScriptedFusion":
    for number, text in enumerate(texts, 1):
        play.say(member if number == 1 else f"{member}={number}", text)
    return play


def test_three_samples_that_agree_open_the_gate(begin: Begin) -> None:
    play = say_samples(begin_gated(begin), "e", "4", "4.0")
    assert play.waits() == PANEL_S / 2

    draft = say_samples(play, "e", "4", "4.0", "The answer is 4").ends()

    assert (draft.content, draft.winner, draft.status, draft.degraded) == ("4", "e", "single", ())
    assert draft.reason == "the edge is sure, x, y not asked"
    outcome = play.outcome()
    assert (outcome.closed_by, outcome.missing_weight, outcome.is_degraded) == ("gate", 0, False)
    assert [a.status for a in outcome.answers] == ["ok", "unasked", "unasked"]


GATE = [
    # what, edges, samples, what each said, tau, opens
    ("2-0 by two members, tau .87", "ef", 1, {"e": ["4"], "f": ["4"]}, 0.87, True),
    ("2-0 by two members, tau .93", "ef", 1, {"e": ["4"], "f": ["4"]}, 0.93, False),
    ("3-0 by two members", "ef", 2, {"e": ["4", "4"], "f": ["4"]}, 0.93, True),
    ("tau 1 asks for no more than the gate's own", "e", 3, {"e": ["4", "4", "4"]}, 1.0, True),
    ("2-1", "e", 3, {"e": ["4", "5", "4"]}, 0.87, False),
    ("1-1", "e", 2, {"e": ["4", "5"]}, 0.87, False),
    ("open and alike", "ef", 1, {"e": [OPEN["a"]], "f": [OPEN["a"] + "!"]}, 0.93, True),
    ("open and unlike", "ef", 1, {"e": [OPEN["a"]], "f": [OPEN["b"]]}, 0.93, False),
    ("refusals that agree", "ef", 1, {"e": [REFUSAL], "f": [REFUSAL]}, 0.93, False),
    ("all fail", "ef", 1, {"e": ["!engine_failed"], "f": ["!timeout"]}, 0.93, False),
    ("nothing said", "ef", 1, {"e": [""], "f": [""]}, 0.93, False),
    (
        "one that agrees with itself, one that failed",
        "ef",
        1,
        {"e": ["4"], "f": ["!timeout"]},
        0.87,
        False,
    ),
]


@pytest.mark.parametrize(
    ("edges", "samples", "replies", "tau", "opens"), [r[1:] for r in GATE], ids=[r[0] for r in GATE]
)
def test_the_gate(
    begin: Begin, edges: str, samples: int, replies: dict[str, list[str]], tau: float, opens: bool
) -> None:
    play = begin_gated(begin, edges=edges, samples=samples, policy={"early_stop": tau})
    for member, texts in replies.items():
        say_samples(play, member, *texts)

    if opens:
        assert play.closed_by() == "gate"
    else:
        assert list(play.asks()) == ["x", "y"]


def test_a_gate_that_can_no_longer_open_is_not_waited_for(begin: Begin) -> None:
    play = say_samples(begin_gated(begin), "e", "4", "5")

    hedges = play.asks()

    assert list(hedges) == ["x", "y"]
    for call in play.rounds[0].calls:
        assert (call.kind, call.member, call.messages) == (
            "answer",
            call.name,
            play.prompt.messages,
        )
    assert play.rounds[0].deadline_at == play.plan.panel_deadline_at


def test_a_second_wave_is_asked_as_the_first_was_but_for_the_seed(begin: Begin) -> None:
    tools = (Tool(name="clock", parameters={"type": "object"}),)
    fields = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    sampling = Sampling(temperature=0.7, seed=3)
    play = say_samples(
        begin_gated(begin, prompt={**fields, "sampling": sampling}), "e", "4", "5", "6"
    )

    decision = decide(play.case, play.now)

    assert isinstance(decision, Ask)
    assert (decision.number, decision.until) == (1, play.plan.panel_deadline_at)
    for call, member in zip(decision.calls, ("x", "y"), strict=True):
        assert {name: getattr(call, name) for name in fields} == fields
        assert call.sampling == sampling.model_copy(update={"seed": None})
        assert (call.model, call.member) == (f"m-{member}", member)


def test_the_gate_reads_answers_as_the_prompt_s_schema_says(begin: Begin) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    play = begin_gated(begin, prompt={"sampling": Sampling(response_schema=schema)})
    bare, fenced = '{"city": "Oslo"}', '```json\n{ "city":"Oslo" }\n```'

    assert say_samples(play, "e", fenced, bare, fenced).closed_by() == "gate"


def test_the_gate_is_waited_for_half_of_the_panel_s_time_at_most(begin: Begin) -> None:
    play = begin_gated(begin)
    assert play.later(PANEL_S / 2 - 0.1).waits() == PANEL_S / 2

    assert list(play.later(PANEL_S / 2).asks()) == ["x", "y"]


CONFIDENT = [
    # what, texts with their confidences, opens
    ("one sure number", [("4", 0.95)], True),
    ("one sure text", [(OPEN["a"], 0.95)], True),
    ("exactly as sure as it must be", [("4", 0.9)], True),
    ("not sure enough", [("4", 0.89)], False),
    ("it does not tell", [("4", None)], False),
    ("sure, and of two minds", [("4", 0.95), ("5", 0.95)], False),
    ("sure, and two texts unlike", [(OPEN["a"], 0.95), (OPEN["b"], 0.2)], False),
    ("sure, and one open", [("4", 0.95), (OPEN["b"], 0.2)], False),
]


@pytest.mark.parametrize(
    ("texts", "opens"), [r[1:] for r in CONFIDENT], ids=[r[0] for r in CONFIDENT]
)
def test_confidence_opens_the_gate(
    begin: Begin, texts: list[tuple[str, float | None]], opens: bool
) -> None:
    play = begin_gated(
        begin, edges="ef", samples=1, policy={"gate_confidence": 0.9, "early_stop": 0.87}
    )
    for name, (text, confidence) in zip("ef", texts, strict=False):
        play.say(name, text, confidence=confidence)

    if opens:
        assert play.closed_by() == "gate"
        assert play.ends().content == texts[0][0]
    elif len(texts) == 2:
        assert list(play.asks()) == ["x", "y"]
    else:
        assert play.waits() == PANEL_S / 2


def test_tool_calls_do_not_pass_the_gate(begin: Begin) -> None:
    calls = (ToolCall(id="1", name="clock", arguments="{}"),)
    play = begin_gated(begin, edges="ef", samples=1, policy={"gate_confidence": 0.9})
    play.say("e", None, tool_calls=calls).say("f", "4", confidence=0.99)

    assert list(play.asks()) == ["x", "y"]


def test_the_hosted_wave_is_collected_with_quorum(begin: Begin) -> None:
    play = say_samples(begin_gated(begin), "e", "4", "5", "5").later(6)
    play.asks()
    assert play.waits() == PANEL_S
    play.say("x", OPEN["a"], round_=1)

    # Two of three, one of them the edge member, whom its own majority speaks for.
    assert play.waits() == pytest.approx(6 + 0.35 * 6)
    play.later(9)
    play.asks()
    draft = play.judge_says("e").ends()

    assert (draft.content, draft.degraded) == ("5", ("missing:y:0.33:quorum",))
    outcome = play.outcome(9)
    assert (outcome.closed_by, outcome.rounds, outcome.panel_ms) == ("quorum", 2, 9000)
    assert [(a.member, a.call, a.round) for a in outcome.answers[:2]] == [
        ("e", "e=2", 0),
        ("x", "x", 1),
    ]


def test_a_member_of_the_second_wave_has_one_call_and_is_over_when_that_failed(
    begin: Begin,
) -> None:
    play = say_samples(begin_gated(begin, hosted_names="x"), "e", "4", "5", "5")
    play.asks()
    assert play.waits() == PANEL_S

    assert play.say("x", "!server_error", round_=1).closed_by() == "complete"
    assert play.ends().degraded == ("failed:x:server_error",)


def test_after_the_panel_s_deadline_the_second_wave_is_not_asked(begin: Begin) -> None:
    play = say_samples(begin_gated(begin), "e", "4", "5").later(61)

    draft = play.ends()

    assert (draft.status, draft.content) == ("single", "4")
    assert draft.degraded == ("missing:x:0.33:deadline", "missing:y:0.33:deadline")


def test_a_gate_that_was_passed_by_too_late_says_so_to_the_end(begin: Begin) -> None:
    play = say_samples(begin_gated(begin, edges="ef", samples=1), "e", OPEN["a"])
    say_samples(play, "f", OPEN["b"]).later(50)

    assert list(play.asks()) == ["verdict-1-1", "verdict-1-2"]
    assert play.judge_says("f").closed_by() == "deadline"
    assert play.ends().degraded == ("missing:x:0.25:deadline", "missing:y:0.25:deadline")


def test_a_member_speaks_by_the_majority_of_its_samples(begin: Begin) -> None:
    play = say_samples(begin_gated(begin, hosted_names="x"), "e", "5", "4", "4")
    play.asks()
    play.say("x", "7", round_=1)
    play.asks()

    assert play.judge_says("e").ends().content == "4"


# -- hedges -----------------------------------------------------------------------------------


def begin_hedged(begin: Begin, after_s: float = 3, **fields: Any) -> Any:
    members = [make_member("a"), make_member("b"), make_member("c", hedge_after_s=after_s)]
    return begin(members=members, **{"quorum": 1.0, "policy": {"early_stop": 1.0}, **fields})


def test_a_straggler_is_asked_a_second_time_when_it_is_late(begin: Begin) -> None:
    play = begin_hedged(begin).says(a=OPEN["a"], b=OPEN["b"]).later(1)
    assert play.waits() == 3

    assert list(play.later(3).asks()) == ["c=h"]
    (call,) = play.rounds[0].calls
    assert (call.kind, call.member, call.model, call.messages) == (
        "answer",
        "c",
        "m-c",
        play.prompt.messages,
    )
    assert play.later(10).waits() == PANEL_S  # and never a third time


@pytest.mark.parametrize("first", ["c", "c=h"])
def test_the_first_of_its_two_answers_counts(begin: Begin, first: str) -> None:
    play = begin_hedged(begin).says(a=OPEN["a"], b=OPEN["b"]).later(3)
    play.asks()
    play.later(4).say(first, OPEN["c"], round_=1 if first == "c=h" else 0)
    play.asks()
    other = "c" if first == "c=h" else "c=h"
    play.say(other, "Something else that came after it.", round_=1 if other == "c=h" else 0)
    play.judge_says("c")

    outcome = play.outcome(4)

    assert (outcome.content, outcome.hedges, outcome.closed_by) == (OPEN["c"], 1, "complete")
    answer = outcome.answers[2]
    assert (answer.call, answer.round, answer.content) == (first, int(first == "c=h"), None)
    assert answer.usage.prompt_tokens == 20  # both were paid for
    assert outcome.is_degraded is False


@pytest.mark.parametrize("failed", ["c", "c=h"])
def test_one_of_two_calls_that_fails_is_no_end(begin: Begin, failed: str) -> None:
    play = begin_hedged(begin).says(a="4", b="5").later(3)
    play.asks()
    other = "c" if failed == "c=h" else "c=h"
    play.say(failed, "!server_error", round_=int(failed == "c=h"))

    assert play.waits() == PANEL_S
    assert play.say(other, "5", round_=int(other == "c=h")).ends().content == "5"


def test_both_of_its_calls_failed(begin: Begin) -> None:
    play = begin_hedged(begin).says(a="4", b="4").later(3)
    play.asks()
    play.say("c", "!timeout").later(4).say("c=h", "!server_error", round_=1)

    assert play.ends().degraded == ("failed:c:server_error",)
    assert play.closed_by() == "complete"


NOT_HEDGED = [
    ("who has answered", {"c": OPEN["c"]}, []),
    ("who has failed", {"c": "!server_error"}, []),
    ("who is not to be", {"a": OPEN["a"]}, ["c=h"]),
    ("where enough is said", {"a": "4", "b": "4"}, []),
]


@pytest.mark.parametrize(
    ("replies", "hedges"), [r[1:] for r in NOT_HEDGED], ids=[r[0] for r in NOT_HEDGED]
)
def test_who_is_hedged(begin: Begin, replies: dict[str, str], hedges: list[str]) -> None:
    play = begin_hedged(begin, policy={"early_stop": 0.93}).says(**replies).later(5)

    decision = play.decide()

    assert [call.name for call in getattr(decision, "calls", ())] == hedges


def test_a_hedge_is_not_asked_for_when_the_panel_is_over(begin: Begin) -> None:
    play = begin_hedged(begin, quorum=0.67).says(a="4", b="5").later(3)

    assert list(play.asks()) == ["verdict-1-1", "verdict-1-2"]


# -- what was settled stays settled -----------------------------------------------------------


def test_who_comes_after_the_next_round_was_asked_is_too_late(begin: Begin) -> None:
    play = begin().says(a=OPEN["a"], b=OPEN["b"]).later(45)
    play.asks()
    play.says(c=OPEN["c"]).judge_says("a")

    draft = play.ends()

    assert draft.degraded == ("missing:c:0.33:quorum",)
    assert {first.member for first in draft.answers} == {"a", "b"}
    assert play.outcome(45).answers[2].status == "missing"


def test_a_panel_that_is_over_is_closed_for_the_same_reason_ever_after(begin: Begin) -> None:
    play = begin().says(a=OPEN["a"]).later(44.9).says(b=OPEN["b"]).later(45)
    play.asks()
    before = play.judge_says("a").end()

    assert play.later(1000).says(c="!timeout").end() == before


CLOSED_BY = [
    ("complete", {"a": "4", "b": "5", "c": "5"}, 0.1),
    ("certain", {"a": "4", "b": "4"}, 0.1),
    ("quorum", {"a": "4", "b": OPEN["a"]}, 5),
    ("deadline", {"a": "4"}, 45),
    ("deadline", {}, 45),
]


@pytest.mark.parametrize(("why", "replies", "at"), CLOSED_BY)
def test_the_outcome_says_why_the_panel_was_over(
    begin: Begin, why: str, replies: dict[str, str], at: float
) -> None:
    play = begin().says(**replies).later(at)
    if why == "quorum":
        play.asks()
        play.judge_says("a")

    assert play.outcome().closed_by == why


def test_missing_weight_is_of_the_whole_pool(begin: Begin) -> None:
    play = begin(
        members="ab", excluded=(ExcludedMember(name="gpt", reason="residency", weight=2.0),)
    ).says(a="4", b="4")

    assert (play.outcome().missing_weight, play.ends().degraded) == (
        0.5,
        ("excluded:gpt:residency",),
    )


def test_a_member_whose_answer_breaks_the_schema_is_heard_without_a_vote(begin: Begin) -> None:
    sampling = Sampling(response_schema={"type": "object", "required": ["n"]})
    play = begin(prompt={"sampling": sampling}).says(a='{"m": 1}', b='{"n": 2}', c='{"m": 1}')

    draft = play.ends()

    assert (draft.content, draft.reason) == ('{"n": 2}', "the only answer of 3 members")
    assert draft.degraded == ("off_schema:a", "off_schema:c")
    assert [a.vote_group for a in play.outcome().answers] == [None, 0, None]
