"""How probably each of several closed answers is right, from who agrees with whom. Pure.

The model, of one pool and one kind of answer:

- A prompt has a difficulty z ~ N(0, 1), which all members share. Member m is right with probability
  logistic(ability_m - spread z): a Rasch model (Rasch, 1960). So members are wrong together more
  often than by chance.
- The wrong answers to a prompt fall into groups of equal ones by Ewens' sampling formula (1972),
  whose parameter is chosen so that two wrong answers are the same with probability `collision`.
  Agreement on something wrong thus has its own probability; a right answer is in no such group.

Its parameters are fitted to stored outcomes, with labels or without, by expectation maximisation
(Dempster, Laird and Rubin, 1977) with a prior on each. Without labels the patterns of agreement are
explained by who was probably right, as Dawid and Skene (1979) do. docs/fusion.md has its limits.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

NODES = (-2.8569700138728, -1.3556261799742, 0.0, 1.3556261799742, 2.8569700138728)
NODE_WEIGHTS = (0.0112574113277, 0.2220759220056, 0.5333333333333, 0.2220759220056, 0.0112574113277)
"""Gauss-Hermite quadrature of N(0, 1), for the difficulty."""
PRIOR_ABILITY = 0.6
"""Mean of the prior N(0.6, 1) of an ability: right on about two prompts of three. Configured
weights move it."""
PRIOR_SPREAD = 1.2
SPREAD_PRECISION = 16.0
"""Of the prior of log(spread): N(log 1.2, 1/16). Without labels the spread can hardly be told from
the collision rate, and a prior below what real models show lets two weak members outvote a strong
one (docs/fusion.md)."""
PRIOR_COLLISION = 0.25
"""Mean of the prior Beta(1, 3) of the collision rate."""
STEPS = 60
TOLERANCE = 1e-3
"""The fit ends once no ability changes by more."""

NO_WEIGHTS: Mapping[str, float] = MappingProxyType({})

Groups = Sequence[Sequence[str]]
"""A pattern of agreement: members with equal answers together; each member once."""


@dataclass(frozen=True)
class Pattern:
    """How often the members' answers to a prompt fell into these groups.

    Attributes:
        groups: of members whose answers were equal.
        right: the number of the group that was right by its label, or -1 if none was. None without
            a label.
    """

    groups: tuple[tuple[str, ...], ...]
    right: int | None = None


@dataclass(frozen=True)
class AgreementModel:
    """A fitted model.

    Attributes:
        abilities: by member, on the scale of log odds at a prompt of mean difficulty.
        spread: how much the difficulty of prompts matters.
        collision: the probability that two wrong answers are the same.
    """

    abilities: Mapping[str, float]
    spread: float = PRIOR_SPREAD
    collision: float = PRIOR_COLLISION

    def chances(self, groups: Groups) -> list[float]:
        """The probability that each group's answer is right; what is left is that none is."""
        weights = [sum(nodes) for nodes in self.scenarios(groups)]
        total = sum(weights)
        return [weight / total for weight in weights[:-1]]

    def accuracy(self, member: str) -> float:
        """How often a member is right."""
        chances = _chances_of_right(self.abilities[member], self.spread)
        return sum(w * p for w, p in zip(NODE_WEIGHTS, chances, strict=True))

    def scenarios(self, groups: Groups) -> list[list[float]]:
        """The probability of these groups with each of them right, and with none; by node."""
        chances = [_group_chances(self, group) for group in groups]
        sizes = [len(group) for group in groups]
        scenarios = []
        for number in range(len(groups) + 1):
            wrong_sizes = tuple(sorted(sizes[:number] + sizes[number + 1 :]))
            coincidence = _ewens(wrong_sizes, self.collision)
            nodes = [coincidence * weight for weight in NODE_WEIGHTS]
            for place, (right, wrong) in enumerate(chances):
                _multiply(nodes, right if place == number else wrong)
            scenarios.append(nodes)
        return scenarios


def _group_chances(model: AgreementModel, group: Sequence[str]) -> tuple[list[float], list[float]]:
    """By node, the probability that all members of a group are right, and that all are wrong."""
    right, wrong = [1.0] * len(NODES), [1.0] * len(NODES)
    for member in group:
        chances = _chances_of_right(model.abilities[member], model.spread)
        _multiply(right, chances)
        _multiply(wrong, [1 - chance for chance in chances])
    return right, wrong


def _multiply(products: list[float], factors: Sequence[float]) -> None:
    for place, factor in enumerate(factors):
        products[place] *= factor


def _chances_of_right(ability: float, spread: float) -> list[float]:
    """By node, the probability that a member of this ability is right."""
    return [1 / (1 + math.exp(spread * z - ability)) for z in NODES]


@lru_cache(maxsize=4096)
def _ewens(sizes: tuple[int, ...], collision: float) -> float:
    """The probability that wrong answers fall into groups of these sizes, by Ewens' formula.

    Two are the same with probability 1 / (1 + theta).

    >>> round(_ewens((2,), 0.25), 2), round(_ewens((1, 1), 0.25), 2)
    (0.25, 0.75)
    """
    theta = (1 - collision) / collision
    probability = 1.0
    for size in sizes:
        probability *= theta * math.factorial(size - 1)
    for earlier in range(sum(sizes)):
        probability /= theta + earlier
    return probability


