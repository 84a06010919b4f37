"""Quorum: when the panel has said enough."""

import itertools
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import ClosedBy
from fusewire.testing.factories import T0, make_plan
from fusewire_judge.model import MemberAnswer
from fusewire_judge.panel.quorum import close_early, closes_at, quorum_at, stays_ahead

EVEN = {"a": 1.0, "b": 1.0, "c": 1.0}


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


QUORUM = [
    # what, quorum, weights, answers by second, when
    ("nobody yet", 0.67, EVEN, {}, None),
    ("one of three", 0.67, EVEN, {"a": 1}, None),
    ("two of three meet 0.67: the tolerance", 0.67, EVEN, {"a": 2, "b": 4}, 4),
    ("two of three meet 0.671", 0.671, EVEN, {"a": 1, "b": 1}, 1),
    ("two of three do not meet 0.7", 0.7, EVEN, {"a": 1, "b": 1}, None),
    ("exactly the quorum less its tolerance", 0.505, {**EVEN, "d": 1.0}, {"a": 1, "b": 2}, 2),
    ("all of them are needed", 1.0, EVEN, {"a": 1, "b": 1}, None),
    ("all of them came", 1.0, EVEN, {"a": 1, "b": 3, "c": 2}, 3),
    ("one alone is never enough", 0.1, EVEN, {"a": 1}, None),
    ("the second makes it", 0.1, EVEN, {"a": 1, "b": 5, "c": 9}, 5),
    ("in a pool of one it is", 0.67, {"a": 1.0}, {"a": 1}, 1),
    ("weights count", 0.8, {"a": 8.0, "b": 1.0, "c": 1.0}, {"b": 1, "c": 2}, None),
    ("not heads", 0.8, {"a": 8.0, "b": 1.0, "c": 1.0}, {"a": 1, "c": 2}, 2),
    ("a heavy one alone is none", 0.8, {"a": 98.0, "b": 1.0, "c": 1.0}, {"a": 1}, None),
    ("by time, not by name", 0.67, EVEN, {"c": 1, "b": 2, "a": 9}, 2),
]


@pytest.mark.parametrize(
    ("quorum", "weights", "answers", "when"),
    [row[1:] for row in QUORUM],
    ids=[row[0] for row in QUORUM],
)
def test_quorum(
    quorum: float, weights: dict[str, float], answers: dict[str, float], when: float | None
) -> None:
    closing = quorum_at(
        make_plan(quorum=quorum), weights, {name: at(second) for name, second in answers.items()}
    )

    assert closing == (None if when is None else at(when))


CLOSES = [
    # what, quorum at, a required one is out, closes at
    ("no quorum", None, False, 45),
    ("0.35 of what it took", 20, False, 27),
    ("half a second at least", 0.1, False, 0.6),
    ("ten seconds at most", 32, False, 42),
    ("the panel's deadline", 40, False, 45),
    ("a required one is waited for", 20, True, 45),
]


@pytest.mark.parametrize(
    ("quorum", "is_out", "when"), [row[1:] for row in CLOSES], ids=[row[0] for row in CLOSES]
)
def test_closes(quorum: float | None, is_out: bool, when: float) -> None:
    closing = closes_at(
        make_plan(), None if quorum is None else at(quorum), is_required_pending=is_out
    )

    assert (closing - T0).total_seconds() == pytest.approx(when)


def test_the_time_to_quorum_runs_from_the_plan() -> None:
    plan = make_plan(planned_at=at(10))

    assert closes_at(plan, at(20), is_required_pending=False) == at(23.5)


WEIGHT = st.floats(0.25, 4)


def weights_by_text(votes: list[tuple[str, float]]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text, weight in votes:
        weights[text] = weights.get(text, 0.0) + weight
    return weights


@given(
    st.lists(st.tuples(st.sampled_from("456"), WEIGHT), min_size=2, max_size=5),
    st.lists(WEIGHT, max_size=4),
)
def test_what_is_certain_nobody_who_is_out_can_change(
    votes_so_far: list[tuple[str, float]], out: list[float]
) -> None:
    texts = [
        MemberAnswer(f"m{i}", weight, text, 0) for i, (text, weight) in enumerate(votes_so_far)
    ]
    closing: ClosedBy | None = close_early(make_plan(), texts, out, None)

    weights = weights_by_text(votes_so_far)
    if closing == "certain":
        # The worst for the leader: all that are out say what the runner-up says, or something new.
        first, *trailing = sorted(weights.values(), reverse=True)
        assert first > max(trailing, default=0.0) + sum(out)


def test_a_heavy_member_that_is_out_is_waited_for() -> None:
    """Two light ones are the majority of heads, and not of the vote."""
    two = [MemberAnswer("a", 1.0, "41", 0), MemberAnswer("b", 1.0, "41", 0)]
    plan = make_plan(policy=make_plan().policy.model_copy(update={"early_stop": 0.87}))

    assert close_early(plan, two, [3.0], None) is None
    assert close_early(plan, two, [1.0, 1.0, 1.0], None) == "likely"


def test_many_heads_do_not_stop_a_vote_that_a_few_heavy_members_decide() -> None:
    votes_so_far = [MemberAnswer(f"m{i}", 0.25, "41", 0) for i in range(4)]

    assert close_early(make_plan(), votes_so_far, [4.0], None) is None


@given(st.integers(0, 6), st.integers(0, 6), st.lists(WEIGHT, max_size=6))
def test_probabilities_of_a_vote_sum_to_one(leading: int, trailing: int, out: list[float]) -> None:
    assert stays_ahead(leading, trailing, sum(out) + 1, out) == pytest.approx(1)


@given(
    st.lists(st.tuples(st.sampled_from("45"), WEIGHT), min_size=2, max_size=4),
    st.lists(WEIGHT, min_size=1, max_size=4),
)
def test_a_vote_differs_from_the_full_one_as_rarely_as_it_says(
    votes_so_far: list[tuple[str, float]], out: list[float]
) -> None:
    """Over all votes of pending members, each as likely as earlier ones make it (Laplace)."""
    texts = [
        MemberAnswer(f"m{i}", weight, text, 0) for i, (text, weight) in enumerate(votes_so_far)
    ]
    weights = {"4": 0.0, "5": 0.0} | weights_by_text(votes_so_far)
    leader = max(weights, key=lambda text: weights[text])
    heads, lead = (
        sum(t == leader for t, _ in votes_so_far),
        2 * weights[leader] - sum(weights.values()),
    )

    def run(votes: tuple[bool, ...]) -> tuple[float, float]:
        """The chance of these votes of pending members, and the lead that they leave."""
        chance, ahead, leading = 1.0, lead, heads
        counts = itertools.count(len(votes_so_far))
        for count, is_for, weight in zip(counts, votes, out, strict=False):
            share = (leading + 1) / (count + 2)
            chance *= share if is_for else 1 - share
            ahead += weight if is_for else -weight
            leading += is_for
        return chance, ahead

    runs = [run(votes) for votes in itertools.product((True, False), repeat=len(out))]
    differs = sum(chance for chance, ahead in runs if ahead < 0)

    sure = stays_ahead(heads, len(votes_so_far) - heads, lead, out)
    assert differs <= 1 - sure + 1e-9
    for threshold in (0.6, 0.75, 0.87, 0.93):
        plan = make_plan(policy=make_plan().policy.model_copy(update={"early_stop": threshold}))
        if close_early(plan, texts, out, None) == "likely":
            assert sure >= threshold
