"""Best-of: closed answers are voted, open ones judged in two orders."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire.contracts import CONTROL, PlannedJudge, Sampling
from fusewire.testing.factories import JUDGE, make_member
from fusewire.testing.factories import OPEN_ANSWERS as OPEN
from fusewire_judge.judging.tally import Tally
from fusewire_judge.scoring.answers import agreement

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
Juror = Callable[[str], PlannedJudge]

TWO = {"a": OPEN["a"], "b": OPEN["b"]}
FOUR = {**OPEN, "d": "Ask a geographer; I would rather speak about the weather in Brittany."}
FIVE = {**FOUR, "e": "Lutetia was what Romans called this settlement of the Parisii tribe."}
BOTH = ["verdict-1-1", "verdict-1-2"]

# -- the vote -----------------------------------------------------------------------------


def test_closed_answers_are_voted_without_a_judge_call(begin: Begin) -> None:
    draft = begin().says(a="4", b="5", c="The answer is 4.").ends()

    assert (draft.status, draft.content, draft.winner) == ("voted", "4", "a")
    assert draft.reason == "vote, 2 of 3 say the same"
    assert draft.agreement == pytest.approx(2 / 3)
    assert (draft.parse_stage, draft.lineup, draft.verdicts, draft.degraded) == (None, (), (), ())


WEIGHTS = [
    # what, weight of b, what b learned, answers, who wins
    ("configured", 3.0, {}, {"a": "4", "b": "5", "c": "4"}, "b"),
    ("learned for the kind", 1.0, {"number": 3.0}, {"a": "4", "b": "5", "c": "4"}, "b"),
    (
        "learned for another kind too",
        1.0,
        {"label": 3.0, "number": 1.5},
        {"a": "4", "b": "5", "c": "4"},
        "a",
    ),
    (
        "learned for other kinds only",
        1.0,
        {"label": 2.0, "choice": 4.0},
        {"a": "4", "b": "5", "c": "4"},
        "b",
    ),
    ("both together", 1.5, {"number": 1.5}, {"a": "4", "b": "5", "c": "4"}, "b"),
    ("learned for labels", 1.0, {"label": 3.0}, {"a": "yes", "b": "no", "c": "yes"}, "b"),
    ("learned to be weak", 3.0, {"number": 0.25}, {"a": "4", "b": "5", "c": "4"}, "a"),
]


@pytest.mark.parametrize(
    ("weight", "weights", "texts", "winner"), [r[1:] for r in WEIGHTS], ids=[r[0] for r in WEIGHTS]
)
def test_a_voice_counts_what_it_weighs(
    begin: Begin, weight: float, weights: dict[str, float], texts: dict[str, str], winner: str
) -> None:
    members = [make_member("a"), make_member("b", weight, learned=weights), make_member("c")]

    assert begin(members=members).says(**texts).ends().winner == winner


def test_a_tie_goes_to_the_judge(begin: Begin) -> None:
    play = begin(members="ab").says(a="4", b="5")

    assert list(play.asks()) == BOTH
    draft = play.judge_says("b").ends()
    assert (draft.status, draft.winner, draft.parse_stage) == ("selected", "b", "strict")


TIES = [
    # what, answers by member (weight, text), who wins, why
    (
        "two against two",
        {"a": (1.0, "4"), "b": (1.0, "4"), "c": (1.5, "5"), "d": (0.5, "5")},
        "c",
        "tie, the member with the best record",
    ),
    (
        "all differ",
        {"a": (1, "By guess.\nA: 4"), "b": (1, "Six by two.\nA: 12"), "c": (1, "Six by 2.\nA: 3")},
        "b",
        "tie, the answer most like the others",
    ),
    ("all alike", {"a": (1, "4"), "b": (1, "5")}, "a", "tie, the answer most like the others"),
]


@pytest.mark.parametrize(
    ("answers", "winner", "reason"), [r[1:] for r in TIES], ids=[r[0] for r in TIES]
)
def test_a_tie_without_a_judge_is_decided_by_records_and_then_by_likeness(
    begin: Begin, answers: dict[str, tuple[float, str]], winner: str, reason: str
) -> None:
    members = [make_member(name, weight) for name, (weight, _) in answers.items()]
    texts = {name: text for name, (_, text) in answers.items()}

    draft = begin(members=members, judge=None).says(**texts).ends()

    assert (draft.status, draft.winner, draft.reason) == ("voted", winner, reason)


RECORDS = [
    # weights of a, b and c; what they say; the reason
    ((1, 3, 1), "454", "vote by record, which no agreement of the others outweighs"),
    ((1, 1.5, 1), "456", "vote by record, 2 of the 2 others would have to agree"),
    ((1, 1.5, 1), "454", "vote, 2 of 3 say the same"),
    ((1, 2, 1), "456", "vote by record, which no agreement of the others outweighs"),
    # The fewest others: the heaviest of them first.
    ((1, 2.2, 1, 2), "4567", "vote by record, 2 of the 3 others would have to agree"),
]


@pytest.mark.parametrize(("weights", "texts", "reason"), RECORDS)
def test_the_reason_of_a_vote_tells_what_would_have_outweighed_it(
    begin: Begin, weights: tuple[float, ...], texts: str, reason: str
) -> None:
    names = "abcd"[: len(texts)]
    members = [make_member(name, weight) for name, weight in zip(names, weights, strict=True)]

    draft = begin(members=members).says(**dict(zip(names, texts, strict=True))).ends()

    assert draft.reason == reason


def test_a_vote_counts_what_the_prompt_s_schema_takes_for_the_same(begin: Begin) -> None:
    sampling = Sampling(response_schema={"type": "object", "required": ["n"]})
    texts = {"a": '{"n": 5}', "b": '{"n": 4}', "c": '{ "n":4.0 }'}

    draft = begin(prompt={"sampling": sampling}).says(**texts).ends()

    assert (draft.winner, draft.reason) == ("b", "vote, 2 of 3 say the same")


# -- the odds that stored outcomes give ----------------------------------------------------

ODDS = [
    # what, what a learned, judges, who wins
    ("odds of five outweigh a verdict", {"open": 5.0}, 1, "a"),
    ("and not two judges", {"open": 5.0}, 2, "b"),
    ("weights of closed answers are none", {"number": 50.0, "label": 50.0}, 1, "b"),
]


@pytest.mark.parametrize(
    ("learned", "judges", "winner"), [r[1:] for r in ODDS], ids=[r[0] for r in ODDS]
)
def test_a_member_s_odds_count_beside_the_verdicts(
    begin: Begin, juror: Juror, learned: dict[str, float], judges: int, winner: str
) -> None:
    members = [make_member("a", learned=learned), make_member("b"), make_member("c")]
    play = begin(members=members, jury=tuple(juror(model) for model in "xy"[:judges]))
    play.says(**OPEN).asks()

    assert play.judge_says("b").ends().winner == winner


def test_odds_that_a_verdict_just_makes_good_are_a_tie_of_two(begin: Begin) -> None:
    members = [make_member("a", learned={"open": 4.0}), make_member("b"), make_member("c")]
    play = begin(members=members).says(**OPEN)
    play.asks()
    play.judge_says("b")

    assert list(play.asks()) == ["pair-1-1", "pair-1-2"]
    for call in play.verdict_calls():
        assert sorted(play.order(call)) == ["a", "b"]
    assert play.judge_says("a").ends().winner == "a"


def test_odds_count_beside_the_verdicts_on_the_two_as_well(begin: Begin) -> None:
    """The judge names `b` once more, which makes good the odds of `a` once more."""
    members = [make_member("a", learned={"open": 4.0}), make_member("b"), make_member("c")]
    play = begin(members=members).says(**OPEN)
    for _ in range(2):
        play.asks()
        play.judge_says("b")

    assert (play.ends().reason or "").startswith("the judges are tied")


# -- both orders --------------------------------------------------------------------------


def test_a_judge_that_agrees_with_itself_decides(begin: Begin) -> None:
    play = begin().says(**OPEN)

    calls = play.asks()

    assert list(calls) == BOTH
    for call in play.rounds[0].calls:
        assert (call.kind, call.model, call.member) == ("verdict", JUDGE.model, None)
        # Nothing that a reasoning model would refuse, or spend on thought.
        assert (call.sampling.temperature, call.sampling.max_tokens, call.expected_tokens) == (
            None,
            None,
            256,
        )
        schema = call.sampling.response_schema
        assert schema is not None
        assert schema["properties"]["winner"]["enum"] == [
            label for label, _ in play.shown_texts(call)
        ]
        assert sorted(play.order(call)) == ["a", "b", "c"]
        shown_text = "\n".join(message.content for message in call.messages)
        assert not any(member.model in shown_text for member in play.plan.members)
    first, second = play.rounds[0].calls
    assert play.order(first) == play.order(second)[::-1]

    draft = play.judge_says("b").ends()

    assert (draft.status, draft.content, draft.winner) == ("selected", OPEN["b"], "b")
    assert (draft.reason, draft.parse_stage, draft.degraded) == (play.REASON, "strict", ())
    assert draft.lineup == tuple(play.order(first))
    assert draft.agreement == pytest.approx(agreement(draft.answers))
    assert 0 < (draft.agreement or 0) < 1
    assert len(draft.verdicts) == 2
    for verdict, call in zip(draft.verdicts, (first, second), strict=True):
        assert (verdict.call, verdict.winner, verdict.is_consistent) == (call.name, "b", True)
        assert verdict.chars == tuple(len(OPEN[member]) for member in play.order(call))


def test_the_order_shown_is_decided_by_the_seed(begin: Begin) -> None:
    def shown_members(seed: int) -> tuple[str, ...]:
        play = begin(seed=seed).says(**OPEN)
        play.asks()
        members: tuple[str, ...] = play.judge_says("a").ends().lineup
        return members

    assert shown_members(1) == shown_members(1)
    assert len({shown_members(seed) for seed in range(12)}) > 1


def test_the_pool_s_criteria_reach_the_judge(begin: Begin) -> None:
    play = begin(policy={"criteria": "rhyme above all"}).says(**OPEN)
    plain = begin().says(**OPEN)
    play.asks()
    plain.asks()

    assert "rhyme above all" in play.rounds[0].calls[0].messages[0].content
    assert "correct first" in plain.rounds[0].calls[0].messages[0].content


def split(play: "ScriptedFusion", *who: str) -> "ScriptedFusion":
    """The two orders name different ones, neither always the one shown first."""
    play.asks()
    first, second = play.verdict_calls()
    firsts = (play.order(first)[0], play.order(second)[0])
    leader = who if who != firsts else who[::-1]
    return play.judge_says(*leader)


def test_a_judge_that_contradicts_itself_is_asked_about_the_two(begin: Begin) -> None:
    play = split(begin().says(**OPEN), "a", "b")

    assert list(play.asks()) == ["pair-1-1", "pair-1-2"]
    for call in play.verdict_calls():
        assert sorted(play.order(call)) == ["a", "b"]
    draft = play.judge_says("b").ends()

    assert (draft.status, draft.winner, draft.reason) == ("selected", "b", play.REASON)
    assert [(v.kind, v.is_consistent) for v in draft.verdicts] == [
        ("listwise", False), ("listwise", False), ("pair", True), ("pair", True)
    ]  # fmt: skip
    assert play.outcome(1).swap_consistent is False


SETTLED = [
    # what, answers, weights, costs, winner
    (
        "the medoid",
        {"a": "red green", "b": "red green blue pink grey", "c": "blue pink grey"},
        (1, 1, 1),
        (1, 1, 1),
        "b",
    ),
    ("then the weight", OPEN | {"a": "x y", "b": "z w"}, (1, 2, 1), (1, 1, 1), "b"),
    ("then the cost", OPEN | {"a": "x y", "b": "z w"}, (1, 1, 1), (2, 1, 1), "b"),
    ("a price beats none", OPEN | {"a": "x y", "b": "z w"}, (1, 1, 1), (None, 1, 1), "b"),
    ("then the pool", OPEN | {"a": "x y", "b": "z w"}, (1, 1, 1), (1, 1, 1), "a"),
]


@pytest.mark.parametrize(
    ("texts", "weights", "costs", "winner"), [r[1:] for r in SETTLED], ids=[r[0] for r in SETTLED]
)
def test_a_pair_that_ties_is_settled_by_a_rule(
    begin: Begin,
    texts: dict[str, str],
    weights: tuple[int, ...],
    costs: tuple[Any, ...],
    winner: str,
) -> None:
    sentence = " for the one who asks, if I may put it so."
    play = begin(members=[make_member(n, w) for n, w in zip("abc", weights, strict=True)])
    for name, cost in zip("abc", costs, strict=True):
        # One open answer in three would leave the others a vote.
        text = (
            texts[name] if texts[name] == OPEN.get(name) else f"{texts[name]} or so they say here"
        )
        play.say(name, text if "they say" in text else text + sentence, cost_usd=cost)
    split(play, "a", "b").asks()

    draft = play.judge_says("a", "b").ends()

    assert draft.winner == winner
    assert draft.reason == "the judges are tied; most like the others, then by weight, then by cost"


def test_with_two_members_a_split_is_no_matter_for_a_pair(begin: Begin) -> None:
    play = begin(members=[make_member("a"), make_member("b", 2)]).says(**TWO)
    play.asks()

    draft = play.judge_says("a", "b").ends()

    assert (draft.winner, len(play.rounds)) == ("b", 1)
    assert (draft.reason or "").startswith("the judges are tied")


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31 - 1), texts=st.sampled_from([TWO, OPEN, FOUR, FIVE]))
def test_a_judge_that_names_the_first_it_sees_moves_no_winner(
    begin: Begin, seed: int, texts: dict[str, str]
) -> None:
    """The winner is the one that the rule prefers, whatever the order, and never for its place."""

    def winner(seed: int, count: int) -> tuple[str | None, bool | None]:
        members = [make_member(name, 1 + place / 10) for place, name in enumerate("abcde"[:count])]
        play = begin(members=members, seed=seed).says(**texts)
        while not hasattr(play.decide(), "draft"):
            play.asks()
            play.judge_always_first()
        return play.ends().winner, play.outcome(1).swap_consistent

    member, is_consistent = winner(seed, len(texts))

    assert is_consistent is False
    if len(texts) <= 4:
        assert member == winner(0, len(texts))[0]


def test_where_a_judge_follows_the_place_each_is_put_first(begin: Begin) -> None:
    play = begin(members="abcd").says(**FOUR)
    play.asks()
    play.judge_always_first()
    first_members = {play.order(call)[0] for call in play.verdict_calls()}

    assert list(play.asks()) == ["turn-1-1", "turn-1-2"]
    assert {play.order(call)[0] for call in play.verdict_calls()} == set("abcd") - first_members

    other = next(iter(set("abcd") - first_members))
    draft = play.judge_says(other).ends()
    assert (draft.winner, draft.parse_stage) == (other, "strict")
    assert draft.lineup == tuple(play.order(play.rounds[0].calls[0]))


def test_one_turn_alone_is_not_half_of_two_orders(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()
    play.judge_always_first()
    assert list(play.asks()) == ["turn-1-1"]
    play.judge_writes("prose")
    assert list(play.asks()) == ["turn-1-1-again"]

    assert play.judge_writes("prose").ends().degraded == ("verdict_void:not_json",)


# -- a jury -------------------------------------------------------------------------------

JURY = ("x", "y", "z")


def begin_with_jury(begin: Begin, juror: Juror, *models: str, **plan: Any) -> "ScriptedFusion":
    play = begin(jury=tuple(juror(model) for model in models or JURY), **plan).says(**OPEN)
    play.asks()
    return play


def test_a_jury_is_pooled(begin: Begin, juror: Juror) -> None:
    play = begin_with_jury(begin, juror)
    expected = []
    for number, model in enumerate(JURY, 1):
        expected += [(f"verdict-{number}-1", model), (f"verdict-{number}-2", model)]
    assert [(call.name, call.model) for call in play.verdict_calls()] == expected

    play.judge_says("a", judge="x").judge_says("b", judge="y").judge_says("b", judge="z")

    assert (play.ends().winner, play.ends().status) == ("b", "selected")
    assert play.outcome(1).judge_model == "jury"
    assert play.outcome(1).swap_consistent is True


def test_of_three_that_tie_the_two_that_the_rule_prefers_are_compared(
    begin: Begin, juror: Juror
) -> None:
    members = [make_member("a", 2), make_member("b"), make_member("c", 3)]
    play = begin_with_jury(begin, juror, members=members)
    for judge, winner in zip(JURY, "abc", strict=True):
        play.judge_says(winner, judge=judge)

    play.asks()

    assert {call.name.partition("-")[0] for call in play.verdict_calls()} == {"pair"}
    for call in play.verdict_calls():
        assert sorted(play.order(call)) == ["a", "c"]
    assert play.judge_says("a").ends().winner == "a"


def test_each_juror_is_shown_an_order_of_its_own(begin: Begin, juror: Juror) -> None:
    plays = [begin_with_jury(begin, juror, seed=seed) for seed in range(8)]

    def is_varied(play: "ScriptedFusion") -> bool:
        return len({tuple(play.order(call)) for call in play.verdict_calls()[::2]}) > 1

    assert any(is_varied(play) for play in plays)


def test_a_broken_juror_leaves_the_verdict_to_the_others(begin: Begin, juror: Juror) -> None:
    play = begin_with_jury(begin, juror)
    play.judge_says("a", judge="x").judge_says("a", judge="y").judge_writes(
        "!server_error", judge="z"
    )

    draft = play.ends()

    assert (draft.winner, draft.status, draft.degraded) == (
        "a",
        "selected",
        ("verdict_void:server_error",),
    )
    assert [v.void for v in draft.verdicts] == [None] * 4 + ["server_error"] * 2


def test_a_juror_that_is_a_member_has_no_voice_on_its_own_answer(
    begin: Begin, juror: Juror
) -> None:
    play = begin_with_jury(begin, juror, "m-a", "y")
    own, other = (play.order(play.verdict_calls(model)[0]) for model in ("m-a", "y"))

    assert (sorted(own), sorted(other)) == (["b", "c"], ["a", "b", "c"])

    # `a` was named by all who could name it, `b` by half of those.
    play.judge_says("b", judge="m-a").judge_says("a", judge="y")

    assert play.ends().winner == "a"


def test_a_sole_judge_that_is_a_member_judges_the_others(begin: Begin, juror: Juror) -> None:
    texts = {
        "a": "red green stripes in rows of seven",
        "b": "red green blue dots on a plain sheet of paper",
        "c": OPEN["c"],
    }
    play = begin(judge=juror("m-a")).says(**texts)
    play.asks()

    draft = play.judge_says("c").ends()

    # Between the one it named and its own it does not choose: the one more like the others stands.
    assert (draft.winner, set(draft.lineup)) == ("a", {"b", "c"})
    assert (draft.reason or "").startswith(
        "a judge does not vote on its own answer; most like the others"
    )


def test_a_judge_that_is_one_of_two_members_is_not_asked(begin: Begin, juror: Juror) -> None:
    draft = (
        begin(members=[make_member("a"), make_member("b", 2)], judge=juror("m-a"))
        .says(**TWO)
        .ends()
    )

    assert (draft.status, draft.winner, draft.verdicts) == ("voted", "b", ())
    assert (draft.reason or "").startswith("a judge does not vote on its own answer")


def test_a_pool_of_the_judge_s_own_model_alone_is_judged(begin: Begin, juror: Juror) -> None:
    members = [make_member(name, model="m-one") for name in "abc"]
    play = begin(members=members, judge=juror("m-one")).says(**OPEN)
    play.asks()

    assert sorted(play.order(play.verdict_calls()[0])) == ["a", "b", "c"]
    assert play.judge_says("c").ends().winner == "c"


def test_a_juror_that_is_shown_fewer_answers_counts_for_those_alone(
    begin: Begin, juror: Juror
) -> None:
    """`a` is named by one of two that could, `b` by three of four: shares, and no numbers."""
    play = begin_with_jury(begin, juror, "m-a", "x", "y")
    play.judge_says("b", judge="m-a").judge_says("a", judge="x").judge_says("b", judge="y")

    draft = play.ends()

    assert (draft.winner, draft.status) == ("b", "selected")


def test_tallies_add_up_by_member() -> None:
    first = Tally({"a": 2, "b": 1}, {"a": 3, "b": 2}, lineup=("a", "b"), parse_stage="repaired")
    second = Tally({"b": 1, "c": 1}, {"b": 2, "c": 4}, lineup=("c", "b"), parse_stage="strict")

    both = first.plus(second)

    assert (both.wins, both.appearances) == (
        {"a": 2, "b": 2, "c": 1},
        {"a": 3, "b": 4, "c": 4},
    )
    assert (both.lineup, both.parse_stage) == (("a", "b"), "repaired")
    assert second.plus(first).parse_stage == "repaired"


# -- judges that cannot be read -----------------------------------------------------------

UNREADABLE = [
    ("prose", "I like the first one best.", "not_json"),
    (
        "an unknown label",
        '{"reason": "It is simply the best.", "winner": "ZZZ"}',
        "schema_mismatch",
    ),
    ("A, always", '{"reason": "It is simply the best.", "winner": "A"}', "schema_mismatch"),
    ("nobody", '{"reason": "They are all the same.", "winner": ""}', "schema_mismatch"),
    ("no winner", '{"reason": "They are all the same."}', "schema_mismatch"),
    ("nothing", "", "empty"),
    (
        "two verdicts",
        '{"winner":"BC","reason":"It is so good."}{"winner":"CD","reason":"It is so good."}',
        "not_json",
    ),
    ("1 MB", "x" * 1_000_000, "too_long"),
]


@pytest.mark.parametrize(
    ("text", "why"), [r[1:] for r in UNREADABLE], ids=[r[0] for r in UNREADABLE]
)
def test_what_cannot_be_read_is_asked_for_once_more_then_a_rule_decides(
    begin: Begin, text: str, why: str
) -> None:
    play = begin().says(**OPEN)
    play.asks()
    play.judge_writes(text)

    assert list(play.asks()) == [f"{name}-again" for name in BOTH]
    assert [c.messages for c in play.rounds[1].calls] == [c.messages for c in play.rounds[0].calls]
    draft = play.judge_writes(text).ends()

    assert (draft.status, draft.parse_stage, draft.degraded) == (
        "voted",
        "fallback",
        (f"judge_failed:{why}",),
    )
    assert draft.reason == "no usable verdict, the answer most like the others"
    assert draft.winner in OPEN
    assert [v.void for v in draft.verdicts] == [why, why]


def test_the_second_time_it_can_be_read(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()
    play.judge_writes("I like the first.").asks()

    draft = play.judge_says("c").ends()

    assert (draft.status, draft.winner, draft.parse_stage, draft.degraded) == (
        "selected",
        "c",
        "reasked",
        (),
    )


def test_a_repaired_verdict_says_so(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()
    first, second = play.verdict_calls()
    play.say(first.name, f"```json\n{play.verdict(play.label(first, 'c'))}\n```", 1)
    play.say(second.name, play.verdict(play.label(second, "c")), 1)

    draft = play.ends()

    assert (draft.status, draft.winner, draft.parse_stage) == ("selected", "c", "repaired")
    assert [v.rung for v in draft.verdicts] == ["repaired", "strict"]


def test_only_the_order_that_was_not_read_is_asked_for_again(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()
    first, second = play.verdict_calls()
    play.say(first.name, "prose", 1).say(second.name, play.verdict(play.label(second, "b")), 1)

    assert list(play.asks()) == ["verdict-1-1-again"]
    draft = play.judge_writes("prose").ends()

    assert (draft.status, draft.winner, draft.parse_stage) == ("selected", "b", "strict")
    assert draft.degraded == ("verdict_void:not_json", "verdict_void:one_order")
    assert play.outcome(1).swap_consistent is None


@pytest.mark.parametrize("code", ["server_error", "insufficient_quota", "timeout"])
def test_a_judge_that_fails_is_not_asked_again(begin: Begin, code: str) -> None:
    play = begin().says(**OPEN)
    play.asks()

    draft = play.judge_writes(f"!{code}").ends()

    assert (draft.status, draft.parse_stage, draft.degraded) == (
        "voted",
        "fallback",
        (f"judge_failed:{code}",),
    )


def test_a_silent_judge_is_waited_for_until_the_deadline(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()
    assert play.later(59).waits() == 60

    draft = play.later(60).ends()

    assert (draft.status, draft.degraded) == ("voted", ("judge_failed:no_answer",))


def test_a_verdict_that_comes_with_the_deadline_still_counts(begin: Begin) -> None:
    play = begin().says(**OPEN)
    play.asks()

    assert play.later(61).judge_says("b").ends().winner == "b"


def test_open_answers_without_a_judge_are_chosen_by_likeness(begin: Begin) -> None:
    texts = {
        "a": "red green blue stripes everywhere",
        "b": "red green blue",
        "c": "red green dots in rows of five",
    }

    draft = begin(judge=None).says(**texts).ends()

    assert (draft.status, draft.winner, draft.parse_stage, draft.degraded) == (
        "voted",
        "b",
        None,
        (),
    )
    assert draft.reason == "no judge, the answer most like the others"
    assert (draft.content, [answer.member for answer in draft.answers]) == (texts["b"], [*"abc"])
    assert draft.agreement == pytest.approx(agreement(draft.answers))
    assert 0 < (draft.agreement or 0) < 1


# -- controls -----------------------------------------------------------------------------


def test_a_judge_that_picks_the_control_has_said_nothing(begin: Begin, juror: Juror) -> None:
    play = begin_with_jury(begin, juror, "x", "y", policy={"control_share": 1.0})
    for call in play.verdict_calls():
        assert sorted(play.order(call)) == ["a", "b", "c", CONTROL]
    play.judge_says("b", CONTROL, judge="x").judge_says("a", judge="y")

    draft = play.ends()

    assert (draft.winner, draft.degraded) == ("a", ("verdict_void:picked_control",))
    assert CONTROL not in draft.lineup
    assert [(v.void, v.is_consistent) for v in draft.verdicts] == [("picked_control", None)] * 2 + [
        (None, True)
    ] * 2
    assert {v.control for v in draft.verdicts} <= {"null", "master_key"}


def test_if_all_pick_controls_a_rule_decides(begin: Begin) -> None:
    play = begin(policy={"control_share": 1.0}).says(**OPEN)
    play.asks()

    draft = play.judge_says(CONTROL).ends()

    assert (draft.status, draft.degraded) == ("voted", ("judge_failed:picked_control",))
    assert draft.winner in OPEN
    assert sorted(draft.lineup) == sorted(OPEN)


def test_a_share_of_the_line_ups_holds_a_control(begin: Begin) -> None:
    def holds(seed: int) -> bool:
        play = begin(seed=seed, policy={"control_share": 0.25}).says(**OPEN)
        play.asks()
        return CONTROL in play.order(play.verdict_calls()[0])

    assert 60 <= sum(map(holds, range(400))) <= 140
