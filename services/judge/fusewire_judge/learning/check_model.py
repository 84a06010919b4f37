"""How much a judge's checks say: how often it passes right and wrong answers. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

PASSES_RIGHT, PASSES_WRONG = 0.85, 0.45
"""How often an ordinary judge passes a right and a wrong answer: it is lenient."""
PRIOR_CHECKS = 20.0
"""How many checks of right and of wrong answers each the ordinary judge counts for."""
MOST_EDGE = 3.0


@dataclass(frozen=True)
class CheckEvidence:
    """What a check changes.

    Attributes:
        passing: the log odds of being right that an answer gains by passing; not below 0.
        failing: those that it gains by failing; not above 0.
    """

    passing: float
    failing: float


def _edges(passes_right: float, passes_wrong: float) -> CheckEvidence:
    """By Bayes, from how often right and wrong answers pass.

    A judge is not believed in reverse: one that passes wrong answers more often says nothing.
    """
    passing = math.log(passes_right / passes_wrong)
    failing = math.log((1 - passes_right) / (1 - passes_wrong))
    return CheckEvidence(min(max(passing, 0.0), MOST_EDGE), max(min(failing, 0.0), -MOST_EDGE))


ORDINARY = _edges(PASSES_RIGHT, PASSES_WRONG)


def learn_edges(checks: Iterable[tuple[float, float]]) -> CheckEvidence:
    """Learn what one judge's checks change.

    Args:
        checks: of each answer, the chance that it was right, 0 or 1 by a label, and the share of
            its checks that it passed.

    Returns:
        what they say, together with as much of the ordinary judge as `PRIOR_CHECKS`.
    """
    right = wrong = PRIOR_CHECKS
    right_passes, wrong_passes = PRIOR_CHECKS * PASSES_RIGHT, PRIOR_CHECKS * PASSES_WRONG
    for chance, share in checks:
        right += chance
        wrong += 1 - chance
        right_passes += chance * share
        wrong_passes += (1 - chance) * share
    return _edges(right_passes / right, wrong_passes / wrong)
