"""Rules for closing the panel early: the quorum with its grace, and votes that are decided.

Pure: names, weights and times in, a reason or a time out.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from fusewire.contracts import ClosedBy, Plan
from fusewire_judge.model import MemberAnswer
from fusewire_judge.scoring.answers import posterior, votes

GRACE_SHARE = 0.35
GRACE_LEAST_S = 0.5
TOLERANCE = 0.005
"""A quorum of 0.67 is meant to be met by two of three."""
EPSILON = 1e-9
NEED_AGREEMENT = ("debate", "verify")
"""Modes in which the heaviest answer need not win, unless all agree."""
"""Sums of weights that differ by less than this are equal."""


def quorum_at(
    plan: Plan, weights: Mapping[str, float], answered_at: Mapping[str, datetime]
) -> datetime | None:
    """When the quorum was met: enough weight had answered, and at least two members.

    Args:
        plan: with the quorum.
        weights: of all members that were called. Learned weights are included, lest two weak
            members close the panel to a strong one (docs/decisions/0011).
        answered_at: when each member's answer came, by member.

    Returns:
        None if the quorum is not met.
    """
    total_weight, answered_weight = sum(weights.values()), 0.0
    arrivals = sorted((at, name) for name, at in answered_at.items())
    for count, (at, name) in enumerate(arrivals, start=1):
        answered_weight += weights[name]
        has_weight = answered_weight / total_weight >= plan.quorum - TOLERANCE
        if has_weight and count >= min(2, len(weights)):
            return at
    return None


def closes_at(plan: Plan, quorum: datetime | None, *, is_required_pending: bool) -> datetime:
    """When the panel closes if no further answer comes.

    A grace follows the quorum: 0.35 of the time to it, at least 0.5 s and at most what the pool
    allows. For a required member that is pending, the panel waits until its deadline.
    """
    if quorum is None or is_required_pending:
        return plan.panel_deadline_at
    elapsed_s = (quorum - plan.planned_at).total_seconds()
    grace_s = min(max(GRACE_SHARE * elapsed_s, GRACE_LEAST_S), plan.policy.grace_most_s)
    return min(quorum + timedelta(seconds=grace_s), plan.panel_deadline_at)


def close_early(
    plan: Plan,
    answers: Sequence[MemberAnswer],
    pending_weights: Collection[float],
    schema: Mapping[str, Any] | None,
) -> ClosedBy | None:
    """Decide whether a vote is decided although members are pending.

    Args:
        plan: with the policy and the mode.
        answers: the answers so far, all of a closed kind.
        pending_weights: of the members that may still answer.
        schema: the prompt's response schema, if it has one.

    Returns:
        "certain" if no pending answer can change the winner, "likely" if one hardly would;
        None if the vote is open. A debate, and checks of each answer, need all members unless those
        that answered agree.
    """
    threshold = plan.policy.early_stop
    groups = list(votes(answers, schema).values())
    if threshold >= 1 or len(answers) < 2 or not groups:
        return None
    if plan.mode in NEED_AGREEMENT and len(groups) > 1:
        return None
    leader_weight = _weight(groups[0])
    runner_up_weight = _weight(groups[1]) if len(groups) > 1 else 0.0
    most_weight = runner_up_weight + sum(pending_weights)
    if plan.mode not in NEED_AGREEMENT and leader_weight > most_weight + EPSILON:
        return "certain"
    leading = len(groups[0])
    trailing = sum(len(group) for group in groups[1:])
    lead = leader_weight - runner_up_weight
    stays = stays_ahead(leading, trailing, lead, pending_weights)
    return "likely" if min(posterior(leading, trailing), stays) >= threshold else None


def _weight(group: Sequence[MemberAnswer]) -> float:
    return sum(answer.weight for answer in group)


def stays_ahead(
    leading: int, trailing: int, lead: float, pending_weights: Collection[float]
) -> float:
    """The least probability that the leading answer still leads once all members have voted.

    Each pending member gives it with the same unknown probability, of which
    Beta(leading + 1, trailing + 1) is what the votes so far tell, as in `posterior`. In the worst
    case those that do not give it are the heaviest, and all vote for the runner-up.

    Args:
        leading: how many members gave the leading answer.
        trailing: how many gave another.
        lead: by how much weight it leads the runner-up.
        pending_weights: of the members that may still answer.
    """
    heaviest = sorted(pending_weights, reverse=True)
    most_lead = lead + sum(heaviest)
    probabilities = []
    for against in range(len(heaviest) + 1):
        if most_lead - 2 * sum(heaviest[:against]) > EPSILON:
            votes_against = _vote_probability(against, len(heaviest), leading, trailing)
            probabilities.append(votes_against)
    return sum(probabilities)


def _vote_probability(against: int, pending: int, leading: int, trailing: int) -> float:
    """The beta-binomial probability that `against` of `pending` members vote against the leader."""
    before = leading + trailing + 1
    ways = math.comb(pending, against) * math.comb(before - 1, leading) * before
    after = before + pending
    return ways / (after * math.comb(after - 1, leading + pending - against))
