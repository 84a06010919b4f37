"""A learned route: features of prompts, what outcomes teach, whom it asks, and what follows."""

import random
import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fusewire.contracts import Image, Message, Plan, Policy, Route, Sampling, Tool
from fusewire.testing.factories import make_member, make_plan, make_prompt
from fusewire_judge.learning.agreement_model import fit
from fusewire_judge.learning.chance_model import ChanceModel
from fusewire_judge.learning.comparisons import (
    ComparedAnswer,
    ComparedOutcome,
    compare,
    mean_prices,
)
from fusewire_judge.learning.prompt_features import DIMENSION, MOST_GRAMS, prompt_features
from fusewire_judge.learning.route_choice import choose_route, is_explored
from fusewire_judge.learning.router import (
    MIN_COMPARISONS,
    Comparison,
    Prices,
    Router,
    learn_router,
)
from fusewire_judge.learning.statistics import Statistics, VoteRecord

if TYPE_CHECKING:
    from conftest import ScriptedFusion

Begin = Callable[..., "ScriptedFusion"]
PRICES = Prices({"a": 0.001, "b": 0.001, "c": 0.01}, {"a": 1.0, "b": 2.0, "c": 3.0}, 0.002)

# -- features ---------------------------------------------------------------------------------

CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("length", {"text": "word " * 400}),
    ("words", {"text": "What is the population of France?"}),
    ("script", {"text": "Какая столица Франции сегодня?"}),
    ("schema", {"sampling": Sampling(response_schema={"type": "object"})}),
    ("limit", {"sampling": Sampling(max_tokens=8)}),
    ("tools", {"tools": (Tool(name="look"),)}),
    ("forced call", {"tools": (Tool(name="look"),), "tool_choice": "required"}),
    ("mode", {"mode": "merge"}),
    (
        "system prompt",
        {
            "messages": (
                Message(role="system", content="Be brief."),
                Message(role="user", content="What is the capital of France?"),
            )
        },
    ),
    (
        "image",
        {
            "messages": (
                Message(
                    role="user",
                    content="What is the capital of France?",
                    images=(Image(url="https://a.test/b.png"),),
                ),
            )
        },
    ),
]


@pytest.mark.parametrize(("_what", "change"), CHANGES, ids=[what for what, _ in CHANGES])
def test_what_a_prompt_asks_for_changes_its_features(_what: str, change: dict[str, Any]) -> None:
    assert prompt_features(make_prompt(**change)) != prompt_features(make_prompt())


def test_features_are_few_bounded_and_the_same_in_each_process() -> None:
    features = prompt_features(make_prompt(" ".join(f"word{i} 测试文本" for i in range(9000))))

    assert len(features) <= MOST_GRAMS + 16
    assert all(0 <= place < DIMENSION for place, _ in features)
    assert [place for place, _ in features] == sorted({place for place, _ in features})
    assert sum(value * value for place, value in features if place >= 256) <= 4.0 * 4
    # `hash` would put it elsewhere in each process.
    assert dict(features)[zlib.crc32(b"any") % 256] >= 1.0


# -- the model --------------------------------------------------------------------------------


def test_chances_are_the_rates_until_something_is_learned() -> None:
    assert ChanceModel([0.2, 0.9]).chances(((3, 1.0),)) == pytest.approx([0.2, 0.9])


def test_a_model_learns_what_features_say_and_ignores_unknown_targets() -> None:
    model = ChanceModel([0.5, 0.5])
    for number in range(400):
        place = number % 2
        model.learn(((place, 1.0),), [float(place), None])

    low, high = model.mean().chances(((0, 1.0),)), model.mean().chances(((1, 1.0),))
    assert low[0] < 0.2
    assert high[0] > 0.8
    assert low[1] == high[1] == 0.5


def test_no_single_observation_moves_the_mean_far() -> None:
    model = ChanceModel([0.5])
    for number in range(200):
        if number == 100:
            model.restart_mean()
        model.learn(((0, 1.0),), [float(number % 2)])
    before = model.mean().chances(((0, 1.0),))[0]
    model.learn(((0, 3.0),), [1.0])

    assert model.mean().chances(((0, 1.0),))[0] == pytest.approx(before, abs=0.005)
    assert model.chances(((0, 1.0),))[0] > before + 0.01


