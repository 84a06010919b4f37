"""Vote weights of a pool's members, learned from how often they were right. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MIN_OBSERVATIONS = 20
"""Observations before a member's weight moves from 1."""
MIN_WEIGHT, MAX_WEIGHT = 0.25, 4.0


@dataclass(frozen=True)
class SuccessCount:
    """How often something was so, and how often not."""

    yes: int = 0
    no: int = 0

    @property
    def total(self) -> int:
        """The number of observations."""
        return self.yes + self.no


def learn_weights(
    success_counts: Mapping[str, SuccessCount], collisions: SuccessCount
) -> dict[str, float]:
    """Learn the multipliers of the members' weights for one kind of answer.

    The optimal weight of an independent voter that is right with probability p is
    log(p / (1 - p)) where there are two answers (Nitzan and Paroush, 1982), and
    log(p / (1 - p)) - log(c) where two wrong answers are the same with probability c: wrong
    numbers rarely coincide, so two that agree are worth more than the one member that is
    best alone. Weights are scaled to a mean of 1, so that a member with too few observations
    counts as an average one, and clipped to [0.25, 4].

    >>> counts = {"strong": SuccessCount(yes=90, no=10), "weak": SuccessCount(yes=60, no=40)}
    >>> weights = learn_weights(counts, collisions=SuccessCount(yes=10, no=30))
    >>> {member: round(weight, 2) for member, weight in weights.items()}
    {'strong': 1.32, 'weak': 0.68}

    Args:
        success_counts: by member, how often it was right (by label, or by what the majority
            of the other members said).
        collisions: how often two wrong answers to one prompt were the same. Without labels,
            three members never show it: if two agree, they count as right. So c starts from
            a prior of Beta(1, 3), a quarter (docs/decisions/0011).

    Returns:
        By member; 1.0 for a member with fewer than 20 observations.
    """
    collision_rate = (collisions.yes + 1) / (collisions.total + 4)
    log_odds = {
        member: max(math.log((count.yes + 1) / (count.no + 1) / collision_rate), 0.0)
        for member, count in success_counts.items()
        if count.total >= MIN_OBSERVATIONS
    }
    mean = sum(log_odds.values()) / len(log_odds) if log_odds else 0.0
    weights = dict.fromkeys(success_counts, 1.0)
    if mean:
        for member, odds in log_odds.items():
            weights[member] = min(max(odds / mean, MIN_WEIGHT), MAX_WEIGHT)
    return weights
