"""From a draft to the outcome: who said what, how long it took, what it cost. Pure."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from fusewire.contracts import Answer, Candidate, Outcome, PlannedMember, Prompt, Usage
from fusewire_judge.fusion.case import Case, Draft


def build(case: Case, draft: Draft, now: datetime, *, judged_since: datetime | None) -> Outcome:
    """The outcome of a decided case.

    Args:
        case: the fusion.
        draft: what the strategy decided.
        now: when.
        judged_since: when the first round was asked, if one was.
    """
    plan, prompt = case.plan, case.prompt
    candidates = [h.candidate for h in case.heard.values()]
    panel_end = judged_since or now
    judges = case.plan.judge if any(r.calls[0].member is None for r in case.rounds) else None
    return Outcome(
        fusion_id=prompt.fusion_id,
        status=draft.status,
        is_degraded=bool(draft.degraded) or draft.status in ("failed", "expired"),
        degraded_reasons=draft.degraded,
        content=draft.content,
        tenant=prompt.tenant,
        batch_id=prompt.batch_id,
        custom_id=prompt.custom_id,
        pool=prompt.pool,
        mode=plan.mode,
        winner=draft.winner,
        judge_model=judges.model if judges else None,
        judge_rung=draft.rung,
        reason=draft.reason,
        analysis=draft.analysis,
        agreement=draft.agreement,
        rounds=len(case.rounds),
        answers=tuple(_answer(case, draft, member) for member in plan.members),
        usage=usage(candidates),
        cost_usd=cost(candidates),
        error=draft.error,
        submitted_at=prompt.submitted_at,
        finished_at=now,
        panel_ms=_ms(plan.planned_at, panel_end),
        judge_ms=_ms(judged_since, now) if judged_since else None,
        config_hash=plan.config_hash,
    )


def _answer(case: Case, draft: Draft, member: PlannedMember) -> Answer:
    said = next((one for one in draft.said if one.member == member.name), None)
    round_ = said.round if said else 0
    heard = case.heard.get((round_, member.name))
    shown = draft.shown.index(member.name) + 1 if member.name in draft.shown else None
    if heard is None or heard.after_rounds > round_:  # too late to take part, though it is paid for
        return Answer(member=member.name, model=member.model, tier=member.tier, status="missing")
    candidate = heard.candidate
    return Answer(
        member=member.name,
        model=member.model,
        tier=member.tier,
        status="ok" if candidate.ok else "error",
        round=round_,
        error_code=candidate.error.code if candidate.error else None,
        is_winner=draft.winner == member.name,
        shown_position=shown,
        latency_ms=candidate.latency_ms,
        usage=candidate.usage,
        cost_usd=candidate.cost_usd,
    )


def usage(candidates: Iterable[Candidate]) -> Usage:
    """Tokens of all calls together."""
    spent = [c.usage for c in candidates]
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in spent),
        completion_tokens=sum(u.completion_tokens for u in spent),
        cached_tokens=sum(u.cached_tokens for u in spent),
    )


def cost(candidates: Sequence[Candidate]) -> float | None:
    """USD of all calls together; None as soon as one that used tokens has no price."""
    known = [c.cost_usd for c in candidates if c.cost_usd is not None]
    unknown = any(c.cost_usd is None and (c.usage.prompt_tokens or c.ok) for c in candidates)
    return None if unknown else sum(known)


def _ms(since: datetime, until: datetime) -> float:
    return max((until - since).total_seconds() * 1000, 0.0)


def unplanned(prompt: Prompt, now: datetime) -> Outcome:
    """The outcome of a prompt that no dispatcher planned before its deadline."""
    return Outcome(
        fusion_id=prompt.fusion_id,
        status="expired",
        is_degraded=True,
        degraded_reasons=("never_planned",),
        tenant=prompt.tenant,
        batch_id=prompt.batch_id,
        custom_id=prompt.custom_id,
        pool=prompt.pool,
        mode=prompt.mode,
        cost_usd=0.0,
        error="no dispatcher took it before its deadline",
        submitted_at=prompt.submitted_at,
        finished_at=now,
    )
