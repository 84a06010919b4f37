"""Vote weights of a pool's members, learned from stored outcomes. Pure."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fusewire_judge.learning.agreement_model import (
    NO_WEIGHTS,
    AgreementModel,
    Groups,
    Pattern,
)

MIN_OBSERVATIONS = 20
"""Observations before a member's weight moves from 1."""
MIN_WEIGHT, MAX_WEIGHT = 0.25, 4.0
ADVANTAGES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""What the best member's weight may gain beyond its own record, in mean weights."""
MARGIN = 0.05
"""How much more probably than the best member those that outvote it must be right."""
COINCIDENCE = 0.25
"""How often two wrong answers say the same, where that is not observed."""


@dataclass(frozen=True)
class SuccessCount:
    """How often something was so, and how often not."""

    yes: int = 0
    no: int = 0

    @property
    def total(self) -> int:
        """The number of observations."""
        return self.yes + self.no


def vote_weights(
    model: AgreementModel,
    patterns: Mapping[Pattern, int],
    configured_weights: Mapping[str, float] = NO_WEIGHTS,
) -> dict[str, float]:
    """The multipliers of the members' weights in votes on one kind of closed answer.

    The optimal weight of an independent voter that is right with probability p, where two wrong
    answers are the same with probability c, is log(p / (1 - p)) - log(c) (after Nitzan and Paroush,
    1982). Members are not independent, so the best of them gets an advantage: of `ADVANTAGES`, or
    so much that nobody outvotes it, the one with which the vote is most often right on the
    patterns that occurred, where each vote against the best member first costs `MARGIN`.

    Args:
        model: fitted to these patterns.
        patterns: of agreement, and how often each occurred.
        configured_weights: by member, what will be multiplied; 1 where one is missing. The model
            knows them already, so they do not count twice.

    Returns:
        By member, so that the mean of their weights stays; 1.0 for a member with fewer than 20
        observations.
    """
    members = _often_seen(patterns)
    if not members:
        return dict.fromkeys(model.abilities, 1.0)
    base = dict.fromkeys(model.abilities, 1.0) | _log_odds(model, members)
    best = max(members, key=lambda member: (model.abilities[member], member))
    disagreements = _disagreements(model, patterns, best)
    decisive = max(sum(base.values()) - 2 * base[best], 0.0) + MIN_WEIGHT
    candidates = [base | {best: base[best] + more} for more in (*ADVANTAGES, decisive)]
    weights = max(candidates, key=lambda weights: sum(d.gain(weights) for d in disagreements))
    return _scale(weights, members, configured_weights)


def _often_seen(patterns: Mapping[Pattern, int]) -> list[str]:
    observations: Counter[str] = Counter()
    for pattern, count in patterns.items():
        for group in pattern.groups:
            observations.update(dict.fromkeys(group, count))
    return [member for member, count in observations.items() if count >= MIN_OBSERVATIONS]


def _disagreements(
    model: AgreementModel, patterns: Mapping[Pattern, int], best: str
) -> list["_Disagreement"]:
    counts: Counter[tuple[tuple[str, ...], ...]] = Counter()
    for pattern, count in patterns.items():
        if any(best in group for group in pattern.groups):
            counts[pattern.groups] += count
    return [
        _Disagreement(groups, model.chances(groups), count, best)
        for groups, count in counts.items()
    ]


@dataclass(frozen=True)
class _Disagreement:
    """A pattern in which the best member answered."""

    groups: Groups
    chances: list[float]
    """The probability that each group is right."""
    count: int
    best: str

    def gain(self, weights: Mapping[str, float]) -> float:
        """How often more than the best member alone a vote with these weights is right."""
        winner = max(
            range(len(self.groups)),
            key=lambda number: sum(weights[member] for member in self.groups[number]),
        )
        own = next(number for number, group in enumerate(self.groups) if self.best in group)
        if winner == own:
            return 0.0
        return self.count * (self.chances[winner] - self.chances[own] - MARGIN)


def _log_odds(model: AgreementModel, members: list[str]) -> dict[str, float]:
    """The weights of independent voters, with a mean of about 1, none below `MIN_WEIGHT`."""
    odds = {}
    for member in members:
        accuracy = model.accuracy(member)
        odds[member] = math.log(accuracy / (1 - accuracy) / model.collision)
    mean = sum(max(value, 0.0) for value in odds.values()) / len(odds)
    if not mean:
        return dict.fromkeys(members, 1.0)
    return {member: max(value / mean, MIN_WEIGHT) for member, value in odds.items()}


def _scale(
    weights: Mapping[str, float], members: list[str], configured_weights: Mapping[str, float]
) -> dict[str, float]:
    member_weights = {member: configured_weights.get(member, 1.0) for member in members}
    scale = sum(member_weights.values()) / sum(weights[member] for member in members)
    multipliers = {m: weights[m] * scale / member_weights[m] for m in members}
    return dict.fromkeys(weights, 1.0) | multipliers


def record_weights(success_counts: Mapping[str, SuccessCount]) -> dict[str, float]:
    """The multipliers of the members' weights for one kind of answer that is not voted on.

    Log odds of being right by label, as those of independent voters; scaled to a mean of 1 and
    clipped to [0.25, 4].

    >>> counts = {"strong": SuccessCount(yes=90, no=10), "weak": SuccessCount(yes=60, no=40)}
    >>> weights = record_weights(counts)
    >>> {member: round(weight, 2) for member, weight in weights.items()}
    {'strong': 1.32, 'weak': 0.68}

    Args:
        success_counts: by member, how often it was right.

    Returns:
        By member; 1.0 for a member with fewer than 20 observations.
    """
    log_odds = {
        member: max(math.log((count.yes + 1) / (count.no + 1) / COINCIDENCE), 0.0)
        for member, count in success_counts.items()
        if count.total >= MIN_OBSERVATIONS
    }
    mean = sum(log_odds.values()) / len(log_odds) if log_odds else 0.0
    weights = dict.fromkeys(success_counts, 1.0)
    if mean:
        for member, odds in log_odds.items():
            weights[member] = min(max(odds / mean, MIN_WEIGHT), MAX_WEIGHT)
    return weights
