"""Rows of an outcome: itself, its answers and its verdicts. Pure."""

import json
from typing import Any

from fusewire.contracts import CONTROL, Answer, Candidate, Outcome, Plan, Verdict
from fusewire_judge.outcome import cost
from fusewire_judge.panel.recorded import RECORDED
from fusewire_judge.recent import FusionRecord


def outcome_row(outcome: Outcome, record: FusionRecord) -> dict[str, Any]:
    """Build the row of `outcomes`."""
    return {
        "fusion_id": outcome.fusion_id,
        "is_degraded": outcome.is_degraded,
        "degraded_reasons": json.dumps(outcome.degraded_reasons),
        "status": outcome.status,
        "tenant": outcome.tenant,
        "batch_id": outcome.batch_id,
        "custom_id": outcome.custom_id,
        "pool": outcome.pool,
        "mode": outcome.mode,
        "config_hash": outcome.config_hash,
        "prompt_hash": record.prompt_hash,
        "content": outcome.content,
        "tool_calls": _tool_calls_json(outcome),
        "reason": outcome.reason,
        "winner": outcome.winner,
        "winner_model": _winner_model(outcome),
        "judge_model": outcome.judge_model,
        "judge_rung": outcome.judge_rung,
        "agreement": outcome.agreement,
        "answer_kind": outcome.answer_kind,
        "closed_by": outcome.closed_by,
        "missing_weight": outcome.missing_weight,
        "guard": outcome.guard,
        "swap_consistent": outcome.swap_consistent,
        "hedges": outcome.hedges,
        "is_replay": outcome.is_replay,
        "accepted": outcome.accepted,
        "n_asked": sum(answer.status != "unasked" for answer in outcome.answers),
        "n_answered": sum(answer.status == "ok" for answer in outcome.answers),
        "latency_ms": outcome.latency_ms,
        "panel_ms": outcome.panel_ms,
        "judge_ms": outcome.judge_ms,
        **_token_columns(outcome),
        **_cost_columns(record),
        "cost_usd": outcome.cost_usd,
        "error": outcome.error,
        "submitted_at": outcome.submitted_at,
        "finished_at": outcome.finished_at,
        "body": outcome.model_dump_json(),
    }


def _tool_calls_json(outcome: Outcome) -> str | None:
    if not outcome.tool_calls:
        return None
    return json.dumps([call.model_dump() for call in outcome.tool_calls])


def _winner_model(outcome: Outcome) -> str | None:
    if not outcome.winner:
        return None
    models = {answer.member: answer.model for answer in outcome.answers}
    return models.get(outcome.winner)


def _token_columns(outcome: Outcome) -> dict[str, int | None]:
    """Return the token counts; None where those of a call are unknown."""
    usage = outcome.usage
    return {
        "tokens_in": usage.prompt_tokens if usage else None,
        "tokens_out": usage.completion_tokens if usage else None,
        "tokens_cached": usage.cached_tokens if usage else None,
        "tokens_thought": usage.reasoning_tokens if usage else None,
    }


def _cost_columns(record: FusionRecord) -> dict[str, Any]:
    """Return what the calls of members and of judges cost, without recorded answers."""
    candidates = (received_candidate.candidate for received_candidate in record.received.values())
    calls = [candidate for candidate in candidates if candidate.provider != RECORDED]
    versions = {call.price_version for call in calls if call.price_version}
    return {
        "cost_panel_usd": cost([call for call in calls if call.member is not None]),
        "cost_judge_usd": cost([call for call in calls if call.member is None]),
        "price_version": min(versions, default=None),
    }


def answer_row(answer: Answer, outcome: Outcome, record: FusionRecord) -> dict[str, Any]:
    """Build the row of `answers` for a member's part in an outcome."""
    candidate = None
    if answer.round is not None:
        candidate = _find_candidate(record, answer.round, answer.call or "")
    usage = answer.usage if candidate else None
    return {
        "fusion_id": outcome.fusion_id,
        "member": answer.member,
        "round": answer.round,
        "call": answer.call,
        "content": answer.content,
        "weight": answer.weight,
        "agreed": answer.agreed,
        "vote_group": answer.vote_group,
        "is_right": answer.is_right,
        "model": answer.model,
        "tier": answer.tier,
        "provider": candidate.provider if candidate else None,
        "status": answer.status,
        "error_code": answer.error_code,
        "error_status": answer.error_status,
        "provider_code": answer.provider_code,
        "provider_param": answer.provider_param,
        "shown_position": answer.shown_position,
        "is_winner": answer.is_winner,
        "attempts": candidate.attempts if candidate else None,
        "latency_ms": answer.latency_ms,
        "tokens_in": usage.prompt_tokens if usage else None,
        "tokens_out": usage.completion_tokens if usage else None,
        "cost_usd": answer.cost_usd,
    }


def _find_candidate(record: FusionRecord, round_: int, call: str) -> Candidate | None:
    received_candidate = record.received.get((round_, call))
    return received_candidate.candidate if received_candidate else None


def verdict_row(verdict: Verdict, outcome: Outcome, record: FusionRecord) -> dict[str, Any]:
    """Build the row of `verdicts`, with what shows a judge's biases: for places, lengths, kin."""
    families = _member_families(record.plan)
    judge_family = _judge_family(verdict.judge_model, record.plan)
    winner = verdict.winner
    return {
        "fusion_id": outcome.fusion_id,
        "call": verdict.call,
        "kind": verdict.kind,
        "judge_model": verdict.judge_model,
        "n_shown": len(verdict.shown),
        "shown": json.dumps(verdict.shown),
        "chars": json.dumps(verdict.chars),
        "is_by_margin": bool(verdict.logprobs),
        "swap_of": _opposite_call(verdict, outcome),
        "winner": winner,
        "winner_position": verdict.shown.index(winner) + 1 if winner else None,
        "longest_position": _longest_position(verdict),
        "n_own_family": sum(families.get(member) == judge_family for member in verdict.shown),
        "is_own_family_winner": families.get(winner) == judge_family if winner else None,
        "control": verdict.control,
        "is_control_winner": winner == CONTROL,
        "rung": verdict.rung,
        "void": verdict.void,
        "is_consistent": verdict.is_consistent,
        "decided_at": outcome.finished_at,
    }


def _opposite_call(verdict: Verdict, outcome: Outcome) -> str | None:
    """Return the call in which the same judge saw the opposite order and named a winner."""
    if verdict.is_consistent is None:
        return None
    for other in outcome.verdicts:
        is_same_turn = other.call.rpartition("-")[0] == verdict.call.rpartition("-")[0]
        if is_same_turn and other.call != verdict.call:
            return other.call
    return None


def _member_families(plan: Plan | None) -> dict[str, str]:
    return {member.name: member.family for member in plan.members} if plan else {}


def _judge_family(model: str, plan: Plan | None) -> str | None:
    jurors = plan.jurors if plan else ()
    return next((juror.family for juror in jurors if juror.model == model), None)


def _longest_position(verdict: Verdict) -> int | None:
    """Return where the longest answer was shown, from 1; None if several are as long."""
    longest = max(verdict.chars, default=0)
    if verdict.chars.count(longest) != 1:
        return None
    return verdict.chars.index(longest) + 1
