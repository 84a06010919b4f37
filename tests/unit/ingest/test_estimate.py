"""What a prompt will cost, before anything is asked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import MODES, Message, RecordedAnswer, Sampling, TextReference
from fusewire.testing.factories import make_prompt
from fusewire_ingest.admission.estimate import (
    Catalogue,
    Estimate,
    Member,
    Model,
    Pool,
    estimate,
    rate_tokens,
)

PRICED = Model(is_edge=False, rates=(0.001, 0.01), max_tokens=100)
MODELS = {
    "a": PRICED,
    "b": PRICED,
    "edge": Model(is_edge=True, rates=None, max_tokens=50),
    "free": Model(is_edge=False, rates=(0.0, 0.0), max_tokens=100),
    "unpriced": Model(is_edge=False, rates=None, max_tokens=100),
    "j": PRICED,
}


def pool(*members: str, **rules: Any) -> Pool:
    return Pool(tuple(Member(name, name) for name in members), **rules)


def estimate_of(default_pool: Pool, text: str = "x" * 40, **prompt: Any) -> Estimate:
    return estimate(make_prompt(text, **prompt), Catalogue({"default": default_pool}, MODELS))


def test_a_single_member_is_a_call_and_no_judge() -> None:
    prediction = estimate_of(pool("a", judge="j"))

    assert (prediction.calls, prediction.tokens_out, prediction.unpriced) == (1, 100, ())
    # At most: a token for each byte, 8 for the turn, an answer at the model's limit.
    assert prediction.usd_max == pytest.approx(48 * 0.001 + 100 * 0.01)
    assert prediction.usd_min == pytest.approx(prediction.tokens_in * 0.001 + 0.01)


def test_a_text_that_stands_apart_counts_as_if_it_were_within() -> None:
    aside = TextReference(name="ab" * 32, chars=4_000, size=5_000, at=3)
    short = Message(role="user", content="x" * 40)
    prediction = estimate_of(pool("a"), messages=(short.model_copy(update={"texts": (aside,)}),))

    alone = estimate_of(pool("a"), messages=(short,))
    assert prediction.tokens_in - alone.tokens_in == 1_000
    assert prediction.usd_max == pytest.approx((alone.usd_max or 0) + 5_000 * 0.001)


def test_the_prompt_s_own_limit_comes_before_the_pool_s_and_the_model_s() -> None:
    assert estimate_of(pool("a", max_tokens=30)).tokens_out == 30
    assert estimate_of(pool("a", max_tokens=30), sampling=Sampling(max_tokens=7)).tokens_out == 7


def test_a_judge_costs_two_orders_and_at_most_its_repetitions() -> None:
    alone, with_judge = estimate_of(pool("a", "b")), estimate_of(pool("a", "b", judge="j"))

    assert (alone.calls, with_judge.calls) == (2, 4)
    assert alone.usd_max is not None
    assert with_judge.usd_max is not None
    assert with_judge.usd_max > alone.usd_max


@pytest.mark.parametrize(
    ("members", "unpriced_models"),
    [(("a", "unpriced"), ("unpriced",)), (("edge", "free"), ()), (("edge",), ())],
)
def test_a_price_that_is_not_known_makes_the_sum_unknown(
    members: tuple[str, ...], unpriced_models: tuple[str, ...]
) -> None:
    prediction = estimate_of(pool(*members))

    assert prediction.unpriced == unpriced_models
    assert prediction.usd_max == (None if unpriced_models else 0.0)


def test_what_may_not_leave_costs_nothing() -> None:
    prediction = estimate_of(pool("a", "edge", judge="j"), residency="edge-only")

    assert (prediction.calls, prediction.usd_max, prediction.edge_share) == (1, 0.0, 1.0)


def test_an_edge_first_gate_can_save_all_hosted_calls() -> None:
    prediction = estimate_of(pool("a", "edge", is_gated=True))

    assert prediction.usd_min == 0.0
    assert prediction.usd_max is not None
    assert prediction.usd_max > 0


def test_a_pool_that_is_gone_costs_nothing() -> None:
    assert estimate(make_prompt("Why?", pool="gone"), Catalogue({}, MODELS)).usd_max == 0.0


RULES = st.fixed_dictionaries(
    {},
    optional={
        "judge": st.sampled_from(["j", "edge", "a"]),
        "jury": st.sampled_from([("j", "a"), ("edge", "j", "b")]),
        "max_tokens": st.integers(1, 20_000),
        "is_gated": st.booleans(),
        "is_hedged": st.booleans(),
        "is_guarded": st.booleans(),
        "debate_rounds": st.integers(1, 5),
        "checks": st.integers(1, 5),
        "criteria": st.sampled_from(["Be strict.", "x" * 4000]),
    },
)
MEMBERS = st.lists(st.sampled_from(["a", "b", "edge", "free"]), min_size=1, max_size=4, unique=True)


@given(MEMBERS, RULES, st.sampled_from(MODES), st.text(max_size=300))
def test_the_least_is_not_more_than_expected_nor_that_than_the_most(
    members: list[str], rules: dict[str, Any], mode: str, text: str
) -> None:
    prediction = estimate_of(pool(*members, **rules), text, mode=mode)

    assert prediction.usd_min is not None
    assert prediction.usd_expected is not None
    assert prediction.usd_max is not None
    assert 0 <= prediction.usd_min <= prediction.usd_expected + 1e-12
    assert prediction.usd_expected <= prediction.usd_max + 1e-12


def test_each_answer_is_checked_as_often_as_the_pool_says() -> None:
    once = estimate_of(pool("a", "b", judge="j"), "Why?", mode="verify")
    thrice = estimate_of(pool("a", "b", judge="j", checks=3), "Why?", mode="verify")
    alone = estimate_of(pool("a", "b"), "Why?", mode="verify")

    assert alone.usd_expected is not None
    assert once.usd_expected is not None
    assert thrice.usd_expected is not None
    cost_of_checks = once.usd_expected - alone.usd_expected
    assert cost_of_checks > 0
    assert thrice.usd_expected == pytest.approx(alone.usd_expected + 3 * cost_of_checks)


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ({"sampling": Sampling(max_tokens=70)}, 10 + 70),
        ({}, 10 + 100),
        ({"members": ("edge",)}, 10 + 50),
        ({"recorded": (RecordedAnswer(member="x", model="a", content="4"),)}, 10),
        ({"pool": "none"}, 0),
    ],
)
def test_a_rate_limit_counts_the_prompt_once_and_one_longest_answer(
    prompt: dict[str, Any], tokens: int
) -> None:
    catalogue = Catalogue({"default": pool("a", "b", "edge", judge="j")}, MODELS)

    assert rate_tokens(make_prompt("x" * 40, **prompt), catalogue) == tokens
