"""What a member is worth: planted truths come back."""

import random
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest

from fusewire.analysis.ablation import (
    Ablation,
    JudgeInsight,
    MemberTally,
    MemberValue,
    Rate,
    WinRates,
    give_verdict,
)

BLIND = JudgeInsight()


def tally(*ablations: Ablation) -> MemberValue:
    member = MemberTally("a")
    for ablation in ablations:
        member.add(ablation)
    return member.value(BLIND)


def ablation(**fields: Any) -> Ablation:
    defaults: dict[str, Any] = {"member": "a", "basis": "recomputed", "is_changed": False}
    return Ablation(**(defaults | fields))


# -- planted truths ---------------------------------------------------------------------------

ACCURACY = {"strong": 0.85, "middle": 0.7, "weak": 0.6}


def votes(rng: random.Random) -> dict[str, str]:
    """What members say: the right answer, or one of two wrong ones."""
    said = {
        name: "right" if rng.random() < share else rng.choice(["wrong", "other"])
        for name, share in ACCURACY.items()
    }
    return said | {"useless": f"nonsense {rng.random()}"}


def winner(said: dict[str, str]) -> str:
    """The most frequent answer; on a tie the first."""
    return Counter(said.values()).most_common(1)[0][0]


def values(seed: int, n: int) -> dict[str, MemberValue]:
    rng = random.Random(seed)
    tallies = {name: MemberTally(name) for name in (*ACCURACY, "useless")}
    for _ in range(n):
        said = votes(rng)
        chosen = winner(said)
        for name, member in tallies.items():
            other = winner({key: text for key, text in said.items() if key != name})
            rights = [key for key, text in said.items() if text == "right"]
            member.add(
                Ablation(
                    member=name,
                    basis="recomputed",
                    is_changed=other != chosen,
                    is_right=chosen == "right",
                    is_right_without=other == "right",
                    is_sole_right=rights == [name],
                    cost_usd=0.01,
                    total_usd=0.04,
                )
            )
    return {name: member.value(BLIND) for name, member in tallies.items()}


def test_the_loss_of_a_good_member_lies_within_its_interval_as_often_as_promised() -> None:
    truth = {name: value.loss.value for name, value in values(12345, 15_000).items()}
    hits: Counter[str] = Counter()
    for seed in range(100):
        for name, value in values(seed, 200).items():
            true_loss = truth[name]
            assert true_loss is not None
            hits[name] += value.loss.low <= true_loss <= value.loss.high
    assert all(hits[name] >= 90 for name in ACCURACY), hits


def test_a_member_that_is_right_where_others_are_wrong_is_worth_it_and_a_useless_one_is_not() -> (
    None
):
    by_name = values(1, 1500)
    assert by_name["strong"].verdict == "worth_it"
    assert by_name["strong"].loss.low > 0
    useless = by_name["useless"]
    assert useless.verdict == "nothing_seen"
    assert useless.loss.low <= 0 <= useless.loss.high
    assert useless.sole_right.value == 0
    assert useless.cost_per_1000_usd == pytest.approx(10)
    assert useless.cost_share == pytest.approx(0.25)


# -- sums -------------------------------------------------------------------------------------


def test_each_basis_is_counted_and_an_unknown_one_is_in_no_rate() -> None:
    bases = ("recomputed", "kept", "estimated", "rejudged")
    value = tally(
        *(ablation(basis=basis) for basis in bases), ablation(basis="unknown", is_changed=None)
    )
    counts = {name: n for name, n in asdict(value).items() if name.startswith("n_")}
    assert counts == {f"n_{basis}": 1 for basis in (*bases, "unknown")} | {
        "n_priced": 0,
        "n_timed": 0,
    }
    assert (value.n, value.changed.n, value.is_estimate) == (5, 4, True)


def test_a_rate_of_fewer_than_thirty_has_an_interval_and_no_value() -> None:
    few = tally(*[ablation(is_right=True, is_right_without=False)] * 29)
    assert (few.loss.value, few.verdict) == (None, "too_few")
    assert few.loss.low > 0.8
    enough = tally(*[ablation(is_right=True, is_right_without=False)] * 30)
    assert (enough.loss.value, enough.verdict) == (1.0, "worth_it")