# -- what a smaller panel would have answered -------------------------------------------------

VOTE = Comparison(
    (), {"a": 1.0, "b": 0.0, "c": 0.0}, (("b", "c"), ("a",)), {"a": 1.0, "b": 1.0, "c": 1.0}, "b"
)
JUDGED = Comparison((), {"a": 1.0, "b": 0.0, "c": 0.5}, winner="a")


@pytest.mark.parametrize(
    ("comparison", "choice", "chance"),
    [
        (VOTE, "a", 1.0),
        (VOTE, "bc", 0.0),
        (VOTE, "ab", 0.5),
        (VOTE, "abc", 0.0),
        (VOTE, "ad", None),
        (JUDGED, "ab", 1.0),
        (JUDGED, "b", 0.0),
        (JUDGED, "c", 0.5),
        (Comparison((), {"a": 0.0}), "a", 0.0),
    ],
)
def test_the_chance_of_fewer(comparison: Comparison, choice: str, chance: float | None) -> None:
    assert comparison.chance_of(tuple(choice)) == chance


def test_the_cheapest_goes_first_then_the_quickest_and_an_unknown_price_last() -> None:
    prices = Prices({"a": 0.0, "b": 0.0, "c": 0.5}, {"a": 9.0, "b": 2.0, "c": 1.0}, judge_usd=0.1)
    choices = [("d",), ("c",), ("a", "b"), ("a",), ("b",)]

    assert sorted(choices, key=prices.order) == [("b",), ("a",), ("a", "b"), ("c",), ("d",)]


# -- what outcomes teach ----------------------------------------------------------------------


def answer(member: str, **fields: Any) -> ComparedAnswer:
    values = {
        "model": f"m-{member}", "tier": "remote", "status": "ok", "is_right": None,
        "vote_group": None, "weight": 1.0, "latency_ms": 100.0, "cost_usd": 0.1,
    }  # fmt: skip
    return ComparedAnswer(member, **{**values, **fields})


def test_a_label_says_who_is_right() -> None:
    answers = [
        answer("a", is_right=True, vote_group=0),
        answer("b", is_right=False, vote_group=1),
        answer("c", status="error", is_right=None),
        answer("d", status="missing"),
    ]
    outcome = ComparedOutcome("f", "number", "b", False, None, "j", answers)
    comparison = compare("p", outcome, (), Statistics())

    assert comparison is not None
    assert comparison.chances == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert (comparison.groups, comparison.whole) == ((("a",), ("b",)), 0.0)


def test_without_a_label_agreement_says_how_probably() -> None:
    answers = [answer("a", vote_group=0), answer("b", vote_group=0), answer("c", vote_group=1)]
    outcome = ComparedOutcome("f", "number", "a", None, None, "j", answers)
    record = VoteRecord({}, fit({}))
    record.model.abilities.update(dict.fromkeys("abc", 0.6))  # type: ignore[attr-defined]
    comparison = compare("p", outcome, (), Statistics(votes={("p", "number"): record}))

    assert comparison is not None
    assert comparison.chances["a"] == comparison.chances["b"] == comparison.whole
    assert 0 < comparison.chances["c"] < 0.5 < comparison.whole < 1
    assert compare("p", outcome, (), Statistics()) is None


def test_of_open_answers_the_winner_is_probably_right() -> None:
    answers = [answer("a"), answer("b"), answer("c", status="error")]
    outcome = ComparedOutcome("f", "open", "a", None, None, "j", answers)
    comparison = compare("p", outcome, (), Statistics())

    assert comparison is not None
    assert comparison.chances["c"] == 0.0
    assert comparison.whole == comparison.chances["a"] > comparison.chances["b"] > 0.3
    strict = compare("p", outcome, (), Statistics(verdict_edges={("p", "j"): 3.0}))
    other = compare("p", outcome, (), Statistics(verdict_edges={("p", "k"): 3.0}))
    assert strict is not None
    assert strict.whole > comparison.whole, "this judge is right more often than most"
    assert other == comparison
    merged = ComparedOutcome("f", "open", None, None, None, "j", answers)
    assert compare("p", merged, (), Statistics()) is None


