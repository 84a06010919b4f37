"""The lens cards: scores by hand, what cannot be told, and the evidence."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest

from fusewire.analysis.compare import (
    HumanVote,
    Judgement,
    Names,
    Pair,
    Panel,
    Rules,
    Side,
    compare,
)
from fusewire.analysis.compare.cost_lens import founder, prices
from fusewire.analysis.compare.quality_lenses import builder, creator, harm, skeptic
from fusewire.analysis.compare.trend_lens import futurist, slope

T0 = datetime(2026, 11, 1, tzinfo=UTC)
NAMES = Names("models", "x", "y")
GOOD = Side("o", True, True, None, False, 0.001, 100.0)
FAILURE = replace(GOOD, is_answered=False, is_clean=False, latency_ms=None)


def make_pair(number: int, a: Side = GOOD, b: Side = GOOD, **judgement: Any) -> Pair:
    outcome_id = f"o{number:04}"
    said = Judgement(outcome_id, None, False, f"sentence {number}", "j", 0.5, ("j",))
    return Pair(
        f"h{number}",
        T0 + timedelta(hours=number),
        "open",
        replace(a, outcome_id=outcome_id),
        replace(b, outcome_id=outcome_id),
        replace(said, **judgement),
    )


def judged(b_wins: int, a_wins: int, ties: int = 0) -> list[Pair]:
    choices = ["b"] * b_wins + ["a"] * a_wins + ["tie"] * ties
    return [make_pair(number, choice=choice) for number, choice in enumerate(choices)]


# -- Builder ------------------------------------------------------------------------------------


def test_builder_counts_what_can_be_used() -> None:
    pairs = [make_pair(n, b=FAILURE if n < 20 else GOOD) for n in range(100)]

    card = builder(pairs)

    assert (card.a, card.b, card.step, card.n) == (100.0, 80.0, "skip", 100)
    assert card.difference is not None
    assert card.difference.high < 0
    assert "20.0 % (13.3 to 28.9, n 100)" in card.details[1]
    assert card.evidence is not None
    assert (card.evidence.outcome_id, card.evidence.speaks) == ("o0019", "against B")


def test_a_difference_that_is_not_sure_is_no_skip() -> None:
    pairs = [make_pair(n, b=FAILURE if n < 2 else GOOD) for n in range(100)]
    assert builder(pairs).step == "ship"


def test_under_30_prompts_a_dash_is_shown() -> None:
    for card in (builder(judged(29, 0)), creator(NAMES, judged(29, 0)), skeptic(judged(99, 0))):
        assert (card.a, card.b, card.difference, card.step) == (None, None, None, "–")
        assert card.missing
    assert "–" in builder(judged(29, 0)).details[0]
    assert creator(NAMES, judged(30, 0)).step == "ship"
    assert skeptic(judged(100, 0)).step == "ship"


# -- Skeptic ------------------------------------------------------------------------------------


def test_harm() -> None:
    wrong, right = replace(GOOD, is_right=False), replace(GOOD, is_right=True)
    pairs = {
        1.0: make_pair(1, b=FAILURE, choice="b"),
        0.75: make_pair(1, a=right, b=replace(wrong, is_alone_wrong=True)),
        0.5: make_pair(1, a=right, b=wrong),
        0.25: make_pair(1, choice="tie", is_flip=True),
        0.0: make_pair(1, a=wrong, b=wrong),
    }
    assert {amount: harm(pair, "b") for amount, pair in pairs.items()} == {
        amount: amount for amount in pairs
    }
    assert harm(make_pair(1, choice="a"), "b") == 0.5
    assert harm(make_pair(1, choice="a"), "a") == 0.0
    assert harm(make_pair(1, a=right, b=right, choice="a"), "b") == 0.0, "the label knows better"


def test_skeptic_looks_at_the_worst_twentieth() -> None:
    # B's worst ten of 200: four failures and six losses; A's: ten wins of B.
    pairs = [
        *(make_pair(n, b=FAILURE) for n in range(4)),
        *(make_pair(n, choice="a") for n in range(4, 20)),
        *(make_pair(n, choice="b") for n in range(20, 200)),
    ]

    card = skeptic(pairs)

    assert card.b == pytest.approx(100 * (1 - (4 * 1 + 6 * 0.5) / 10))
    assert card.a == pytest.approx(50)
    assert card.evidence is not None
    assert card.evidence.outcome_id == "o0019"


def test_skeptic_skips_one_that_fails_more() -> None:
    pairs = [make_pair(n, b=FAILURE if n % 20 == 0 else GOOD) for n in range(400)]
    card = skeptic(pairs)
    assert (card.a, card.b, card.step) == (100.0, 0.0, "skip")


def test_flips_are_counted() -> None:
    pairs = [make_pair(n, choice="tie", is_flip=n < 10) for n in range(100)]
    assert "10.0 % (5.5 to 17.4, n 100)" in skeptic(pairs).details[0]


# -- Creator ------------------------------------------------------------------------------------


def test_creator_is_the_win_rate_on_open_prompts() -> None:
    closed = [replace(pair, answer_kind="number") for pair in judged(0, 500)]

    card = creator(NAMES, judged(60, 30, 10) + closed)

    assert (card.n, card.a, card.b, card.step) == (100, 35.0, 65.0, "ship")
    assert card.details == ("B won 60, A 30, 10 ties",)
    assert creator(NAMES, judged(20, 80)).step == "skip"


def test_creator_without_open_prompts_says_so() -> None:
    assert creator(NAMES, []).missing == "no open prompts with a verdict between the two"
    pools = creator(Names("pools", "p", "q"), judged(60, 30))
    assert pools.step == "–"
    assert "inside a pool" in (pools.missing or "")


# -- Founder ------------------------------------------------------------------------------------


def labelled(n: int, usd: float | None, ms: float, rights: int) -> list[Pair]:
    """A is right on half of n prompts for 0.001 USD in 100 ms; B as given."""
    return [
        make_pair(
            number,
            replace(GOOD, is_right=number % 2 == 0),
            replace(GOOD, is_right=number < rights, cost_usd=usd, latency_ms=ms),
        )
        for number in range(n)
    ]


def test_founder_takes_the_lower_value_for_the_budget() -> None:
    card = founder(labelled(100, 0.002, 50.0, 50), Rules())

    # B costs twice as much for each right answer, and takes half of the time.
    assert (card.a, card.b) == (50 + 25, 25 + 50)
    assert card.difference is not None
    assert card.difference.value == pytest.approx(-100)
    assert card.step == "skip"


def test_founder_ships_what_is_cheaper_and_no_slower() -> None:
    card = founder(labelled(100, 0.0005, 100.0, 50), Rules())
    assert (card.a, card.b, card.step) == (75.0, 100.0, "ship")
    assert card.difference is not None
    assert card.difference.value == pytest.approx(50)


@pytest.mark.parametrize(
    ("rules", "step", "b"),
    [
        (Rules(budget_usd=0.004, budget_ms=50), "ship", 100.0),
        (Rules(budget_usd=0.002, budget_ms=50), "skip", 75.0),
        (Rules(budget_usd=0.004, budget_ms=25), "skip", 75.0),
    ],
)
def test_founder_holds_budgets_against_b(rules: Rules, step: str, b: float) -> None:
    card = founder(labelled(100, 0.002, 50.0, 50), rules)
    assert (card.step, card.b) == (step, b)


def test_a_free_answer_costs_nothing_and_an_unpriced_one_is_unknown() -> None:
    free = founder(labelled(100, 0.0, 100.0, 50), Rules())
    assert (free.a, free.b, free.step) == (50.0, 100.0, "ship")

    unpriced = founder(labelled(100, None, 100.0, 50), Rules())
    assert unpriced.step == "–"
    assert unpriced.missing == "more than 5 % of the answers have no price"
    _, price = prices(labelled(100, None, 100.0, 50))
    assert (price.usd_per_1000, price.n_unpriced) == (None, 100)


def test_a_few_unpriced_answers_are_left_out() -> None:
    pairs = labelled(100, 0.001, 100.0, 50)
    some = [replace(pair, b=replace(pair.b, cost_usd=None)) for pair in pairs[:5]] + pairs[5:]
    assert founder(some, Rules()).step == "ship"
    more = [replace(pair, b=replace(pair.b, cost_usd=None)) for pair in pairs[:6]] + pairs[6:]
    assert founder(more, Rules()).step == "–"


def test_without_labels_an_answer_is_accepted_if_the_judge_prefers_it() -> None:
    card = founder(judged(75, 25), Rules())
    price_a, price_b = prices(judged(75, 25))
    assert price_b.accepted_means == "preferred by the judge"
    assert price_a.usd_per_accepted == pytest.approx(0.004)
    assert price_b.usd_per_accepted == pytest.approx(0.1 / 75)
    assert card.step == "ship"


def test_nothing_accepted_has_no_price_per_accepted_answer() -> None:
    card = founder(labelled(100, 0.001, 100.0, 0), Rules())
    assert (card.step, card.missing) == ("–", "not a single answer was accepted")
    assert founder([make_pair(1)], Rules()).missing == (
        "no labels or verdicts say which answers are accepted"
    )


# -- Futurist -----------------------------------------------------------------------------------


def by_week(rng: Random, rates: list[float], n: int) -> list[Pair]:
    pairs = []
    for week, rate in enumerate(rates):
        for number in range(n):
            right = rng.random() < rate
            pair = make_pair(
                week * n + number,
                replace(GOOD, is_right=rng.random() < 0.6),
                replace(GOOD, is_right=right),
            )
            pairs.append(replace(pair, at=T0 + timedelta(weeks=week, minutes=number)))
    return pairs


def test_a_planted_trend_is_found() -> None:
    card = futurist(by_week(Random(1), [0.7, 0.65, 0.6, 0.55], 1000))

    assert card.difference is not None
    assert card.difference.low <= -5 <= card.difference.high < 0
    assert card.step == "skip"
    assert card.details[0].startswith("A: no trend")
    assert card.details[1].startswith("B: -")


def test_no_trend_is_an_answer_95_times_in_100() -> None:
    cards = [futurist(by_week(Random(seed), [0.6] * 4, 100)) for seed in range(200)]
    n_trends = sum("no trend" not in card.details[1] for card in cards)
    assert n_trends <= 18


def test_only_the_last_four_weeks_count() -> None:
    rates = [1.0, 0.0, 0.6, 0.6, 0.6, 0.6]
    assert futurist(by_week(Random(2), rates, 200)).n == 800


def test_too_few_weeks_have_no_trend() -> None:
    card = futurist(by_week(Random(3), [0.6, 0.6], 200))
    assert (card.step, card.b) == ("–", None)
    assert card.missing == "2 of the last 4 weeks have 30 prompts that tell; 3 are the least"
    assert futurist(by_week(Random(3), [0.6] * 4, 29)).step == "–"
    assert futurist([]).step == "–"


def test_a_slope_by_hand() -> None:
    # Equal weights: means 0.5, 0.6, 0.7 rise by 10 points a week.
    weeks = {-2: [0.0, 1.0] * 50, -1: [0.0] * 40 + [1.0] * 60, 0: [0.0] * 30 + [1.0] * 70}
    interval = slope(weeks)
    assert interval.value == pytest.approx(10, abs=0.3)
    assert interval.low < 10 < interval.high
    assert slope({-1: [1.0] * 30, 0: [1.0] * 30}).value == 0


# -- evidence -----------------------------------------------------------------------------------


def test_evidence_is_of_the_surest_then_the_newest_outcome() -> None:
    pairs = judged(0, 60)
    pairs[10] = replace(
        pairs[10], judgement=replace(pairs[10].judgement, agreement=0.9, outcome_id="o9999")
    )
    pairs[12] = replace(pairs[12], judgement=replace(pairs[12].judgement, agreement=0.9))
    pairs[40] = replace(
        pairs[40], judgement=replace(pairs[40].judgement, agreement=1.0, reason="  ")
    )
    pairs[41] = replace(
        pairs[41], judgement=replace(pairs[41].judgement, agreement=1.0, judge_model=None)
    )

    card = creator(NAMES, pairs)

    assert card.evidence is not None
    assert (card.evidence.outcome_id, card.evidence.sentence) == ("o0012", "sentence 12")
    assert card.evidence.author == "j"


def test_a_rule_is_quoted_only_if_no_judge_wrote_anything() -> None:
    by_rule = [
        replace(pair, judgement=replace(pair.judgement, judge_model=None)) for pair in judged(0, 40)
    ]
    evidence = creator(NAMES, by_rule).evidence
    assert evidence is not None
    assert evidence.author == "rule"
    silent = [
        replace(pair, judgement=replace(pair.judgement, reason=None)) for pair in judged(0, 40)
    ]
    assert creator(NAMES, silent).evidence is None


# -- all together -------------------------------------------------------------------------------


def test_the_panel_counts_the_cards() -> None:
    comparison = compare(NAMES, Rules(), labelled(400, 0.0005, 100.0, 200), [])

    assert (comparison.panel.ship, comparison.panel.skip, comparison.panel.unknown) == (3, 1, 1)
    assert comparison.best_for_b[0] == "cheaper by 50 %"
    assert not comparison.is_skip


@pytest.mark.parametrize(
    ("decision", "panel", "is_skip"),
    [
        ("SHIP A", Panel(3, 2, 0), True),
        ("TOO CLOSE", Panel(1, 2, 2), True),
        ("TOO CLOSE", Panel(2, 2, 1), False),
        ("SHIP B", Panel(2, 3, 0), True),
        ("SHIP B", Panel(0, 0, 5), False),
    ],
)
def test_what_counts_as_a_skip(decision: Any, panel: Panel, is_skip: bool) -> None:
    comparison = compare(NAMES, Rules(), judged(40, 20), [])
    header = replace(comparison.header, decision=decision)
    assert replace(comparison, header=header, panel=panel).is_skip is is_skip


def test_a_judge_of_its_own_answers_is_noted() -> None:
    pairs = [
        replace(pair, judgement=replace(pair.judgement, judges=("y",))) for pair in judged(60, 40)
    ]
    notes = compare(NAMES, Rules(), pairs, []).notes
    assert "y judges answers of its own (self-graded)" in notes


def test_votes_stand_apart() -> None:
    pairs = judged(40, 20)
    people = [
        HumanVote(pair.judgement.outcome_id, "b" if number < 50 else "a")
        for number, pair in enumerate(pairs)
    ]

    without = compare(NAMES, Rules(), pairs, [])
    comparison = compare(NAMES, Rules(), pairs, [*people, HumanVote("elsewhere", "a")])

    assert without.votes.n == 0
    assert comparison.header == without.header
    assert comparison.votes.n == 60
    assert (comparison.votes.for_a, comparison.votes.for_b) == (10, 50)
    # Both say b 40 times and a 10 times of 60; by chance 40·50 + 20·10 of 3600.
    assert comparison.votes.kappa == pytest.approx((50 / 60 - 2200 / 3600) / (1 - 2200 / 3600))
    assert compare(NAMES, Rules(), pairs, people[30:]).votes.kappa is not None
    assert compare(NAMES, Rules(), pairs, people[31:]).votes.kappa is None