def test_an_unknown_price_is_none_and_not_nothing() -> None:
    free = tally(*[ablation(cost_usd=0.0, total_usd=1.0)] * 3)
    assert (free.cost_per_1000_usd, free.cost_share) == (0.0, 0.0)
    unknown = tally(ablation(cost_usd=0.1, total_usd=0.2), ablation(cost_usd=None, total_usd=None))
    assert (unknown.cost_per_1000_usd, unknown.cost_share, unknown.n_priced) == (None, None, 1)


def test_latency_is_the_mean_of_what_was_called() -> None:
    value = tally(*[ablation(saved_ms=0.0)] * 20, *[ablation(saved_ms=300.0)] * 10, ablation())
    assert (value.saved_ms, value.n_timed) == (100.0, 30)
    assert value.last.value == pytest.approx(1 / 3)


def test_the_judges_preference_is_the_mean_over_all_outcomes_and_none_where_one_is_unknown() -> (
    None
):
    kept = [ablation()] * 20
    lost = [ablation(is_changed=True, win_rate=0.8)] * 20
    assert tally(*kept, *lost).win_loss == pytest.approx(0.15)
    assert tally(*kept, *lost, ablation(is_changed=True)).win_loss is None


def rate(n: int, low: float, high: float, value: float | None = 0.5) -> Rate:
    return Rate(n, value if n >= 30 else None, low, high)


@pytest.mark.parametrize(
    ("n", "loss", "change_rate", "verdict"),
    [
        (29, rate(29, 0.1, 0.2), rate(29, 0, 1), "too_few"),
        (100, rate(0, -1, 1), rate(29, 0, 1), "needs_replay"),
        (100, rate(30, 0.1, 0.2), rate(90, 0, 1), "worth_it"),
        (100, rate(30, -0.2, -0.1), rate(90, 0, 1), "harmful"),
        (100, rate(30, -0.2, 0.1), rate(90, 0, 1), "nothing_seen"),
        (100, rate(29, 0.1, 0.2), rate(90, 0, 1), "changes_unlabelled"),
        (100, rate(29, 0.1, 0.2), rate(90, 0, 0.03, 0.0), "nothing_seen"),
    ],
)
def test_the_verdict_follows_its_rule(n: int, loss: Rate, change_rate: Rate, verdict: str) -> None:
    assert give_verdict(n, loss, change_rate) == verdict


# -- estimates --------------------------------------------------------------------------------


def test_the_insight_of_judges_is_found_and_where_they_choose_it_counts() -> None:
    rng = random.Random(5)
    insight = JudgeInsight()
    for _ in range(4000):
        n_shown = rng.choice([2, 3, 4])
        n_right = rng.randrange(1, n_shown)
        weight = 3.0 * n_right
        is_right = rng.random() < weight / (weight + n_shown - n_right)
        insight.add(n_right, n_shown, is_right=is_right)
    assert insight.probability(1, 2) == pytest.approx(0.75, abs=0.02)
    assert insight.probability(1, 4) == pytest.approx(0.5, abs=0.02)
    member = MemberTally("a")
    for _ in range(400):
        member.add(ablation(basis="estimated", is_changed=True, is_right=True, options=(1, 2)))
    value = member.value(insight)
    assert value.accuracy_without.value == pytest.approx(0.75, abs=0.02)
    assert value.loss.value == pytest.approx(0.25, abs=0.02)


def test_judges_of_whom_little_is_known_choose_by_lot_and_no_verdict_breaks_the_sum() -> None:
    insight = JudgeInsight()
    for _ in range(29):
        insight.add(1, 2, is_right=True)
        insight.add(0, 2, is_right=False)
        insight.add(2, 2, is_right=True)
    assert insight.probability(1, 4) == pytest.approx(0.25)
    insight.add(1, 2, is_right=True)
    assert 0.99 < insight.probability(1, 2) < 1


def test_the_best_model_is_that_with_the_highest_mean_win_rate() -> None:
    rates = WinRates(
        [("a", "b", 10, 8, 0), ("b", "a", 10, 2, 0), ("b", "c", 10, 4, 2), ("c", "b", 10, 4, 2)]
    )
    assert (rates.rate("a", "b"), rates.rate("b", "c"), rates.rate("a", "c")) == (0.8, 0.5, None)
    assert rates.best(["b", "a"]) == "a"
    assert rates.best(["b", "c"]) is None
    assert rates.best(["a"]) == "a"
    assert rates.best([]) is None
