"""`decide`: the one entry to all strategies."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime

from fusewire.contracts import Mode
from fusewire.tokens import estimate
from fusewire_judge.model import (
    Ask,
    Case,
    Decided,
    Decision,
    Draft,
    MemberAnswer,
    Panel,
    ReceivedCandidate,
    Replies,
    Steps,
    Wait,
)
from fusewire_judge.panel.convene import convene
from fusewire_judge.panel.recorded import RECORDED
from fusewire_judge.scoring.answers import agreement, kind_of, share, votes
from fusewire_judge.strategies.best_of import best_of
from fusewire_judge.strategies.debate import debate
from fusewire_judge.strategies.merge import merge
from fusewire_judge.strategies.repair import is_off_schema, repair
from fusewire_judge.strategies.tool_calls import MemberCalls, fuse

Strategy = Callable[[Case, Panel], Steps]

STRATEGIES: dict[Mode, Strategy] = {"best-of": best_of, "merge": merge, "debate": debate}


def decide(case: Case, now: datetime) -> Decision:
    """What to do with a fusion now.

    Order of arrival, duplicates and late answers never change what it says about a case
    that has gone further: each round only counts what was heard before the next was asked.
    """
    plan = case.plan
    if not plan.members:
        reasons = ", ".join(f"{e.name}: {e.reason}" for e in plan.excluded)
        degraded = tuple(f"excluded:{e.name}:{e.reason}" for e in plan.excluded)
        return Decided(
            Draft(status="failed", degraded=degraded, error=f"no member may answer ({reasons})")
        )
    panel = convene(case, now)
    if not isinstance(panel, Panel):
        return panel
    draft = None if is_off_schema(panel) else _without_choice(case, panel)
    if draft is None and panel.kind == "tool_call":
        panel, draft = _called(case, panel)
    if draft is None:
        steps = (
            _off_schema(case, panel) if is_off_schema(panel) else STRATEGIES[plan.mode](case, panel)
        )
        decision = _run(case, steps, now)
        if not isinstance(decision, Decided):
            return decision
        draft = decision.draft
    cut = tuple(
        f"winner_cut:{one.member}"
        for one in draft.answers
        if one.is_cut and one.member == draft.winner
    )
    return Decided(replace(draft, degraded=(*shortfall(case, panel), *draft.degraded, *cut)), panel)


def _off_schema(case: Case, panel: Panel) -> Steps:
    """Answers of which none has the form that was asked: one is repaired, or the best of them is returned as it is."""
    repaired = yield from repair(case, panel)
    if repaired is not None:
        return repaired
    chosen = _without_choice(case, panel)
    if chosen is None:
        chosen = yield from STRATEGIES[case.plan.mode](case, panel)
    return replace(chosen, degraded=("schema_unmet", *chosen.degraded))


def _run(case: Case, steps: Steps, now: datetime) -> Ask | Wait | Decided:
    """Feed a strategy the rounds already asked; what it wants next is the decision."""
    rounds = case.rounds[len(case.panel_rounds) :]
    number = 0
    capped: str | None = None
    try:
        wanted = next(steps)
        while True:
            replies: Replies = {}
            if number < len(rounds):
                asked = rounds[number]
                heard = _timely(case, asked.round, (call.name for call in asked.calls))
                is_last = number + 1 == len(rounds)
                if is_last and len(heard) < len(asked.calls) and now < asked.deadline_at:
                    return Wait(asked.deadline_at)
                replies = {call: one.candidate for call, one in heard.items()}
            elif capped is None and now < case.plan.deadline_at:
                calls = wanted()
                capped = _cap(
                    case,
                    sum(
                        estimate(call.messages, call.sampling.max_tokens or call.expected_tokens)
                        for call in calls
                    ),
                )
                if capped is None:
                    return Ask(calls, len(case.rounds) + 1, case.plan.deadline_at)
            number += 1
            wanted = steps.send(replies)
    except StopIteration as end:
        draft: Draft = end.value
    return Decided(
        replace(draft, degraded=(f"capped:{capped}", *draft.degraded)) if capped else draft
    )


def _cap(case: Case, wanted: int) -> str | None:
    """The pool's limit that forbids calls of about so many more tokens, if one does."""
    policy = case.plan.policy
    spent = [h.candidate for h in case.received.values() if h.candidate.provider != RECORDED]
    if (
        policy.max_cost_usd is not None
        and sum(c.cost_usd or 0.0 for c in spent) >= policy.max_cost_usd
    ):
        return "cost"
    # A call that nobody counted is estimated by the length of the prompt.
    asked = estimate(case.prompt.messages, None)
    tokens = sum(
        c.usage.prompt_tokens + c.usage.completion_tokens if c.usage else asked for c in spent
    )
    if policy.max_total_tokens is not None and tokens + wanted > policy.max_total_tokens:
        return "tokens"
    return None


