"""How often members are right on open prompts, from what judges said of them. Pure.

A judge that is shown some answers names one of them, a right one `edge` times (on the scale of log
odds) more readily than a wrong one: Luce's choice axiom (1959). Members are right independently of
each other. How often each is, is fitted to verdicts and labels by expectation maximisation.

Only the members' order and distances are learned from verdicts: that all were right more often
would change no verdict, so their level is the prior's.

How much a judge's verdicts say, its edge, is learned from labels alone. That it names the same
answer in both orders does not show that it names the right one; where the orders disagree, they
cancel out. Nor do votes show it: on closed answers a judge is asked where the vote is tied.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from fusewire_judge.learning.weights import MIN_OBSERVATIONS, SuccessCount

PRIOR_LOG_ODDS = 0.6
"""Mean of the prior N(0.6, 1) of a member's log odds of being right."""
EDGE = math.log(0.8 / 0.2)
"""The log odds by which a verdict speaks for the answer that it names: of a right and a wrong
answer, an ordinary judge names the right one four times in five."""
PRIOR_VERDICTS = 20.0
"""How many verdicts on a right and a wrong answer the ordinary judge counts for."""
LEAST_EDGE, MOST_EDGE = 0.1, 3.0
"""A judge is not believed in reverse, and even a useless one breaks a tie."""
STEPS = 40
TOLERANCE = 1e-3
MIN_ODDS, MAX_ODDS = 0.25, 4.0


@dataclass(frozen=True)
class Preference:
    """What a judge named of the answers that it was shown.

    Attributes:
        shown: the members, sorted.
        winner: one of them.
        edge: of the judge.
    """

    shown: tuple[str, ...]
    winner: str
    edge: float = EDGE


@dataclass(frozen=True)
class VerdictResult:
    """What a judge named of answers that have labels.

    Attributes:
        right, wrong: how many of the answers that it was shown are so.
        is_right: whether the one that it named is right.
    """

    right: int
    wrong: int
    is_right: bool


def learn_verdict_edge(verdicts: Mapping[VerdictResult, float]) -> float:
    """Learn the log odds by which one judge's verdict speaks for the answer that it names.

    The most probable edge, given the verdicts and as many of the ordinary judge as
    `PRIOR_VERDICTS`. Where all answers shown are right, or all are wrong, a verdict says nothing.

    Args:
        verdicts: how often each occurred; each of the two orders that a judge sees counts one half.

    Returns:
        Within `LEAST_EDGE` and `MOST_EDGE`.
    """
    ordinary = 1 / (1 + math.exp(-EDGE))
    counts = defaultdict(float, verdicts)
    counts[VerdictResult(1, 1, True)] += PRIOR_VERDICTS * ordinary
    counts[VerdictResult(1, 1, False)] += PRIOR_VERDICTS * (1 - ordinary)
    low, high = LEAST_EDGE, MOST_EDGE
    for _ in range(STEPS):
        middle = (low + high) / 2
        # The derivative of the logarithm of the likelihood, which falls.
        excess = sum(
            count * (verdict.is_right - _chance_of_right(verdict, middle))
            for verdict, count in counts.items()
        )
        low, high = (middle, high) if excess > 0 else (low, middle)
    return low


def _chance_of_right(verdict: VerdictResult, edge: float) -> float:
    """How often a judge with this edge names a right answer."""
    merit = verdict.right * math.exp(edge)
    return merit / (merit + verdict.wrong)


def odds_weights(
    preferences: Mapping[Preference, float], labels: Mapping[str, SuccessCount]
) -> dict[str, float]:
    """The multipliers of the members' weights on open prompts: their odds of being right.

    Args:
        preferences: by what was shown and named, how often; each of the two orders that a judge
            sees counts one half.
        labels: by member, how often it was right and wrong by a label.

    Returns:
        By member, with a mean of 1 and clipped to [0.25, 4]; 1.0 for a member of which fewer than
        20 observations are known.
    """
    observations = Counter({member: float(count.total) for member, count in labels.items()})
    for preference, count in preferences.items():
        observations.update(dict.fromkeys(preference.shown, count))
    log_odds = fit_log_odds(preferences, labels)
    members = [member for member in log_odds if observations[member] >= MIN_OBSERVATIONS]
    weights = dict.fromkeys(log_odds, 1.0)
    if len(members) < 2:
        return weights
    mean = sum(math.exp(log_odds[member]) for member in members) / len(members)
    for member in members:
        weights[member] = min(max(math.exp(log_odds[member]) / mean, MIN_ODDS), MAX_ODDS)
    return weights


def fit_log_odds(
    preferences: Mapping[Preference, float], labels: Mapping[str, SuccessCount]
) -> dict[str, float]:
    """The members' log odds of being right; arguments as of `odds_weights`."""
    members = set(labels).union(*(preference.shown for preference in preferences))
    log_odds = dict.fromkeys(sorted(members), PRIOR_LOG_ODDS)
    for _ in range(STEPS):
        after = _improve(log_odds, preferences, labels)
        change = max((abs(after[m] - old) for m, old in log_odds.items()), default=0.0)
        log_odds = after
        if change < TOLERANCE:
            break
    return log_odds


def _improve(
    log_odds: Mapping[str, float],
    preferences: Mapping[Preference, float],
    labels: Mapping[str, SuccessCount],
) -> dict[str, float]:
    right = {m: float(labels[m].yes) if m in labels else 0.0 for m in log_odds}
    total = {m: float(labels[m].total) if m in labels else 0.0 for m in log_odds}
    for preference, count in preferences.items():
        for member, chance in chances_given(preference, log_odds).items():
            right[member] += count * chance
            total[member] += count
    return {m: _step(old, right[m], total[m]) for m, old in log_odds.items()}


def _step(log_odds: float, right: float, total: float) -> float:
    """One step of Newton's method for a binomial share with the prior N(0.6, 1)."""
    chance = 1 / (1 + math.exp(-log_odds))
    gradient = right - total * chance + PRIOR_LOG_ODDS - log_odds
    return log_odds + gradient / (total * chance * (1 - chance) + 1)


def chances_given(preference: Preference, log_odds: Mapping[str, float]) -> dict[str, float]:
    """By member that was shown: the probability that it was right, given what was named."""
    members = preference.shown
    place = members.index(preference.winner)
    sums = dict.fromkeys(members, 0.0)
    total = 0.0
    for is_right in product((False, True), repeat=len(members)):
        merits = [math.exp(preference.edge) if right else 1.0 for right in is_right]
        probability = merits[place] / sum(merits) * _chance_of(is_right, members, log_odds)
        total += probability
        for member in itertools.compress(members, is_right):
            sums[member] += probability
    return {member: value / total for member, value in sums.items()}


def _chance_of(
    is_right: Sequence[bool], members: Sequence[str], log_odds: Mapping[str, float]
) -> float:
    """The probability that just these members are right."""
    probability = 1.0
    for member, right in zip(members, is_right, strict=True):
        probability /= 1 + math.exp(-log_odds[member] if right else log_odds[member])
    return probability
