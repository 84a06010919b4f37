"""From a decision to the outcome: who answered what, how long it took, what it cost. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from fusewire.contracts import (
    Answer,
    Call,
    CallFailure,
    Candidate,
    Outcome,
    Plan,
    PlannedMember,
    Prompt,
    Round,
    Usage,
)
from fusewire.contracts.call_names import is_hedge
from fusewire.contracts.degraded import DegradedReason
from fusewire_judge.model import Case, Decided, Draft, MemberAnswer, Panel
from fusewire_judge.panel.convene import panel_so_far
from fusewire_judge.panel.recorded import RECORDED
from fusewire_judge.scoring.answers import agrees_with_others, votes
from fusewire_judge.scoring.gold import is_right

CANCELLED = "cancelled by the client"


def build(
    case: Case, decision: Decided, now: datetime, *, judged_since: datetime | None
) -> Outcome:
    """Build the outcome of a decided case.

    Args:
        case: the fusion.
        decision: what the strategy decided, and of which panel.
        now: when it was decided.
        judged_since: when the strategy's first round was asked for, if one was.
    """
    plan, prompt, draft, panel = case.plan, case.prompt, decision.draft, decision.panel
    paid_calls = _paid_candidates(case)
    is_judged = any(call.member is None for call in _calls(case.rounds))
    hedges = sum(is_hedge(call.name) for call in _calls(case.panel_rounds))
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
        missing_weight=_missing_weight(plan, panel),
        guard=draft.guard,
        swap_consistent=_is_swap_consistent(draft),
        verdicts=draft.verdicts,
        hedges=hedges,
        is_replay=bool(prompt.recorded),
        accepted=is_right(draft.content, prompt.gold) if prompt.gold else None,
        judge_model=_judge_model(plan) if is_judged else None,
        judge_rung=draft.parse_stage,
        reason=_reason(plan, draft),
        analysis=draft.analysis,
        agreement=draft.agreement,
        rounds=len(case.rounds),
        answers=_answers(case, draft, panel),
        usage=usage(paid_calls),
        cost_usd=cost(paid_calls),
        cost_prompt_usd=cost_of_prompts(paid_calls),
        error=draft.error,
        submitted_at=prompt.submitted_at,
        finished_at=now,
        panel_ms=_elapsed_ms(plan.planned_at, judged_since or now),
        judge_ms=_elapsed_ms(judged_since, now) if judged_since else None,
        config_hash=plan.config_hash,
        route=plan.route,
    )


def _reason(plan: Plan, draft: Draft) -> str | None:
    """Return the rule that decided; of a member that a route has chosen alone, that rule."""
    if draft.status == "single" and plan.route and len(plan.route.members) == 1:
        return f"{draft.winner or plan.route.members[0]} alone was asked, as the route predicts"
    return draft.reason


def _paid_candidates(case: Case) -> list[Candidate]:
    """Return the candidates of calls that were made, so without recorded answers."""
    return [r.candidate for r in case.received.values() if r.candidate.provider != RECORDED]


def _calls(rounds: Iterable[Round]) -> Iterator[Call]:
    for round_ in rounds:
        yield from round_.calls


def _is_swap_consistent(draft: Draft) -> bool | None:
    """Tell whether all judges that judged in both orders named the same winner in both."""
    flags = [
        verdict.is_consistent for verdict in draft.verdicts if verdict.is_consistent is not None
    ]
    return all(flags) if flags else None


def _judge_model(plan: Plan) -> str | None:
    if len(plan.jurors) > 1:
        return "jury"
    return plan.judge.model if plan.judge else None


def _find_answer(answers: Iterable[MemberAnswer], member: str | None) -> MemberAnswer | None:
    return next((answer for answer in answers if answer.member == member), None)


def _find_candidate(case: Case, round_: int, call: str) -> Candidate | None:
    received_candidate = case.received.get((round_, call))
    return received_candidate.candidate if received_candidate else None


def _reasoning(case: Case, draft: Draft) -> str | None:
    """Return what the winner thought before the answer that was chosen."""
    answer = _find_answer(draft.answers, draft.winner)
    if answer is None:
        return None
    candidate = _find_candidate(case, answer.round, answer.call)
    return candidate.reasoning if candidate else None


def _missing_weight(plan: Plan, panel: Panel | None) -> float:
    """Return the share of the pool's weight that took no part, though it should have.

    Members that the gate skipped are not missing, nor those that an early stop did not wait
    for (docs/decisions/0016).
    """
    total = sum(m.weight for m in plan.members) + sum(e.weight for e in plan.excluded)
    if not total or panel is None:
        return 1.0 if plan.excluded else 0.0
    present = {answer.member for answer in panel.answers} | panel.skipped
    if panel.closed_by in ("certain", "likely"):
        present |= {member.name for member in plan.members} - set(panel.received)
    present_weight = sum(member.weight for member in plan.members if member.name in present)
    return max(1.0 - present_weight / total, 0.0)


def _answers(case: Case, draft: Draft, panel: Panel | None) -> tuple[Answer, ...]:
    """Build every member's part in the outcome, in the pool's order."""
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
    """Build a member's part in the outcome, of its first and its last answer."""
    name, gold = member.name, case.prompt.gold
    if name not in panel.received:
        return _missing_answer(member, panel)
    candidate = panel.received[name].candidate
    first = _find_answer(panel.answers, name)
    last = _find_answer(draft.answers, name) or first
    round_, call = (last.round, last.call) if last else (candidate.round, candidate.call)
    last_candidate = _find_candidate(case, round_, call)
    calls = [r.candidate for r in case.received.values() if r.candidate.member == name]
    return Answer(
        member=name,
        model=member.model,
        tier=member.tier,
        status="ok" if candidate.ok else "error",
        round=round_,
        call=call,
        content=_changed_content(first, last),
        finish_reason=last_candidate.finish_reason if last_candidate else None,
        weight=first.weight if first else None,
        agreed=agrees_with_others(name, groups) if groups else None,
        vote_group=_vote_group(name, groups),
        is_right=is_right(first.content if first else None, gold) if gold else None,
        is_winner=draft.winner == name,
        shown_position=draft.lineup.index(name) + 1 if name in draft.lineup else None,
        latency_ms=candidate.latency_ms,
        usage=usage(calls),
        cost_usd=cost(calls),
        **_error_fields(candidate.error),
    )


