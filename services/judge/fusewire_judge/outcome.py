"""From a decision to the outcome: who said what, how long it took, what it cost. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from fusewire.contracts import Answer, Candidate, Outcome, Plan, PlannedMember, Prompt, Usage
from fusewire_judge.model import Case, Decided, Draft, MemberAnswer, Panel
from fusewire_judge.panel.convene import panel_so_far
from fusewire_judge.panel.recorded import RECORDED
from fusewire_judge.scoring.answers import agrees_with_others, votes
from fusewire_judge.scoring.gold import is_right

CANCELLED = "cancelled by the client"


def build(case: Case, decided: Decided, now: datetime, *, judged_since: datetime | None) -> Outcome:
    """The outcome of a decided case.

    Args:
        case: the fusion.
        decided: what the strategy decided, and of which panel.
        now: when.
        judged_since: when the strategy's first round was asked, if one was.
    """
    plan, prompt, draft, panel = case.plan, case.prompt, decided.draft, decided.panel
    bought = [h.candidate for h in case.received.values() if h.candidate.provider != RECORDED]
    is_judged = any(call.member is None for asked in case.rounds for call in asked.calls)
    consistent = [one.is_consistent for one in draft.verdicts if one.is_consistent is not None]
    return Outcome(
        fusion_id=prompt.fusion_id,
        status=draft.status,
        is_degraded=bool(draft.degraded) or draft.status in ("failed", "expired"),
        degraded_reasons=draft.degraded,
        content=draft.content,
        tool_calls=draft.tool_calls,
        reasoning=_reasoning(case, draft),
        tenant=prompt.tenant,
        batch_id=prompt.batch_id,
        custom_id=prompt.custom_id,
        pool=prompt.pool,
        mode=plan.mode,
        winner=draft.winner,
        answer_kind=panel.kind if panel and panel.answers else None,
        closed_by=panel.closed_by if panel else None,
        missing_weight=_missing(plan, panel),
        guard=draft.guard,
        swap_consistent=all(consistent) if consistent else None,
        verdicts=draft.verdicts,
        hedges=sum(call.name.endswith("=h") for asked in case.panel_rounds for call in asked.calls),
        is_replay=bool(prompt.recorded),
        accepted=is_right(draft.content, prompt.gold) if prompt.gold else None,
        judge_model=_judge(plan) if is_judged else None,
        judge_rung=draft.parse_stage,
        reason=draft.reason,
        analysis=draft.analysis,
        agreement=draft.agreement,
        rounds=len(case.rounds),
        answers=_answers(case, draft, panel),
        usage=usage(bought),
        cost_usd=cost(bought),
        cost_prompt_usd=cost_of_prompts(bought),
        error=draft.error,
        submitted_at=prompt.submitted_at,
        finished_at=now,
        panel_ms=_ms(plan.planned_at, judged_since or now),
        judge_ms=_ms(judged_since, now) if judged_since else None,
        config_hash=plan.config_hash,
    )


def _judge(plan: Plan) -> str | None:
    if len(plan.jurors) > 1:
        return "jury"
    return plan.judge.model if plan.judge else None


def _reasoning(case: Case, draft: Draft) -> str | None:
    """What the winner thought before the answer that stands."""
    chosen = next((one for one in draft.answers if one.member == draft.winner), None)
    heard = chosen and case.received.get((chosen.round, chosen.call))
    return heard.candidate.reasoning if heard else None


def _missing(plan: Plan, panel: Panel | None) -> float:
    """The share of the weight that had no part and was not spared one."""
    whole = sum(m.weight for m in plan.members) + sum(e.weight for e in plan.excluded)
    if not whole or panel is None:
        return 1.0 if plan.excluded else 0.0
    here = {one.member for one in panel.answers} | panel.skipped
    if panel.closed_by in ("certain", "likely"):
        here |= {m.name for m in plan.members} - set(panel.received)
    return max(1.0 - sum(m.weight for m in plan.members if m.name in here) / whole, 0.0)


def _answers(case: Case, draft: Draft, panel: Panel | None) -> tuple[Answer, ...]:
    if panel is None:
        return ()
    is_closed = panel.kind not in ("open", "tool_call")
    groups = votes(panel.answers, case.prompt.sampling.response_schema) if is_closed else {}
    return tuple(_answer(case, draft, panel, groups, member) for member in case.plan.members)


def _answer(
    case: Case,
    draft: Draft,
    panel: Panel,
    groups: Mapping[str, Sequence[MemberAnswer]],
    member: PlannedMember,
) -> Answer:
    name, gold = member.name, case.prompt.gold
    if name not in panel.received:  # perhaps it came too late to take part, though it is paid for
        status: Literal["unasked", "missing"] = "unasked" if name in panel.skipped else "missing"
        return Answer(member=name, model=member.model, tier=member.tier, status=status)
    candidate = panel.received[name].candidate
    first = next((one for one in panel.answers if one.member == name), None)
    last = next((one for one in draft.answers if one.member == name), first)
    calls = [h.candidate for h in case.received.values() if h.candidate.member == name]
    last_key = (last.round, last.call) if last else (candidate.round, candidate.call)
    shown = case.received.get(last_key)
    group = next(
        (i for i, g in enumerate(groups.values()) if any(one.member == name for one in g)), None
    )
    return Answer(
        member=name,
        model=member.model,
        tier=member.tier,
        status="ok" if candidate.ok else "error",
        round=last_key[0],
        call=last_key[1],
        content=last.content if last and first and last.content != first.content else None,
        error_code=candidate.error.code if candidate.error else None,
        error_status=candidate.error.status if candidate.error else None,
        provider_code=candidate.error.provider_code if candidate.error else None,
        provider_param=candidate.error.param if candidate.error else None,
        retry_after_s=candidate.error.retry_after_s if candidate.error else None,
        finish_reason=shown.candidate.finish_reason if shown else None,
        weight=first.weight if first else None,
        agreed=agrees_with_others(name, groups) if groups else None,
        vote_group=group,
        is_right=is_right(first.content if first else None, gold) if gold else None,
        is_winner=draft.winner == name,
        shown_position=draft.lineup.index(name) + 1 if name in draft.lineup else None,
        latency_ms=candidate.latency_ms,
        usage=usage(calls),
        cost_usd=cost(calls),
    )


def usage(candidates: Iterable[Candidate]) -> Usage | None:
    """Tokens of all calls together; None where one of them was not counted."""
    total = Usage()
    for candidate in candidates:
        if candidate.usage is None:
            return None
        total = total.plus(candidate.usage)
    return total


def cost(candidates: Sequence[Candidate]) -> float | None:
    """USD of all calls together; None as soon as one that used tokens has no price."""
    known = [c.cost_usd for c in candidates if c.cost_usd is not None]
    unknown = any(
        c.cost_usd is None and (c.usage is None or c.usage.prompt_tokens or c.ok)
        for c in candidates
    )
    return None if unknown else sum(known)


def cost_of_prompts(candidates: Sequence[Candidate]) -> float | None:
    """How much of `cost` is for prompts; None where it is not known apart."""
    parts = [c.cost_prompt_usd if c.cost_usd else 0.0 for c in candidates]
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) and cost(candidates) is not None else None


def _ms(since: datetime, until: datetime) -> float:
    return max((until - since).total_seconds() * 1000, 0.0)


def cancelled(case: Case, now: datetime, *, judged_since: datetime | None) -> Outcome:
    """The outcome of a fusion that nobody wants any more: no answer, but what came by then, and what it cost.

    It is not degraded, since nobody waits for more. Nor does it teach: who had not answered yet was not slow.
    """
    made = build(
        case,
        Decided(Draft("cancelled", error=CANCELLED), panel_so_far(case)),
        now,
        judged_since=judged_since,
    )
    return made.model_copy(update={"answer_kind": None, "accepted": None})


def cancelled_unplanned(prompt: Prompt, now: datetime) -> Outcome:
    """The outcome of a prompt that was cancelled before a dispatcher planned it."""
    return _of_nobody(prompt, now, status="cancelled", is_degraded=False, error=CANCELLED)


def unplanned(prompt: Prompt, now: datetime) -> Outcome:
    """The outcome of a prompt that no dispatcher planned before its deadline."""
    return _of_nobody(
        prompt,
        now,
        status="expired",
        is_degraded=True,
        degraded_reasons=("never_planned",),
        error="no dispatcher took it before its deadline",
    )


def undecidable(prompt: Prompt, now: datetime, reason: str) -> Outcome:
    """The outcome of a fusion on which the judge itself fails, again and again, for this reason."""
    return _of_nobody(
        prompt,
        now,
        status="failed",
        is_degraded=True,
        degraded_reasons=("undecidable",),
        # Its calls may have been paid for.
        cost_usd=None,
        error=f"the judge cannot decide it: {reason}",
    )


def _of_nobody(prompt: Prompt, now: datetime, **fields: Any) -> Outcome:
    return Outcome(
        fusion_id=prompt.fusion_id,
        tenant=prompt.tenant,
        batch_id=prompt.batch_id,
        custom_id=prompt.custom_id,
        pool=prompt.pool,
        mode=prompt.mode,
        submitted_at=prompt.submitted_at,
        finished_at=now,
        **{"cost_usd": 0.0, **fields},
    )
