"""Which members of a pool to ask about a prompt, learned from outcomes in which all were. Pure.

For each small choice of members, and for asking all, a logistic model over the features of prompts
says how probably its answer is right (`chance_model`). A choice is good enough for a prompt if
asking all would be right more often by at most some points; of those that are, the cheapest is
asked.

Predictions that are chosen among flatter those that are chosen. So how low a predicted loss has to
be is found out on the newer half of the outcomes, each predicted before it was learned from: what
would have been asked may not have lost more than the pool allows, plus a standard error.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from fusewire_judge.learning.chance_model import ChanceModel
from fusewire_judge.learning.prompt_features import Features

MIN_COMPARISONS = 100
"""Outcomes of each choice below which everybody is asked."""
MOST_FOR_SUBSETS = 4
"""Up to so many members each subset is a choice; of more members, each alone, and up to
`MOST_FOR_PAIRS` each pair: every choice costs time in each prediction."""
MOST_FOR_PAIRS = 6
BOUNDS = (1.0, 0.5, 0.0, -1.0, -2.0, -4.0, -8.0)
"""Bounds of the predicted loss that are tried, in shares of the loss that the pool allows."""

Choice = tuple[str, ...]
"""Members that are asked together, in the pool's order."""


@dataclass(frozen=True)
class Comparison:
    """What is known of the answers to one prompt that all members of a pool were asked.

    Attributes:
        features: of the prompt.
        chances: by member that was heard, the probability that its answer is right; 0 for a
            failure.
        groups: members whose answers were equal, if they were voted on.
        weights: by member, of its vote.
        winner: the member whose answer was chosen, if one was.
        whole: the probability that the outcome is right.
    """

    features: Features
    chances: Mapping[str, float]
    groups: tuple[tuple[str, ...], ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    winner: str | None = None
    whole: float = 1.0

    def chance_of(self, choice: Collection[str]) -> float | None:
        """The probability that the outcome would have been right if only these had been asked.

        A vote is taken again, and a judge is taken to choose the same answer if it is there. None
        if one of them was not heard.
        """
        if not all(member in self.chances for member in choice):
            return None
        if self.groups:
            return self._vote(choice)
        if self.winner is not None and self.winner in choice:
            return self.chances[self.winner]
        answers = [self.chances[member] for member in choice if self.chances[member] > 0]
        return sum(answers) / len(answers) if answers else 0.0

    def _vote(self, choice: Collection[str]) -> float:
        """The chance of the heaviest group; the mean of those that are equally heavy."""
        groups = [tuple(filter(choice.__contains__, group)) for group in self.groups]
        votes = [(self._weight(group), self.chances[group[0]]) for group in groups if group]
        heaviest = max((weight for weight, _ in votes), default=0.0)
        chances = [chance for weight, chance in votes if weight == heaviest]
        return sum(chances) / len(chances) if chances else 0.0

    def _weight(self, members: Iterable[str]) -> float:
        return sum(self.weights.get(member, 1.0) for member in members)


@dataclass(frozen=True)
class Prices:
    """What asking costs, as the means of stored outcomes.

    Attributes:
        usd: by member; None where its price is unknown, which counts as dearer than any other.
        latency_ms: by member.
        judge_usd: of judging several answers.
    """

    usd: Mapping[str, float | None]
    latency_ms: Mapping[str, float]
    judge_usd: float = 0.0

    def order(self, choice: Choice) -> tuple[int, float, float, int, Choice]:
        """A key that sorts choices: the cheapest first; of equally cheap ones, the quickest."""
        prices = [self.usd.get(member) for member in choice]
        usd = sum(price for price in prices if price is not None)
        if len(choice) > 1:
            usd += self.judge_usd
        latency_ms = max(self.latency_ms.get(member, math.inf) for member in choice)
        return prices.count(None), round(usd, 12), latency_ms, len(choice), choice


@dataclass(frozen=True)
class Prediction:
    """A choice of members, and what it is predicted to lose against asking all, 0 to 1."""

    members: Choice
    loss: float


@dataclass(frozen=True)
class Router:
    """What was learned of one pool.

    Attributes:
        members: of the pool, in its order.
        choices: the cheapest first, without that of all members.
        model: the probability that each choice's answer is right, and after them that of all.
        bound: the highest predicted loss of a choice that is good enough; None if no bound has
            shown on stored outcomes that it keeps to what the pool allows.
    """

    members: Choice
    choices: tuple[Choice, ...]
    model: ChanceModel
    bound: float | None

    def predict(
        self, features: Features, eligible: Collection[str], required_names: Collection[str]
    ) -> Prediction | None:
        """Return the cheapest choice that is good enough for a prompt; None if none is.

        Args:
            features: of the prompt.
            eligible: the members that may answer it.
            required_names: the members that are asked in any case.
        """
        if self.bound is None:
            return None
        chances = self.model.chances(features)
        whole = self._chance_of_all(chances, eligible)
        if whole is None:
            return None
        limits = _Limits(self.bound, frozenset(eligible), frozenset(required_names))
        return _first(self.choices, chances, whole, limits)

    def _chance_of_all(self, chances: Sequence[float], eligible: Collection[str]) -> float | None:
        """The chance of all that may answer; None if they were never compared with fewer."""
        if set(self.members) <= set(eligible):
            return chances[-1]
        for choice, chance in zip(self.choices, chances, strict=False):
            if set(choice) == set(eligible):
                return chance
        return None


@dataclass(frozen=True)
class _Limits:
    """What a choice may be: who may answer, who has to, and the highest predicted loss."""

    bound: float
    eligible: frozenset[str]
    required: frozenset[str] = frozenset()


def _first(
    choices: Iterable[Choice], chances: Sequence[float], whole: float, limits: _Limits
) -> Prediction | None:
    """Return the first choice within the limits."""
    for choice, chance in zip(choices, chances, strict=False):
        if whole - chance > limits.bound or len(choice) >= len(limits.eligible):
            continue
        if limits.required <= set(choice) <= limits.eligible:
            return Prediction(choice, whole - chance)
    return None


def learn_router(
    members: Choice, comparisons: Sequence[Comparison], prices: Prices, *, loss: float
) -> Router | None:
    """Learn which members to ask.

    Args:
        members: of the pool, in its order.
        comparisons: of outcomes in which all of them were asked, the oldest first.
        prices: of the members.
        loss: what asking fewer may lose, 0 to 1.

    Returns:
        None if too little is known of a choice.
    """
    choices = sorted(_choices(members), key=prices.order)
    targets = [_targets(comparison, choices) for comparison in comparisons]
    rates = [_rate(column) for column in zip(*targets, strict=True)]
    known_rates = [rate for rate in rates if rate is not None]
    if not rates or len(known_rates) < len(rates):
        return None
    model = ChanceModel(known_rates)
    newer = len(comparisons) // 2
    predictions = []
    for number, (comparison, row) in enumerate(zip(comparisons, targets, strict=True)):
        if number == newer:
            model.restart_mean()
        predictions.append(model.learn(comparison.features, row))
    bound = _find_bound(members, choices, predictions[newer:], targets[newer:], loss)
    return Router(members, tuple(choices), model.mean(), bound)


def _rate(chances: Iterable[float | None]) -> float | None:
    """The mean chance of a choice; None if it is known of too few outcomes."""
    known_chances = [chance for chance in chances if chance is not None]
    if len(known_chances) < MIN_COMPARISONS:
        return None
    return sum(known_chances) / len(known_chances)


def _choices(members: Choice) -> list[Choice]:
    """The choices of fewer than all members."""
    most = 1
    if len(members) <= MOST_FOR_SUBSETS:
        most = len(members) - 1
    elif len(members) <= MOST_FOR_PAIRS:
        most = 2
    choices: list[Choice] = []
    for size in range(1, most + 1):
        choices += combinations(members, size)
    return choices


def _targets(comparison: Comparison, choices: Iterable[Choice]) -> list[float | None]:
    """The chance of each choice, and after them that of all."""
    return [*(comparison.chance_of(choice) for choice in choices), comparison.whole]


def _find_bound(
    members: Choice,
    choices: Sequence[Choice],
    predictions: Sequence[Sequence[float]],
    targets: Sequence[Sequence[float | None]],
    loss: float,
) -> float | None:
    """Return the highest bound whose choices lost no more than allowed; None if there is none.

    Args:
        members: of the pool.
        choices: the cheapest first.
        predictions: of each outcome before it was learned from.
        targets: what was found of it then.
        loss: what may be lost, 0 to 1.
    """
    for share in BOUNDS:
        limits = _Limits(share * loss, frozenset(members))
        chosen_members = [_first(choices, row, row[-1], limits) for row in predictions]
        losses = [
            _loss(prediction, choices, row)
            for prediction, row in zip(chosen_members, targets, strict=True)
        ]
        # Of outcomes for which all would have been asked nothing is learned about the bound.
        if any(chosen_members) and _upper_mean(losses) <= loss:
            return limits.bound
    return None


def _loss(
    prediction: Prediction | None, choices: Sequence[Choice], actual: Sequence[float | None]
) -> float:
    """What a choice lost against asking all; 0 where all are asked, or where nobody knows."""
    chance = None if prediction is None else actual[choices.index(prediction.members)]
    whole = actual[-1]
    return 0.0 if chance is None or whole is None else whole - chance


def _upper_mean(losses: Sequence[float]) -> float:
    """The mean, and a standard error."""
    mean = sum(losses) / len(losses)
    variance = sum((value - mean) ** 2 for value in losses) / len(losses)
    return mean + math.sqrt(variance / len(losses))
