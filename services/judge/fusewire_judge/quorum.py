"""Quorum: when the panel has said enough. Pure."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from fusewire.contracts import Plan
from fusewire_judge.fusion.case import Heard

GRACE_SHARE = 0.35
GRACE_LEAST_S = 0.5
GRACE_MOST_S = 10.0
TOLERANCE = 0.005
"""A quorum of 0.67 is meant to be met by two of three."""


def panel(plan: Plan, heard: Mapping[str, Heard], now: datetime) -> datetime | None:
    """Whether round 0 is over.

    It is when every member has answered or failed; or when members with enough weight (and
    at least two of them) have answered and a grace has passed, which is 0.35 of the time
    that took, at least 0.5 s and at most 10 s; or at the panel's deadline.

    Args:
        plan: whom it asked.
        heard: what came, by member.
        now: the time.

    Returns:
        When it closes if nobody says anything more; None if it is over.
    """
    if len(heard) >= len(plan.members):
        return None
    arrivals = sorted((h.received_at, name) for name, h in heard.items())
    weights = {m.name: m.weight for m in plan.members}
    whole = sum(weights.values())
    until = plan.panel_deadline_at
    gathered, answers = 0.0, 0
    for at, name in arrivals:
        if not heard[name].candidate.ok:
            continue
        gathered += weights[name]
        answers += 1
        if gathered / whole >= plan.quorum - TOLERANCE and answers >= min(2, len(weights)):
            took = (at - plan.planned_at).total_seconds()
            grace = min(max(GRACE_SHARE * took, GRACE_LEAST_S), GRACE_MOST_S)
            until = min(until, at + timedelta(seconds=grace))
            break
    return None if now >= until else until