def fit(
    patterns: Mapping[Pattern, int],
    start: AgreementModel | None = None,
    configured_weights: Mapping[str, float] = NO_WEIGHTS,
) -> AgreementModel:
    """Fit the model to patterns and how often each occurred.

    Args:
        patterns: with their counts; members may be missing from some.
        start: a model fitted to much the same, from which fewer steps are needed.
        configured_weights: by member, how much more it is expected to be right than others: odds,
            of which ratios count. A member that is missing has 1.
    """
    priors = _prior_abilities(patterns, configured_weights)
    model = _first_guess(priors, start or AgreementModel({}))
    for _ in range(STEPS):
        after = _expect(model, patterns.items()).maximize(model, priors)
        change = max((abs(after.abilities[m] - a) for m, a in model.abilities.items()), default=0.0)
        model = after
        if change < TOLERANCE:
            break
    return model


def _prior_abilities(
    patterns: Iterable[Pattern], configured_weights: Mapping[str, float]
) -> dict[str, float]:
    """By member, the mean of its ability's prior; their mean is `PRIOR_ABILITY`."""
    members: set[str] = set()
    for pattern in patterns:
        members.update(*pattern.groups)
    log_odds = {m: math.log(configured_weights.get(m, 1.0)) for m in sorted(members)}
    mean = sum(log_odds.values()) / max(1, len(log_odds))
    return {member: PRIOR_ABILITY + value - mean for member, value in log_odds.items()}


def _first_guess(priors: Mapping[str, float], start: AgreementModel) -> AgreementModel:
    abilities = {member: start.abilities.get(member, prior) for member, prior in priors.items()}
    return AgreementModel(abilities, start.spread, start.collision)


class _ExpectedCounts:
    """What the patterns are expected to hold by a model: who was right, and which wrong ones agree.

    Attributes:
        right: by member and node, how often it was right.
        total: by member and node, how often it answered.
        same: pairs of wrong answers that were the same.
        pairs: pairs of wrong answers.
    """

    def __init__(self) -> None:
        self.right: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(NODES))
        self.total: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(NODES))
        self.same = 0.0
        self.pairs = 0.0

    def add(self, groups: Groups, number: int, nodes: Sequence[float]) -> None:
        """Count a pattern whose group `number` was right, so often by node."""
        for place, group in enumerate(groups):
            for member in group:
                _add(self.total[member], nodes)
                if place == number:
                    _add(self.right[member], nodes)
        sizes = [len(group) for place, group in enumerate(groups) if place != number]
        self.same += sum(nodes) * sum(math.comb(size, 2) for size in sizes)
        self.pairs += sum(nodes) * math.comb(sum(sizes), 2)

    def maximize(self, model: AgreementModel, priors: Mapping[str, float]) -> AgreementModel:
        """One step of Newton's method towards the most probable parameters."""
        abilities = {
            member: self._ability(member, old, model.spread, priors[member])
            for member, old in model.abilities.items()
        }
        return AgreementModel(
            abilities, self._spread(abilities, model.spread), (self.same + 1) / (self.pairs + 4)
        )

    def _ability(self, member: str, ability: float, spread: float, prior: float) -> float:
        gradient, curvature = prior - ability, 1.0
        for right, total, chance in self._nodes(member, ability, spread):
            gradient += right - total * chance
            curvature += total * chance * (1 - chance)
        return ability + gradient / curvature

    def _spread(self, abilities: Mapping[str, float], spread: float) -> float:
        log_spread = math.log(spread)
        gradient = SPREAD_PRECISION * (math.log(PRIOR_SPREAD) - log_spread)
        curvature = SPREAD_PRECISION
        for member, ability in abilities.items():
            for z, (right, total, chance) in zip(
                NODES, self._nodes(member, ability, spread), strict=True
            ):
                slope = -z * spread
                gradient += slope * (right - total * chance)
                curvature += slope**2 * total * chance * (1 - chance)
        return math.exp(log_spread + gradient / curvature)

    def _nodes(
        self, member: str, ability: float, spread: float
    ) -> Iterable[tuple[float, float, float]]:
        chances = _chances_of_right(ability, spread)
        return zip(self.right[member], self.total[member], chances, strict=True)


def _expect(model: AgreementModel, patterns: Iterable[tuple[Pattern, int]]) -> _ExpectedCounts:
    counts = _ExpectedCounts()
    for pattern, count in patterns:
        scenarios = model.scenarios(pattern.groups)
        numbers: Iterable[int] = range(len(scenarios))
        if pattern.right is not None:
            numbers = (pattern.right % len(scenarios),)
        total = sum(sum(scenarios[number]) for number in numbers)
        for number in numbers:
            nodes = [count * value / total for value in scenarios[number]]
            counts.add(pattern.groups, number, nodes)
    return counts


def _add(sums: list[float], values: Sequence[float]) -> None:
    for place, value in enumerate(values):
        sums[place] += value
