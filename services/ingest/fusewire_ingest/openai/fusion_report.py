"""The `fusion` object of a reply: how an outcome came about, with OpenRouter's names. Pure."""

from collections.abc import Sequence

from fusewire import replies
from fusewire.contracts import Outcome
from fusewire.contracts.degraded import DegradedReason
from fusewire_ingest.openai.failures import Body, failed_models, failure_of

_JUDGE_REASONS = {
    "empty": "judge_empty_completion",
    "schema_mismatch": "judge_schema_mismatch",
    "not_json": "judge_not_valid_json",
    "ambiguous": "judge_not_valid_json",
    "too_long": "judge_not_valid_json",
    "picked_control": None,
    "one_order": None,
}
"""OpenRouter's `failure_reason`, by a judge's fault; None where OpenRouter has no name for it.

After any other fault there was no reply: `judge_upstream_error`.
"""


def fusion_report(outcome: Outcome, warnings: Sequence[str] = ()) -> replies.chat.FusionReport:
    """Report how an outcome came about. Whether it is degraded stands first."""
    return fusion_report_of(outcome.model_dump(mode="json"), warnings)


def fusion_report_of(body: Body, warnings: Sequence[str] = ()) -> replies.chat.FusionReport:
    """As `fusion_report`, of an outcome's JSON.

    It parses as OpenRouter's `openrouter:fusion` output item.
    """
    answers = body.get("answers", [])
    is_answered = body["status"] in ("fused", "voted", "single")
    report: replies.chat.FusionReport = {
        "is_degraded": body["is_degraded"],
        "degraded_reasons": list(body.get("degraded_reasons", ())),
        "type": "openrouter:fusion",
        "status": "completed" if is_answered else "incomplete",
        "outcome_id": body["fusion_id"],
        "outcome_status": body["status"],
        "strategy": body["mode"],
        "pool": body["pool"],
        "winner": body.get("winner"),
        "reason": body.get("reason"),
        "judge_model": body.get("judge_model"),
        "answer_kind": body.get("answer_kind"),
        "closed_by": body.get("closed_by"),
        "agreement": body.get("agreement"),
        "cost_usd": body.get("cost_usd"),
        "members": [_member(answer) for answer in answers],
        "warnings": list(warnings),
        "responses": _member_texts(answers),
        "failed_models": failed_models(body),
        "failure_reason": _failure_reason(body, is_answered=is_answered),
    }
    if body.get("analysis") is not None:
        report["analysis"] = body["analysis"]
    if body.get("error"):
        report["error"] = body["error"]
    return report


def _member_texts(answers: Sequence[Body]) -> list[replies.chat.MemberText]:
    return [
        {"model": answer["model"], "content": answer["content"]}
        for answer in answers
        if answer["status"] == "ok" and answer.get("content") is not None
    ]


def _member(answer: Body) -> replies.chat.FusionMember:
    usage = answer.get("usage") or {}
    return {
        "member": answer["member"],
        "model": answer["model"],
        "status": answer["status"],
        "error_code": answer.get("error_code"),
        "prompt_tokens": usage.get("prompt_tokens"),
        "completion_tokens": usage.get("completion_tokens"),
        "cost_usd": answer.get("cost_usd"),
        "latency_ms": answer.get("latency_ms"),
    }


def _failure_reason(body: Body, *, is_answered: bool) -> str | None:
    if not is_answered:
        code = failure_of(body).code
        is_known = code in ("rate_limited", "insufficient_credits", "cancelled")
        return code if is_known else "all_panels_failed"
    reasons = [DegradedReason.parse(text) for text in body.get("degraded_reasons", ())]
    for reason in reasons:
        if reason.code == "judge_failed":
            return _JUDGE_REASONS.get(reason.subject or "", "judge_upstream_error")
    return None
