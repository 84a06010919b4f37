"""What a member's vote counts, learned from how it did before. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

LEAST_SEEN = 20
"""Observations before a member's weight moves from 1."""
LEAST, MOST = 0.25, 4.0


@dataclass(frozen=True)
class SuccessCount:
    """How often something was so, and how often not."""

    yes: int = 0
    no: int = 0

    @property
    def seen(self) -> int:
        """Observations."""
        return self.yes + self.no


def learned(standings: Mapping[str, SuccessCount], collisions: SuccessCount) -> dict[str, float]:
    """Multipliers of the members' weights for one kind of answer.

    The optimal weight of an independent voter that is right with probability p is
    log(p / (1 - p)) where there are two answers (Nitzan and Paroush, 1982), and
    log(p / (1 - p)) - log(c) where two wrong answers are the same with probability c: wrong
    numbers rarely coincide, so two that agree are worth more than the one member that is
    best alone. Weights are scaled to a mean of 1, so that a member without a standing
    counts as an average one, and clipped to [0.25, 4].

    Args:
        standings: by member, how often it was right (by label, or by what the others' majority said).
        collisions: how often two wrong answers to one prompt were the same. Three members never show it
            without labels, so it is taken for a quarter until it is seen: a Beta(1, 3) prior.

    Returns:
        By member; 1.0 for one with fewer than 20 observations.
    """
    together = (collisions.yes + 1) / (collisions.seen + 4)
    known = {name: s for name, s in standings.items() if s.seen >= LEAST_SEEN}
    odds = {
        name: max(math.log((s.yes + 1) / (s.no + 1) / together), 0.0) for name, s in known.items()
    }
    mean = sum(odds.values()) / len(odds) if odds else 0.0
    if not mean:
        return dict.fromkeys(standings, 1.0)
    return {
        name: min(max(odds[name] / mean, LEAST), MOST) if name in odds else 1.0
        for name in standings
    }