def _changed_content(first: MemberAnswer | None, last: MemberAnswer | None) -> str | None:
    """Return the last answer's text, unless it is the first's: that stands in its candidate."""
    if first is None or last is None or last.content == first.content:
        return None
    return last.content


def _missing_answer(member: PlannedMember, panel: Panel) -> Answer:
    """Build the part of a member that took none.

    Perhaps its answer came too late for the panel. The outcome's cost counts it all the same.
    """
    status: Literal["unasked", "missing"] = "missing"
    if member.name in panel.skipped:
        status = "unasked"
    return Answer(member=member.name, model=member.model, tier=member.tier, status=status)


def _error_fields(failure: CallFailure | None) -> dict[str, Any]:
    if failure is None:
        return {}
    return {
        "error_code": failure.code,
        "error_status": failure.status,
        "provider_code": failure.provider_code,
        "provider_param": failure.param,
        "retry_after_s": failure.retry_after_s,
    }


def _vote_group(member: str, groups: Mapping[str, Sequence[MemberAnswer]]) -> int | None:
    """Return the place of the group that a member's first answer is in, if it has a vote."""
    for place, group in enumerate(groups.values()):
        if _find_answer(group, member):
            return place
    return None


def usage(candidates: Iterable[Candidate]) -> Usage | None:
    """Sum up the tokens of calls; None if those of one were not counted."""
    total = Usage()
    for candidate in candidates:
        if candidate.usage is None:
            return None
        total = total.plus(candidate.usage)
    return total


def cost(candidates: Sequence[Candidate]) -> float | None:
    """Sum up the cost of calls in USD; None if one that may have used tokens has no price."""
    costs: list[float] = []
    for candidate in candidates:
        if candidate.cost_usd is not None:
            costs.append(candidate.cost_usd)
        # A sum with an unknown part is unknown (docs/decisions/0036).
        elif candidate.usage is None or candidate.usage.prompt_tokens or candidate.ok:
            return None
    return sum(costs)


def cost_of_prompts(candidates: Sequence[Candidate]) -> float | None:
    """Return the part of `cost` that is for prompts; None if that is not known of each call."""
    if cost(candidates) is None:
        return None
    costs: list[float] = []
    for candidate in candidates:
        prompt_cost = candidate.cost_prompt_usd if candidate.cost_usd else 0.0
        if prompt_cost is None:
            return None
        costs.append(prompt_cost)
    return sum(costs)


def _elapsed_ms(since: datetime, until: datetime) -> float:
    return max((until - since).total_seconds() * 1000, 0.0)


def build_cancelled(case: Case, now: datetime, *, judged_since: datetime | None) -> Outcome:
    """Build the outcome of a cancelled fusion: no content, but what came by then and its cost.

    It is not degraded, since nobody waits for more. Nothing is learned from it: a member that
    had not answered yet was not slow.
    """
    decision = Decided(Draft("cancelled", error=CANCELLED), panel_so_far(case))
    outcome = build(case, decision, now, judged_since=judged_since)
    return outcome.model_copy(update={"answer_kind": None, "accepted": None})


def build_cancelled_unplanned(prompt: Prompt, now: datetime) -> Outcome:
    """Build the outcome of a prompt that was cancelled before a dispatcher planned it."""
    return _without_panel(prompt, now, status="cancelled", is_degraded=False, error=CANCELLED)


def build_unplanned(prompt: Prompt, now: datetime) -> Outcome:
    """Build the outcome of a prompt that no dispatcher planned before its deadline."""
    return _without_panel(
        prompt,
        now,
        status="expired",
        is_degraded=True,
        degraded_reasons=(DegradedReason("never_planned"),),
        error="no dispatcher took it before its deadline",
    )


def build_undecidable(prompt: Prompt, now: datetime, reason: str) -> Outcome:
    """Build the outcome of a fusion on which the judge itself fails repeatedly, for this reason."""
    return _without_panel(
        prompt,
        now,
        status="failed",
        is_degraded=True,
        degraded_reasons=(DegradedReason("undecidable"),),
        # Unknown, since its calls may have been paid for.
        cost_usd=None,
        error=f"the judge cannot decide it: {reason}",
    )


def _without_panel(prompt: Prompt, now: datetime, **fields: Any) -> Outcome:
    """Build an outcome without any answers, which cost nothing unless `fields` say otherwise."""
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
