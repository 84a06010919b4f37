"""What stored outcomes teach a route: how right each member was where all were asked. Pure.

A label says who was right. Where there is none, the agreement of the members tells how probably
each is (`agreement_model`), or else the answer that the judge chose (`judged_model`).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from fusewire_judge.learning.judged_model import EDGE, PRIOR_LOG_ODDS, Preference, chances_given
from fusewire_judge.learning.prompt_features import Features
from fusewire_judge.learning.router import Comparison, Prices
from fusewire_judge.learning.statistics import OPEN, Statistics

MOST_SHOWN = 6
"""Open answers without a label that are looked at: the time doubles with each."""


@dataclass(frozen=True)
class ComparedAnswer:
    """One member's answer, or failure, in a stored outcome."""

    member: str
    model: str
    tier: str
    status: str
    is_right: bool | None
    vote_group: int | None
    weight: float | None
    latency_ms: float | None
    cost_usd: float | None


@dataclass(frozen=True)
class ComparedOutcome:
    """A stored outcome for which all members of its pool were asked."""

    fusion_id: str
    kind: str
    winner: str | None
    accepted: bool | None
    cost_judge_usd: float | None
    judge_model: str | None
    answers: Sequence[ComparedAnswer]

    @property
    def heard_answers(self) -> list[ComparedAnswer]:
        """The answers and failures that came before the panel closed."""
        return [answer for answer in self.answers if answer.status in ("ok", "error")]


def compare(
    pool: str, outcome: ComparedOutcome, features: Features, statistics: Statistics
) -> Comparison | None:
    """Return what an outcome says of its members; None if it says nothing.

    Args:
        pool: its pool.
        outcome: to look at.
        features: of its prompt.
        statistics: what was learned of the pool's votes and verdicts.
    """
    answers = outcome.heard_answers
    groups = _vote_groups(answers)
    if outcome.accepted is not None:
        chances = {answer.member: float(bool(answer.is_right)) for answer in answers}
        whole = float(outcome.accepted)
    else:
        probable_chances = _unlabelled_chances(pool, outcome, groups, statistics)
        if not probable_chances or outcome.winner not in probable_chances:
            return None
        chances = {answer.member: probable_chances.get(answer.member, 0.0) for answer in answers}
        whole = chances[outcome.winner]
    return Comparison(features, chances, groups, _weights(answers), outcome.winner, whole)


def _weights(answers: Iterable[ComparedAnswer]) -> dict[str, float]:
    return {answer.member: answer.weight or 1.0 for answer in answers}


def _vote_groups(answers: Iterable[ComparedAnswer]) -> tuple[tuple[str, ...], ...]:
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for answer in answers:
        if answer.vote_group is not None:
            groups[answer.vote_group].append(answer.member)
    return tuple(tuple(groups[number]) for number in sorted(groups))


def _unlabelled_chances(
    pool: str,
    outcome: ComparedOutcome,
    groups: tuple[tuple[str, ...], ...],
    statistics: Statistics,
) -> dict[str, float]:
    """By member, the probability that its answer is right; empty if nobody can tell."""
    if outcome.kind == OPEN:
        edge = statistics.verdict_edges.get((pool, outcome.judge_model or ""), EDGE)
        return _open_chances(outcome, statistics.weights.get((pool, OPEN), {}), edge)
    record = statistics.votes.get((pool, outcome.kind))
    members = list(chain.from_iterable(groups))
    if record is None or not members or not set(members) <= record.model.abilities.keys():
        return {}
    chances: dict[str, float] = {}
    for group, chance in zip(groups, record.model.chances(groups), strict=True):
        chances |= dict.fromkeys(group, chance)
    return chances


def _open_chances(
    outcome: ComparedOutcome, weights: Mapping[str, float], edge: float
) -> dict[str, float]:
    names = [answer.member for answer in outcome.heard_answers if answer.status == "ok"]
    lineup = tuple(sorted(names))
    if outcome.winner not in lineup or not 2 <= len(lineup) <= MOST_SHOWN:
        return {}
    # A weight is a member's odds of being right, up to the mean of the pool.
    log_odds = {m: math.log(weights.get(m, 1.0)) + PRIOR_LOG_ODDS for m in lineup}
    return chances_given(Preference(lineup, outcome.winner, edge), log_odds)


def mean_prices(outcomes: Iterable[ComparedOutcome]) -> Prices:
    """Return what members and judges cost on average; calls at the edge cost nothing."""
    costs: defaultdict[str, list[float]] = defaultdict(list)
    latencies: defaultdict[str, list[float]] = defaultdict(list)
    stored_outcomes = list(outcomes)
    judge_costs = [o.cost_judge_usd for o in stored_outcomes if o.cost_judge_usd is not None]
    for answer in chain.from_iterable(outcome.answers for outcome in stored_outcomes):
        cost = _cost(answer)
        if cost is not None:
            costs[answer.member].append(cost)
        if answer.latency_ms is not None:
            latencies[answer.member].append(answer.latency_ms)
    return Prices(
        usd={member: _mean(values) for member, values in costs.items()},
        latency_ms={member: _mean(values) for member, values in latencies.items()},
        judge_usd=_mean(judge_costs) if judge_costs else 0.0,
    )


def _cost(answer: ComparedAnswer) -> float | None:
    """Return what a call cost; None if it failed, or has no price."""
    if answer.tier == "edge":
        return 0.0
    return answer.cost_usd if answer.status == "ok" else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