def test_calls_at_the_edge_cost_nothing_and_failures_have_no_price() -> None:
    answers = [
        answer("a", tier="edge", cost_usd=None),
        answer("b", cost_usd=0.5),
        answer("c", status="error", cost_usd=None),
    ]
    prices = mean_prices([ComparedOutcome("f", "open", "a", None, 0.25, "j", answers)])

    assert prices.usd == {"a": 0.0, "b": 0.5}
    assert prices.judge_usd == 0.25


# -- planted strengths ------------------------------------------------------------------------

COMMON = re.findall(
    r"\w+", "the a of please what is give me tell how many which and to in for with"
)
TOPICS = {
    "x": re.findall(r"\w+", "sum add multiply number total price equals minus percent cost"),
    "y": re.findall(r"\w+", "poem translate french sentence grammar word verb style letter tone"),
}
GOOD_AT = {"a": {"x": 0.95, "y": 0.3}, "b": {"x": 0.3, "y": 0.95}, "c": {"x": 0.9, "y": 0.9}}
NEAR = {
    member: {"x": share, "y": share} for member, share in zip("abc", (0.6, 0.64, 0.7), strict=True)
}
USD = {"a": 0.001, "b": 0.001, "c": 0.01}


def draw(rng: random.Random, strengths: dict[str, dict[str, float]]) -> Comparison:
    """A prompt of one of two kinds, and who was right; wrong answers are the same at times."""
    kind = rng.choice("xy")
    words = rng.choices(COMMON, k=8) + rng.choices(TOPICS[kind], k=4)
    features = prompt_features(make_prompt(" ".join(words)))
    right = {member: rng.random() < share[kind] for member, share in strengths.items()}
    groups: dict[str, list[str]] = {}
    for member, is_right in right.items():
        groups.setdefault("right" if is_right else rng.choice("uvw"), []).append(member)
    winner = max(groups, key=lambda name: (len(groups[name]), "c" in groups[name]))
    return Comparison(
        features=features,
        chances={member: float(is_right) for member, is_right in right.items()},
        groups=tuple(map(tuple, groups.values())),
        weights={"a": 1.0, "b": 1.0, "c": 1.2},
        whole=float(winner == "right"),
    )


def simulate(strengths: dict[str, dict[str, float]], seed: int) -> tuple[float, float, Router]:
    """Points lost and share of cost saved on prompts that were not learned from."""
    rng = random.Random(seed)
    router = learn_router(
        ("a", "b", "c"), [draw(rng, strengths) for _ in range(1000)], PRICES, loss=0.01
    )
    assert router is not None
    lost = spent = 0.0
    for _ in range(700):
        comparison = draw(rng, strengths)
        prediction = router.predict(comparison.features, "abc", ())
        members = prediction.members if prediction else ("a", "b", "c")
        chance = comparison.chance_of(members) if prediction else comparison.whole
        assert chance is not None
        lost += comparison.whole - chance
        spent += sum(USD[member] for member in members)
    return lost / 7, 1 - spent / (700 * sum(USD.values())), router


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_members_with_strengths_of_their_own_are_asked_alone(seed: int) -> None:
    """Money is saved, and no more than a point lost, on prompts that were not learned from."""
    points, saving, _ = simulate(GOOD_AT, seed)

    assert points <= 1.0
    assert saving > 0.1


def test_where_only_all_together_are_good_all_are_asked() -> None:
    points, _, router = simulate(NEAR, 4)

    assert points <= 1.0
    assert router.bound is None or router.bound <= 0.01


def test_members_that_are_always_right_leave_the_cheapest() -> None:
    rows = [Comparison(((number % 7, 1.0),), dict.fromkeys("abc", 1.0)) for number in range(240)]
    router = learn_router(("a", "b", "c"), rows, PRICES, loss=0.01)

    assert router is not None
    prediction = router.predict(((0, 1.0),), "abc", ())
    assert prediction is not None
    assert prediction.members == ("a",)
    assert prediction.loss == pytest.approx(0, abs=1e-6)
    required = router.predict(((0, 1.0),), "abc", ("b",))
    assert required is not None
    assert "b" in required.members
    # Who may not answer is not asked; of two that may, one is enough.
    fewer = router.predict(((0, 1.0),), "bc", ())
    assert fewer is not None
    assert fewer.members == ("b",)
    # A member that was never compared.
    assert router.predict(((0, 1.0),), "ad", ()) is None