def _timely(case: Case, round_: int, calls: Iterable[str]) -> dict[str, ReceivedCandidate]:
    """What was heard of a round before the next one was asked, by call."""
    found = ((call, case.received.get((round_, call))) for call in calls)
    return {call: heard for call, heard in found if heard and heard.after_rounds <= round_}


def _called(case: Case, panel: Panel) -> tuple[Panel, Draft | None]:
    """The fused tool calls; or the panel of those who answered in text, where they outvote the callers."""
    is_forced = case.prompt.tool_choice not in ("auto", "none")
    callers = [one for one in panel.answers if one.tool_calls or not is_forced]
    voices = [MemberCalls(one.member, one.weight, one.tool_calls) for one in callers]
    fused = fuse(voices, case.prompt.tools, (case.plan.fusion_id, "tool-call"))
    if fused is not None and fused.calls:
        alone = panel.answers[0] if len(panel.answers) == 1 else None
        draft = Draft(
            status="single" if alone else "voted",
            # What several say beside their calls belongs to none of the fused ones.
            content=(alone.content or None) if alone else None,
            answers=panel.answers,
            tool_calls=fused.calls,
            reason=f"tool calls of {', '.join(fused.members)}, voted argument by argument",
            agreement=fused.agreement,
            degraded=tuple(f"invalid_call:{member}" for member in fused.invalid),
        )
        return panel, draft
    spoken = tuple(one for one in panel.answers if not one.tool_calls)
    if not spoken:
        broken = tuple(f"invalid_call:{one.member}" for one in panel.answers)
        return panel, Draft(
            "failed", degraded=broken, error="every tool call breaks the schema of its tool"
        )
    invalid = (
        fused.invalid if fused else tuple(one.member for one in panel.answers if one.tool_calls)
    )
    kind = kind_of([one.content for one in spoken], case.prompt.sampling.response_schema)
    rest = replace(
        panel,
        answers=spoken,
        kind=kind,
        flaws=dict(panel.flaws) | dict.fromkeys(invalid, "invalid_call"),
    )
    return rest, _without_choice(case, rest)


def _without_choice(case: Case, panel: Panel) -> Draft | None:
    """The end of a fusion that has nothing to choose from, or whose gate opened; None if there is a choice."""
    answers = panel.answers
    if panel.closed_by == "gate":
        return _through_the_gate(case, answers)
    if len(answers) > 1 or (answers and answers[0].tool_calls):
        return None
    if answers:
        only, asked = answers[0], len(case.plan.members) - len(panel.skipped)
        reason = "the only member" if asked == 1 else f"the only answer of {asked} members"
        return Draft("single", only.content, only.member, answers, reason=reason)
    if len(panel.received) < len(case.plan.members):
        return Draft("expired", error="no member answered before the deadline")
    codes = sorted({_fault(h) for h in panel.received.values()})
    return Draft("failed", error=f"every member failed ({', '.join(codes)})")


def _through_the_gate(case: Case, answers: tuple[MemberAnswer, ...]) -> Draft:
    groups = votes(answers, case.prompt.sampling.response_schema)
    winner = next(iter(groups.values()))[0] if groups else answers[0]
    spared = ", ".join(m.name for m in case.plan.members if m.wave)
    return Draft(
        status="voted" if len(answers) > 1 else "single",
        content=winner.content,
        winner=winner.member,
        answers=answers,
        reason=f"the edge is sure, {spared} not asked",
        agreement=share(groups) if groups else agreement(answers),
    )


def _fault(heard: ReceivedCandidate) -> str:
    error = heard.candidate.error
    if error is None:
        return "empty_answer"
    return f"{error.code}: {error.param}" if error.param else error.code


def shortfall(case: Case, panel: Panel) -> tuple[str, ...]:
    """What is missing from a whole fusion, and how much of its weight: excluded, failed, flawed, absent members."""
    plan = case.plan
    whole = sum(m.weight for m in plan.members) + sum(e.weight for e in plan.excluded)
    reasons = [f"excluded:{e.name}:{e.reason}" for e in plan.excluded]
    for member in plan.members:
        one = panel.received.get(member.name)
        if member.name in panel.skipped:
            continue
        if one is None:
            if panel.closed_by in ("quorum", "deadline"):
                reasons.append(
                    f"missing:{member.name}:{member.weight / whole:.2f}:{panel.closed_by}"
                )
        elif one.candidate.error:
            reasons.append(f"failed:{member.name}:{one.candidate.error.code}")
        elif member.name in panel.flaws:
            reasons.append(f"{panel.flaws[member.name]}:{member.name}")
    return tuple(reasons)
