"""The cascade gate: whether the cheap first wave is sufficient, so that the second is not called.

Pure. The first wave is the edge members, the second the hosted ones.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import chain
from typing import Literal

from fusewire.contracts import PlannedMember
from fusewire_judge.model import Case, MemberAnswer, ReceivedCandidate, Wait
from fusewire_judge.panel.progress import ArrivalsByMember, call_count
from fusewire_judge.scoring.answers import (
    ALIKE,
    agreement,
    canonical,
    flaw,
    kind_of,
    posterior,
    unwrap_json,
)

GATE_SHARE = 0.5
"""The share of the panel's time after which the first wave is waited for no longer."""
GATE_TAU = 0.93
"""The posterior probability at which a vote of the first wave is sufficient, at most."""


def check_gate(
    case: Case, arrivals: ArrivalsByMember, first_wave: Sequence[PlannedMember], now: datetime
) -> Literal["sufficient", "insufficient"] | Wait:
    """Decide whether the answers of the first wave are sufficient.

    They are if closed answers agree with enough probability, if open ones are alike once all are
    there, or if the only answer has the confidence that the pool demands.

    Returns:
        A wait as long as answers to come could still make them sufficient.
    """
    wave_arrivals = list(chain.from_iterable(arrivals[member.name] for member in first_wave))
    if any(arrival.candidate.tool_calls for arrival in wave_arrivals):
        return "insufficient"  # tool calls are fused from those of all members
    plan, schema = case.plan, case.prompt.sampling.response_schema
    texts = _usable_texts(case, wave_arrivals)
    values = [canonical(text, schema) for text in texts]
    pending = sum(call_count(case, member) for member in first_wave) - len(wave_arrivals)
    if kind_of(texts, schema) == "open":
        is_sufficient, may_become_sufficient = _check_texts(texts, pending)
    else:
        threshold = min(plan.policy.early_stop, GATE_TAU)
        is_sufficient, may_become_sufficient = _check_vote(values, pending, threshold)
    if is_sufficient or _is_confident(case, wave_arrivals, values):
        return "sufficient"
    until = plan.planned_at + GATE_SHARE * (plan.panel_deadline_at - plan.planned_at)
    return Wait(until) if may_become_sufficient and now < until else "insufficient"


def _check_texts(texts: Sequence[str], pending: int) -> tuple[bool, bool]:
    """Whether open answers are sufficient, and whether they may become so."""
    if pending:
        return False, True
    answers = [MemberAnswer("", 1.0, text, 0) for text in texts]
    return len(answers) >= 2 and agreement(answers) >= ALIKE, False


def _check_vote(values: Sequence[str | None], pending: int, threshold: float) -> tuple[bool, bool]:
    """Whether a vote of closed answers is sufficient, and whether it may become so.

    Args:
        values: canonical values of the texts so far; None for an open one, which counts against
            the leading value.
        pending: how many calls may still return the leading value.
        threshold: the posterior probability that the leading value needs.
    """
    counts = Counter(value for value in values if value)
    leading = max(counts.values())
    trailing = len(values) - leading
    is_sufficient = leading >= 2 and posterior(leading, trailing) >= threshold
    may_become_sufficient = posterior(leading + pending, trailing) >= threshold
    return is_sufficient, may_become_sufficient and pending > 0


def _usable_texts(case: Case, arrivals: Sequence[ReceivedCandidate]) -> list[str]:
    schema = case.prompt.sampling.response_schema
    texts = []
    for arrival in arrivals:
        text = unwrap_json(arrival.candidate.content or "", schema)
        if arrival.candidate.ok and not flaw(text):
            texts.append(text)
    return texts


def _is_confident(
    case: Case, arrivals: Sequence[ReceivedCandidate], values: Sequence[str | None]
) -> bool:
    """Whether there is one answer only, and a call that gave it was confident enough.

    Args:
        case: the fusion.
        arrivals: the candidates of the first wave.
        values: the canonical values of its usable texts; None for an open one.
    """
    threshold = case.plan.policy.gate_confidence
    is_single = len(values) == 1 or (len(set(values)) == 1 and values[0] is not None)
    if threshold is None or not is_single:
        return False
    confidences = [a.candidate.confidence or 0.0 for a in arrivals if a.candidate.ok]
    return max(confidences, default=0.0) >= threshold