def test_too_few_outcomes_teach_no_route() -> None:
    rows = [Comparison((), dict.fromkeys("abc", 1.0))] * (MIN_COMPARISONS - 1)
    assert learn_router(("a", "b", "c"), rows, PRICES, loss=0.01) is None
    # A member that is heard too seldom.
    seldom = [Comparison((), dict.fromkeys("ab", 1.0))] * 500
    assert learn_router(("a", "b", "c"), seldom, PRICES, loss=0.01) is None
    assert learn_router(("a", "b"), [], PRICES, loss=0.01) is None


def test_what_loses_too_much_on_stored_outcomes_is_not_asked() -> None:
    """Each alone is right half the time, and nothing in the prompts says when."""
    rng = random.Random(5)
    rows = []
    for _ in range(400):
        right = rng.choice("ab")
        chances = {"a": float(right == "a"), "b": float(right == "b")}
        rows.append(Comparison(((rng.randrange(5), 1.0),), chances, whole=1.0))
    router = learn_router(("a", "b"), rows, PRICES, loss=0.01)

    assert router is not None
    assert router.bound is None
    assert router.predict(((0, 1.0),), "ab", ()) is None


@pytest.mark.parametrize(("count", "choices"), [(3, 6), (4, 14), (5, 15), (8, 8)])
def test_the_number_of_choices_is_bounded(count: int, choices: int) -> None:
    members = tuple("abcdefgh"[:count])
    rows = [Comparison(((0, 1.0),), dict.fromkeys(members, 1.0))] * 120
    router = learn_router(members, rows, Prices({}, {}), loss=0.01)

    assert router is not None
    assert len(router.choices) == choices


# -- on the plan ------------------------------------------------------------------------------

LEARNED = Policy(route="learned", route_explore=0.0, control_share=0.0)


def routed_plan(policy: Policy = LEARNED, **fields: Any) -> Plan:
    members = tuple(make_member(name, wave=1, hedge_after_s=3.0) for name in "abc")
    return make_plan(**{"members": members, "policy": policy, **fields})


def good_router() -> Router:
    rows = [Comparison(((0, 1.0),), dict.fromkeys("abc", 1.0))] * 240
    router = learn_router(("a", "b", "c"), rows, PRICES, loss=0.01)
    assert router is not None
    return router


def route(plan: Plan, router: Router | None, **prompt: Any) -> Route | None:
    return choose_route(plan, make_prompt(**prompt), router).route


def test_a_route_is_off_unless_the_pool_says_so() -> None:
    assert Policy().route == "all"
    plan = make_plan()
    assert choose_route(plan, make_prompt(), good_router()) is plan
    waves = routed_plan(Policy(gate="edge-first"))
    assert choose_route(waves, make_prompt(), good_router()) is waves


def test_the_reasons_of_a_route() -> None:
    everybody = ("a", "b", "c")
    chosen = route(routed_plan(), good_router())
    assert chosen == Route(members=("a",), reason="predicted", loss_points=0.0)
    assert route(routed_plan(), None) == Route(members=everybody, reason="unlearned")
    explore = LEARNED.model_copy(update={"route_explore": 1.0})
    plan = choose_route(routed_plan(explore), make_prompt(), good_router())
    assert plan.route == Route(members=everybody, reason="explored")
    # Whoever is not waited for would teach nothing.
    assert plan.policy.early_stop == 1.0
    strict = Router(everybody, good_router().choices, good_router().model, bound=-1.0)
    assert route(routed_plan(), strict) == Route(members=everybody, reason="too_risky")


def test_a_required_member_is_asked_in_any_case() -> None:
    members = tuple(make_member(name, wave=1, is_required=name == "c") for name in "abc")
    chosen = route(routed_plan(members=members), good_router())

    assert chosen is not None
    assert chosen.members == ("c",)


def test_exploration_is_a_share_and_the_same_whenever_a_plan_is_taken() -> None:
    policy = LEARNED.model_copy(update={"route_explore": 0.2})
    plans = [routed_plan(policy, seed=seed) for seed in range(500)]
    explored = [is_explored(plan) for plan in plans]

    assert 70 <= sum(explored) <= 130
    assert explored == [is_explored(plan) for plan in plans]


