"""When a panel has said enough. Pure: names, weights and times in, a reason or a time out."""

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from fusewire.contracts import ClosedBy, Plan
from fusewire_judge.model import MemberAnswer
from fusewire_judge.scoring.answers import posterior, votes

GRACE_SHARE = 0.35
GRACE_LEAST_S = 0.5
TOLERANCE = 0.005
"""A quorum of 0.67 is meant to be met by two of three."""


def quorum_at(
    plan: Plan, weights: Mapping[str, float], answered: Mapping[str, datetime]
) -> datetime | None:
    """When members with enough weight, and at least two of them, had answered; None if they have not.

    Args:
        plan: with the quorum.
        weights: of all who were asked. Learned ones too, lest two weak members close the panel to a strong one.
        answered: when each answer came, by member.
    """
    whole, gathered = sum(weights.values()), 0.0
    for count, (at, name) in enumerate(
        sorted((at, name) for name, at in answered.items()), start=1
    ):
        gathered += weights[name]
        if gathered / whole >= plan.quorum - TOLERANCE and count >= min(2, len(weights)):
            return at
    return None


def closes_at(plan: Plan, quorum: datetime | None, *, is_required_out: bool) -> datetime:
    """When the panel ends if nobody says anything more.

    A grace after quorum: 0.35 of the time to it, at least 0.5 s and at most what the pool
    allows; a required member that is still out is waited for until the panel's deadline.
    """
    if quorum is None or is_required_out:
        return plan.panel_deadline_at
    took = (quorum - plan.planned_at).total_seconds()
    grace = min(max(GRACE_SHARE * took, GRACE_LEAST_S), plan.policy.grace_most_s)
    return min(quorum + timedelta(seconds=grace), plan.panel_deadline_at)


def settled_early(
    plan: Plan, answers: Sequence[MemberAnswer], out: Collection[float], schema: object
) -> ClosedBy | None:
    """Whether a vote is decided although members are out: for certain, or very likely.

    Args:
        plan: with the policy and the mode.
        said: the answers so far, all of a closed kind.
        out: weights of the members that may still answer.
        schema: the prompt's response schema, if it has one.
    """
    threshold = plan.policy.early_stop
    groups = list(votes(answers, schema if isinstance(schema, dict) else None).values())
    if threshold >= 1 or len(answers) < 2 or not groups:
        return None
    if plan.mode == "debate" and len(groups) > 1:
        return None
    weights = [sum(one.weight for one in group) for group in groups]
    runner_up = weights[1] if len(weights) > 1 else 0.0
    if plan.mode != "debate" and weights[0] > runner_up + sum(out) + 1e-9:
        return "certain"
    leading, others = len(groups[0]), sum(len(group) for group in groups[1:])
    lead = weights[0] - runner_up
    likely = min(posterior(leading, others), stays_ahead(leading, others, lead, out))
    return "likely" if likely >= threshold else None


def stays_ahead(leading: int, others: int, lead: float, out: Collection[float]) -> float:
    """The least probability that the heaviest answer of a vote still leads when those that are out have voted.

    Each of them says it with the same unknown probability, of which Beta(leading + 1, others + 1) is what the heads
    tell, as in `posterior`; whoever does not says what the runner-up says, the heaviest first.

    Args:
        leading: how many said it.
        others: how many said something else.
        lead: by how much weight it leads the runner-up.
        out: weights of the members that may still answer.
    """
    heaviest = sorted(out, reverse=True)
    kept = lead + sum(heaviest)
    ahead = [
        against for against in range(len(heaviest) + 1) if kept - 2 * sum(heaviest[:against]) > 1e-9
    ]
    return sum(_chance(against, len(heaviest), leading, others) for against in ahead)


def _chance(against: int, asked: int, leading: int, others: int) -> float:
    """The beta-binomial probability that so many of those asked do not say what leads."""
    before = leading + others + 1
    ways = math.comb(asked, against) * math.comb(before - 1, leading) * before
    after = before + asked
    return ways / (after * math.comb(after - 1, leading + asked - against))
