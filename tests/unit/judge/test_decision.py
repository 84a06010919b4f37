"""`decide`: what ends a fusion before any choice, bad input, and caps.

Also properties: what must never change a decision.
"""

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire.contracts import ExcludedMember, PlannedJudge, Round, Sampling, Tool, ToolCall
from fusewire.testing.factories import JUDGE, make_member
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire_judge.model import Ask, Case, Decided, Draft, Panel, Steps
from fusewire_judge.strategies.best_of import best_of
from fusewire_judge.strategies.decide import STRATEGIES

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
MODES = ["best-of", "merge", "debate"]
REFUSAL = "I'm sorry, but I can't help with that."
LOOP = "and so on and " * 2000


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_of_one_is_single_and_whole(begin: Begin, mode: str) -> None:
    draft = begin(mode, members="a").says(a="Paris").ends()

    assert (draft.status, draft.content, draft.winner) == ("single", "Paris", "a")
    assert (draft.reason, draft.degraded, draft.parse_stage) == ("the only member", (), None)


BAD = [
    ("an error", "!server_error", "failed:{}:server_error"),
    ("nothing", "", "empty:{}"),
    ("blanks", " \n\t", "empty:{}"),
    ("a refusal", REFUSAL, "refused:{}"),
    ("a loop", LOOP, "looped:{}"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("text", "reason"), [r[1:] for r in BAD], ids=[r[0] for r in BAD])
def test_one_survivor_is_single_never_fused(
    begin: Begin, mode: str, text: str, reason: str
) -> None:
    play = begin(mode).says(a=text, b="Paris", c=text)

    draft = play.ends()

    assert (draft.status, draft.content, draft.winner) == ("single", "Paris", "b")
    assert draft.reason == "the only answer of 3 members"
    assert draft.degraded == (reason.format("a"), reason.format("c"))
    assert play.outcome().missing_weight == pytest.approx(2 / 3)


def test_two_members_with_one_survivor(begin: Begin) -> None:
    draft = begin(members="ab").says(a=OPEN["a"], b="!timeout").ends()

    assert (draft.status, draft.content, draft.degraded) == (
        "single",
        OPEN["a"],
        ("failed:b:timeout",),
    )


@pytest.mark.parametrize("bad", [REFUSAL, LOOP])
def test_where_nobody_does_better_it_is_what_the_pool_says(begin: Begin, bad: str) -> None:
    draft = begin(members="ab", judge=None).says(a=bad, b="!timeout").ends()

    assert (draft.status, draft.content) == ("single", bad)
    assert len(draft.degraded) == 2


@pytest.mark.parametrize("mode", MODES)
def test_all_failed(begin: Begin, mode: str) -> None:
    draft = begin(mode).says(a="!server_error", b="!rate_limited", c="").ends()

    assert (draft.status, draft.content, draft.winner) == ("failed", None, None)
    assert draft.error == "every member failed (empty_answer, rate_limited, server_error)"
    assert draft.degraded == ("failed:a:server_error", "failed:b:rate_limited", "empty:c")


@pytest.mark.parametrize("mode", MODES)
def test_nobody_answered_in_time(begin: Begin, mode: str) -> None:
    play = begin(mode).says(a="!server_error")
    assert play.later(44.9).waits() == 45

    draft = play.later(45).ends()

    assert (draft.status, draft.error) == ("expired", "no member answered before the deadline")
    assert draft.degraded == (
        "failed:a:server_error",
        "missing:b:0.33:deadline",
        "missing:c:0.33:deadline",
    )


def test_an_empty_pool_fails_at_once(begin: Begin) -> None:
    play = begin(
        members=(), excluded=(ExcludedMember(name="gone", reason="unknown_pool", weight=1.0),)
    )

    draft = play.ends()

    assert (draft.status, draft.degraded) == ("failed", ("excluded:gone:unknown_pool",))
    assert draft.error == "no member may answer (gone: unknown_pool)"
    outcome = play.outcome()
    assert (outcome.answers, outcome.missing_weight, outcome.closed_by) == ((), 1.0, None)


def test_who_was_excluded_is_told(begin: Begin) -> None:
    draft = (
        begin(members="ab", excluded=(ExcludedMember(name="gpt", reason="residency"),))
        .says(a="4", b="4")
        .ends()
    )

    assert draft.degraded == ("excluded:gpt:residency",)


@pytest.mark.parametrize("cut", ["a", "b"])
def test_a_winner_that_was_cut_off_says_so(begin: Begin, cut: str) -> None:
    play = (
        begin(members="ab")
        .say(cut, OPEN[cut], finish_reason="length")
        .says(**{n: OPEN[n] for n in "ab"})
    )
    play.asks()

    draft = play.judge_says("a").ends()

    assert (draft.winner, draft.degraded) == ("a", ("winner_cut:a",) if cut == "a" else ())


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}
OTHERS = [
    '{"tool": "search", "query": "x"}',
    '[{"n": 4}]',
    '"4"',
    '{"n": "4"}',
    "```json\n{}\n```",
    '{"n": NaN}',
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("other", OTHERS)
def test_somebody_else_s_json_has_no_vote(begin: Begin, mode: str, other: str) -> None:
    play = begin(mode, prompt={"sampling": Sampling(response_schema=SCHEMA)}).says(
        a=other, b='{"n": 4}', c=other
    )

    assert (play.ends().content, play.outcome().answer_kind) == ('{"n": 4}', "json")


@cache
def noise(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijklmnop", k=6)) for _ in range(150_000))


MEGABYTES = [
    ("words", noise),
    ("blanks", lambda n: f"answer:{' ' * 500_000}x\ny\nA:{' ' * 500_000}\nz{n}"),
    ("lines", lambda n: "\n" * 1_000_000 + f"Paris {n} for ever and ever and ever"),
    ("one word", lambda n: "a" * 1_000_000 + str(n)),
    ("brackets", lambda n: "[" * 1_000_000 + str(n)),
    ("nested tokens", lambda n: "<s" * 300_000 + ">" * 300_000 + str(n)),
]


@pytest.mark.parametrize(
    ("mode", "schema"), [("best-of", None), ("merge", None), ("debate", SCHEMA)]
)
@pytest.mark.parametrize("make_text", [r[1] for r in MEGABYTES], ids=[r[0] for r in MEGABYTES])
def test_megabytes_are_no_trouble(
    begin: Begin, mode: str, make_text: Callable[[int], str], schema: Any
) -> None:
    """Work that grows with the square of such a text would not come back within an hour."""
    play = begin(mode, prompt={"sampling": Sampling(response_schema=schema)})
    play.says(a=make_text(1), b=make_text(2), c=make_text(3))

    decision = play.decide()

    assert isinstance(decision, Ask | Decided)
    if isinstance(decision, Ask):
        messages = chain.from_iterable(call.messages for call in decision.calls)
        chars = sum(len(message.content) for message in messages)
        # In a debate, each member is shown its own answer whole.
        assert mode == "debate" or chars < len(decision.calls) * 45_000


# -- caps -------------------------------------------------------------------------------------

CAPS = [
    ("cost, reached by the members", {"max_cost_usd": 0.003}, "cost"),
    ("cost, not reached", {"max_cost_usd": 0.0031}, None),
    ("tokens, with what the judge would need", {"max_total_tokens": 600}, "tokens"),
    ("tokens, enough", {"max_total_tokens": 3000}, None),
]


@pytest.mark.parametrize(("policy", "cap"), [r[1:] for r in CAPS], ids=[r[0] for r in CAPS])
def test_a_cap_ends_it_without_another_call(
    begin: Begin, policy: dict[str, Any], cap: str | None
) -> None:
    play = begin(policy=policy).says(**OPEN)

    if cap is None:
        assert len(play.asks()) == 2
        return
    draft = play.ends()
    assert (draft.status, draft.degraded) == ("voted", (f"capped:{cap}", "judge_failed:no_answer"))
    assert draft.content in OPEN.values()


def test_a_cap_that_is_reached_on_the_way_keeps_what_there_is(begin: Begin) -> None:
    play = begin("merge", policy={"max_cost_usd": 0.0045}).says(**OPEN)
    play.asks()

    draft = play.analyses().judge_says("c").ends()

    assert (draft.content, draft.winner) == (OPEN["c"], "c")
    assert draft.degraded == ("capped:cost", "merge_failed:no_answer")


def test_recorded_answers_spend_nothing(begin: Begin) -> None:
    play = begin(policy={"max_cost_usd": 0.001})
    for name, text in OPEN.items():
        play.say(name, text, provider="recorded", cost_usd=5.0)

    assert len(play.asks()) == 2


# -- tool calls -------------------------------------------------------------------------------

WEATHER = Tool(
    name="weather",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


def answer_with_calls(
    begin: Begin, replies: dict[str, Any], mode: str = "best-of", **fields: Any
) -> "ScriptedFusion":
    """A text, or the city whose weather is asked for; a number breaks the schema."""
    play = begin(mode, prompt={"tools": (WEATHER,), **fields.pop("prompt", {})}, **fields)
    for member, reply in replies.items():
        if isinstance(reply, str):
            play.say(member, reply)
        else:
            call = ToolCall(
                id=f"{member}-1", name="weather", arguments=json.dumps({"city": reply[0]})
            )
            play.say(member, None, tool_calls=(call,))
    return play


@pytest.mark.parametrize("mode", MODES)
def test_calls_are_voted_and_made_anew(begin: Begin, mode: str) -> None:
    play = answer_with_calls(begin, {"a": ["Paris"], "b": ["Rome"], "c": ["Paris"]}, mode)

    draft = play.ends()

    (call,) = draft.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Paris"})
    assert call.id not in {"a-1", "b-1", "c-1"}
    assert (draft.status, draft.content, draft.winner) == ("voted", None, None)
    assert play.outcome().answer_kind == "tool_call"
    assert play.ends().tool_calls == draft.tool_calls


def test_one_caller_alone_is_single(begin: Begin) -> None:
    draft = answer_with_calls(begin, {"a": ["Paris"], "b": "!timeout", "c": ""}).ends()

    assert (draft.status, len(draft.tool_calls)) == ("single", 1)
    assert draft.degraded == ("failed:b:timeout", "empty:c")


def test_what_is_said_beside_calls_is_kept_of_one_member_and_of_several_of_none(
    begin: Begin,
) -> None:
    call = ToolCall(id="1", name="weather", arguments='{"city": "Paris"}')
    alone = (
        begin(prompt={"tools": (WEATHER,)}, members=[make_member("a")])
        .say("a", "I look.", tool_calls=(call,))
        .ends()
    )
    play = begin(prompt={"tools": (WEATHER,)})
    for member in "abc":
        play.say(member, f"{member} looks.", tool_calls=(call,))
    several = play.ends()

    assert (alone.content, len(alone.tool_calls)) == ("I look.", 1)
    assert (several.content, len(several.tool_calls)) == (None, 1)


def test_text_outvotes_calls(begin: Begin) -> None:
    play = answer_with_calls(begin, {"a": ["Paris"], "b": OPEN["b"], "c": OPEN["c"]})

    play.asks()
    assert sorted(play.order(play.verdict_calls()[0])) == ["b", "c"]
    draft = play.judge_says("c").ends()

    assert (draft.content, draft.tool_calls) == (OPEN["c"], ())


def test_text_outvotes_calls_by_weight_and_closed_text_is_voted(begin: Begin) -> None:
    members = [make_member("a"), make_member("b"), make_member("c", 3)]
    single = answer_with_calls(
        begin, {"a": ["Paris"], "b": ["Paris"], "c": "Sunny."}, members=members
    ).ends()
    two = answer_with_calls(begin, {"a": ["Paris"], "b": "4", "c": "4.0"}).ends()

    assert (single.status, single.content) == ("single", "Sunny.")
    assert (two.status, two.content) == ("voted", "4")


def test_a_call_that_breaks_its_schema_has_no_vote_and_is_told(begin: Begin) -> None:
    calls_draft = answer_with_calls(begin, {"a": [4], "b": ["Rome"], "c": [4]}).ends()
    reply_text = answer_with_calls(begin, {"a": [4], "b": "Sunny.", "c": [4]}).ends()

    assert json.loads(calls_draft.tool_calls[0].arguments) == {"city": "Rome"}
    assert calls_draft.degraded == ("invalid_call:a", "invalid_call:c")
    assert (reply_text.status, reply_text.content) == ("single", "Sunny.")
    assert reply_text.degraded == ("invalid_call:a", "invalid_call:c")


def test_all_calls_break_their_schema(begin: Begin) -> None:
    draft = answer_with_calls(begin, {"a": [4], "b": [5], "c": [4]}).ends()

    assert (draft.status, draft.content, draft.tool_calls) == ("failed", None, ())
    assert draft.degraded == ("invalid_call:a", "invalid_call:b", "invalid_call:c")
    assert draft.error == "every tool call breaks the schema of its tool"


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_where_a_call_is_demanded_text_does_not_outvote_it(begin: Begin, choice: str) -> None:
    replies = {"a": ["Paris"], "b": OPEN["b"], "c": OPEN["c"]}

    assert answer_with_calls(begin, replies, prompt={"tool_choice": choice}).ends().tool_calls


def test_while_replies_are_missing_nothing_is_computed(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    fusion = begin().says(**OPEN)
    first, *_ = fusion.asks()
    replays: list[Panel] = []

    def strategy(case: Case, panel: Panel) -> Steps:
        replays.append(panel)
        return best_of(case, panel)

    monkeypatch.setitem(STRATEGIES, "best-of", strategy)

    assert fusion.replies(**{first.replace("-", "_"): "?"}).waits() == 60
    assert not replays
    fusion.later(61).ends()
    assert len(replays) == 1


# -- the deadline -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("texts", [OPEN, {"a": "4", "b": "5", "c": "6"}], ids=["open", "closed"])
@pytest.mark.parametrize("judge", [JUDGE, None], ids=["judge", "no judge"])
def test_after_the_deadline_nothing_is_asked_and_it_ends(
    begin: Begin, mode: str, texts: dict[str, str], judge: Any
) -> None:
    """As when the judge itself was down until then."""
    draft = begin(mode, judge=judge).says(**texts).later(61).ends()

    assert draft.content in texts.values()
    assert draft.status == "voted"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_after_the_deadline_it_ends_wherever_it_stood(begin: Begin, mode: str, rounds: int) -> None:
    play = begin(mode).says(**OPEN)
    for _ in range(rounds):
        if isinstance(play.decide(), Ask):
            play.asks()
            play.replies(
                **{
                    call.name.replace("-", "_"): "nonsense " + call.name
                    for call in play.rounds[-1].calls
                }
            )

    draft = play.later(61).ends()

    assert draft.status in ("voted", "fused")
    assert draft.degraded


# -- what must never change what it says ------------------------------------------------------

THREE = [make_member("a"), make_member("b", 1.5), make_member("c", learned={"number": 2.0})]
EDGES = [
    make_member("a", tier="edge", samples=2),
    make_member("b", tier="edge"),
    make_member("c", wave=1),
]  # fmt: skip
SLOW = [make_member("a"), make_member("b"), make_member("c", hedge_after_s=1.0)]
JURY = tuple(PlannedJudge(model=model, tier="remote", family=model) for model in ("x", "m-a", "z"))
CLOSED = {"a": "4", "b": "5", "c": "6"}

SCENES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "vote": ({}, {"a": "4", "b": "5", "c": "4"}),
    "weights": ({"members": THREE}, {"a": "4", "b": "4", "c": "5"}),
    "early stop": ({"policy": {"early_stop": 0.87}}, {"a": "4", "b": "4", "c": "4"}),
    "judged": ({}, OPEN),
    "one failed": ({}, {**OPEN, "b": "!server_error"}),
    "one refused": ({}, {**OPEN, "b": REFUSAL}),
    "controls": ({"policy": {"control_share": 1.0}}, OPEN),
    "jury": ({"jury": JURY}, OPEN),
    "merge": ({"mode": "merge"}, OPEN),
    "merge by a jury": ({"mode": "merge", "jury": JURY}, OPEN),
    "merge without a guard": ({"mode": "merge", "policy": {"guard": False}}, OPEN),
    "capped merge": ({"mode": "merge", "policy": {"max_cost_usd": 0.005}}, OPEN),
    "debate of numbers": ({"mode": "debate"}, CLOSED),
    "debate of texts": ({"mode": "debate"}, OPEN),
    "gate": ({"members": EDGES, "policy": {"gate": "edge-first"}}, {"a": "4", "b": "4", "c": "4"}),
    "gate stays shut": (
        {"members": EDGES, "policy": {"gate": "edge-first"}},
        {"a": "4", "b": "5", "c": "5"},
    ),
    "gated merge": ({"mode": "merge", "members": EDGES, "policy": {"gate": "edge-first"}}, OPEN),
    "hedge": ({"members": SLOW, "quorum": 1.0}, OPEN),
    "hedged debate": ({"mode": "debate", "members": SLOW, "quorum": 1.0}, CLOSED),
}


def reply_text(call: str, place: int, texts: dict[str, str], play: "ScriptedFusion") -> str:
    """What comes back of a call of a round: whatever it is, it depends on nothing but the call."""
    (request,) = [c for c in play.rounds[-1].calls if c.name == call]
    if request.kind == "answer":
        return texts[call.partition("=")[0]]
    if request.kind == "verdict":
        texts_by_label = play.shown_texts(request)
        label, _ = texts_by_label[len(call) % len(texts_by_label)]
        return "prose" if call.endswith("z") else play.verdict(label)
    if request.kind == "debate":
        return (
            json.dumps({"error": "I misread what was asked.", "answer": "5"})
            if call != "c"
            else "!timeout"
        )
    return json.dumps(play.ANALYSIS) if request.kind == "analysis" else "Paris is what they say."


def rotate(order: list[int], step: int) -> list[int]:
    start = step % len(order)
    return order[start:] + order[:start]


def ordered_places(count: int, order: list[int]) -> list[int]:
    return sorted(range(count), key=lambda place: order[place % len(order)])


def finish(
    play: "ScriptedFusion", order: list[int], texts: dict[str, str], *, repeat: bool = False
) -> Draft:
    """Answer whatever is asked, in an order that `order` decides, each message perhaps twice."""
    for step in range(12):
        decision = play.decide()
        if isinstance(decision, Decided):
            return decision.draft
        if not isinstance(decision, Ask):
            play.now = max(play.now, decision.until)
            continue
        play.asks()
        calls = [call.name for call in play.rounds[-1].calls]
        for place in ordered_places(len(calls), rotate(order, step)):
            play.say(calls[place], reply_text(calls[place], place, texts, play), len(play.rounds))
            if repeat:
                play.say(calls[place], "another text for the same call", len(play.rounds))
    raise AssertionError("no end")


def first_calls(play: "ScriptedFusion") -> list[str]:
    first_wave = (member.calls for member in play.plan.members if member.wave == 0)
    return list(chain.from_iterable(first_wave))


def begin_scene(begin: Begin, scene: str) -> tuple["ScriptedFusion", dict[str, str]]:
    fields, texts = SCENES[scene]
    return begin(**fields), texts


@settings(max_examples=200)
@given(
    scene=st.sampled_from(sorted(SCENES)),
    arrival=st.randoms(use_true_random=False),
    twice=st.lists(st.integers(0, 9), max_size=4),
    order=st.permutations(list(range(6))),
    late=st.sampled_from(["", "late text", "4", "!timeout"]),
)
def test_order_and_duplicates_and_late_answers_change_nothing(
    begin: Begin, scene: str, arrival: random.Random, twice: list[int], order: list[int], late: str
) -> None:
    plain, texts = begin_scene(begin, scene)
    calls = first_calls(plain)
    for call in calls:
        plain.say(call, texts[call[0]])
    expected = finish(plain, [0, 2, 4], texts)

    play, _ = begin_scene(begin, scene)
    shuffled_calls = arrival.sample(calls, len(calls))
    for call in [*shuffled_calls, *(calls[i % len(calls)] for i in twice)]:
        play.say(
            call, texts[call[0]] if (0, call) not in play.received else "said again, otherwise"
        )
    assert finish(play, order, texts, repeat=True) == expected

    # Whatever is repeated after the end changes nothing.
    if late:
        for round_, call in list(play.received):
            play.hear(play.make_reply(round_, call, late))
    assert play.ends() == expected


def answer_round(play: "ScriptedFusion", round_: Round, texts: dict[str, str]) -> None:
    for place, call in enumerate(round_.calls):
        play.say(call.name, reply_text(call.name, place, texts, play), round_.round)


@settings(max_examples=100)
@given(
    scene=st.sampled_from(
        ["judged", "jury", "merge", "debate of texts", "debate of numbers", "hedge"]
    ),
    missing=st.sampled_from(["a", "b"]),
    late=st.sampled_from(["4", "late text", "!timeout"]),
    after=st.integers(1, 3),
)
def test_a_member_too_late_for_the_first_round_changes_nothing(
    begin: Begin, scene: str, missing: str, late: str, after: int
) -> None:
    def play_through(*, is_late: bool) -> Draft:
        play, texts = begin_scene(begin, scene)
        play.says(**{name: text for name, text in texts.items() if name != missing}).later(45)
        for step in range(1, 12):
            if not isinstance(play.decide(), Ask):
                break
            play.asks()
            round_ = play.rounds[-1]
            if is_late and step == after and not round_.is_panel:
                play.says(**{missing: late})
            answer_round(play, round_, texts)
        if is_late:
            play.says(**{missing: late})
        draft: Draft = play.ends()
        return draft

    assert play_through(is_late=True) == play_through(is_late=False)
