"""`decide`: the one entry to all strategies."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from fusewire.contracts import Mode
from fusewire_judge.fusion.best_of import best_of
from fusewire_judge.fusion.case import Ask, Case, Decided, Decision, Draft, Heard, Replies, Said, Steps, Wait
from fusewire_judge.fusion.debate import debate
from fusewire_judge.fusion.merge import merge
from fusewire_judge.quorum import panel

Strategy = Callable[[Case, Sequence[Said]], Steps]

STRATEGIES: dict[Mode, Strategy] = {"best-of": best_of, "merge": merge, "debate": debate}


def decide(case: Case, now: datetime) -> Decision:
    """What to do with a fusion now.

    Order of arrival, duplicates and late answers never change what it says about a case
    that has gone further: each round only counts what was heard before the next was asked.
    """
    plan = case.plan
    if not plan.members:
        reasons = ", ".join(f"{e.name}: {e.reason}" for e in plan.excluded)
        return Decided(Draft(status="failed", degraded=shortfall(case, {}), error=f"no member may answer ({reasons})"))
    heard = _timely(case, 0, (m.name for m in plan.members))
    until = panel(plan, heard, now)
    if not case.rounds and until is not None:
        return Wait(until)
    said = _said(case, heard)
    if len(said) < 2:
        return Decided(_without_choice(case, said, heard))
    decision = _run(case, STRATEGIES[plan.mode](case, said), now)
    if isinstance(decision, Decided):
        draft = decision.draft
        return Decided(replace(draft, degraded=(*shortfall(case, heard), *draft.degraded)))
    return decision


def _run(case: Case, steps: Steps, now: datetime) -> Decision:
    """Feed a strategy the rounds already asked; what it wants next is the decision."""
    number = 0
    try:
        calls = next(steps)
        while True:
            if number >= len(case.rounds):
                if now < case.plan.deadline_at:
                    return Ask(calls, number + 1)
                replies: Replies = {}
            else:
                asked = case.rounds[number]
                heard = _timely(case, asked.round, (call.name for call in asked.calls))
                is_last = number + 1 == len(case.rounds)
                if is_last and len(heard) < len(asked.calls) and now < asked.deadline_at:
                    return Wait(asked.deadline_at)
                replies = {call: one.candidate for call, one in heard.items()}
            number += 1
            calls = steps.send(replies)
    except StopIteration as end:
        draft: Draft = end.value
    return Decided(draft)


def _timely(case: Case, round_: int, calls: Iterable[str]) -> dict[str, Heard]:
    """What was heard of a round before the next one was asked, by call."""
    found = ((call, case.heard.get((round_, call))) for call in calls)
    return {call: heard for call, heard in found if heard and heard.after_rounds <= round_}


def _said(case: Case, heard: Mapping[str, Heard]) -> tuple[Said, ...]:
    """The usable answers, in the pool's order."""
    found = []
    for member in case.plan.members:
        one = heard.get(member.name)
        if one and one.candidate.ok and (one.candidate.content or "").strip():
            found.append(Said(member.name, member.weight, one.candidate.content or "", 0))
    return tuple(found)


def _without_choice(case: Case, said: tuple[Said, ...], heard: Mapping[str, Heard]) -> Draft:
    degraded = shortfall(case, heard)
    if said:
        only = said[0]
        asked = len(case.plan.members)
        reason = "the only member" if asked == 1 else f"the only answer of {asked} members"
        return Draft("single", only.content, only.member, said, reason=reason, degraded=degraded)
    if len(heard) < len(case.plan.members):
        return Draft("expired", degraded=degraded, error="no member answered before the deadline")
    codes = sorted({h.candidate.error.code if h.candidate.error else "empty_answer" for h in heard.values()})
    return Draft("failed", degraded=degraded, error=f"every member failed ({', '.join(codes)})")


def shortfall(case: Case, heard: Mapping[str, Heard]) -> tuple[str, ...]:
    """What is missing from a whole fusion: excluded, failed, empty and absent members."""
    reasons = [f"excluded:{e.name}:{e.reason}" for e in case.plan.excluded]
    for member in case.plan.members:
        one = heard.get(member.name)
        if one is None:
            reasons.append(f"missing:{member.name}")
        elif one.candidate.error:
            reasons.append(f"failed:{member.name}:{one.candidate.error.code}")
        elif not (one.candidate.content or "").strip():
            reasons.append(f"empty:{member.name}")
    return tuple(reasons)