# -- through the judge ------------------------------------------------------------------------


def begin_routed(begin: Begin, *members: str, **prompt: Any) -> "ScriptedFusion":
    chosen = Route(members=members, reason="predicted", loss_points=0.4)
    planned = tuple(make_member(name, wave=1) for name in "abc")
    return begin(members=planned, policy={"route": "learned"}, route=chosen, prompt=prompt)


def test_a_subset_of_one_needs_no_judge_and_is_not_degraded(begin: Begin) -> None:
    play = begin_routed(begin, "a")

    assert list(play.asks()) == ["a"]
    outcome = play.replies(a="It is Paris, on the Seine.").outcome()
    assert (outcome.status, outcome.content) == ("single", "It is Paris, on the Seine.")
    assert (outcome.is_degraded, outcome.missing_weight) == (False, 0.0)
    assert {a.member: a.status for a in outcome.answers} == {
        "a": "ok",
        "b": "unasked",
        "c": "unasked",
    }
    assert outcome.reason == "a alone was asked, as the route predicts"
    assert outcome.route is not None
    assert outcome.route.text == ("not asked: the route predicts 0.4 points lost by asking a alone")


def test_quorum_and_votes_are_of_those_that_are_asked(begin: Begin) -> None:
    play = begin_routed(begin, "a", "b")

    assert list(play.asks()) == ["a", "b"]
    outcome = play.replies(a="4", b="4").outcome()
    assert (outcome.status, outcome.closed_by, outcome.agreement) == ("voted", "complete", 1.0)
    assert not outcome.is_degraded


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!server_error", "failed:a:server_error"),
        ("I'm sorry, but I can't help with that.", "refused:a"),
    ],
)
def test_where_the_chosen_member_gives_no_answer_the_others_are_asked(
    begin: Begin, text: str, reason: str
) -> None:
    play = begin_routed(begin, "a")
    play.asks()

    assert list(play.replies(a=text).asks()) == ["b", "c"]
    outcome = play.replies(b="4", c="4").outcome()
    assert (outcome.status, outcome.content) == ("voted", "4")
    assert outcome.degraded_reasons == (reason,)


def test_it_is_too_late_for_the_others_after_the_panel_s_deadline(begin: Begin) -> None:
    play = begin_routed(begin, "a")
    play.asks()
    outcome = play.later(46).replies(a="!server_error").outcome()

    assert outcome.is_degraded
    assert len(play.rounds) == 1


def test_after_the_panel_s_deadline_nobody_is_called(begin: Begin) -> None:
    outcome = begin_routed(begin, "a").later(50).outcome()

    assert (outcome.status, outcome.closed_by) == ("expired", "deadline")


@pytest.mark.parametrize(
    ("members", "is_read", "is_streamed"),
    [("a", True, True), ("a", False, False), ("ab", True, False)],
)
def test_one_chosen_member_is_streamed(
    begin: Begin, members: str, is_read: bool, is_streamed: bool
) -> None:
    play = begin_routed(begin, *members, is_streamed=is_read)
    play.asks()

    assert {call.is_streamed for call in play.rounds[0].calls} == {is_streamed}


def test_a_streamed_member_is_not_hedged() -> None:
    plan = choose_route(routed_plan(), make_prompt(is_streamed=True), good_router())

    assert {member.hedge_after_s for member in plan.members} == {None}
    assert choose_route(routed_plan(), make_prompt(), good_router()).members[0].hedge_after_s == 3.0


def test_a_straggler_that_a_route_has_chosen_is_hedged(begin: Begin) -> None:
    chosen = Route(members=("a",), reason="predicted")
    planned = tuple(make_member(name, wave=1, hedge_after_s=2.0) for name in "abc")
    play = begin(members=planned, policy={"route": "learned"}, route=chosen)

    play.asks()
    assert play.waits() == 2.0
    assert list(play.later(2).asks()) == ["a=h"]


def test_a_client_s_seed_gives_each_chosen_member_its_own(begin: Begin) -> None:
    play = begin_routed(begin, "a", "b", sampling=Sampling(seed=5))
    play.asks()
    seeds = [call.sampling.seed for call in play.rounds[0].calls]

    assert None not in seeds
    assert len(set(seeds)) == 2
