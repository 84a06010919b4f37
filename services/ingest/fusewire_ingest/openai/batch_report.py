"""Build one line of a batch's output: in OpenAI's form, or as the API shows outcomes. Pure.

It works on the stored JSON of outcomes, without models: batches have a million lines.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from fusewire.contracts import ANSWERED
from fusewire_ingest.openai import chat_reply, failures
from fusewire_ingest.openai import responses as responses_shape

Form = Literal["openai", "responses", "outcome"]

_FIRST = ("is_degraded", "degraded_reasons", "status")
_NOT_SHOWN = ("v", "fusion_id", "custom_id", "batch_id")
_RETRYABLE_CODES = {"batch_expired", "batch_cancelled"}
_STATUS_BY_CODE = {
    "unsettled": "running",
    "batch_expired": "expired",
    "batch_cancelled": "cancelled",
}


def report(  # noqa: PLR0917 - one line's columns, in their order
    line: int,
    custom_id: str,
    fusion_id: str | None,
    outcome: dict[str, Any] | None,
    error: dict[str, Any] | None,
    form: Form,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Report what became of one input line.

    Args:
        line: its number in the input, for `index`.
        custom_id: its id.
        fusion_id: None if the line was never submitted.
        outcome: `outcomes.body`, parsed.
        error: why there is no outcome: `code`, `message`, and further fields of `error` in the
            report.
        form: `openai`: `{id, custom_id, response{status_code, request_id, body}, error, index}`,
            where `response` is null without an outcome, and `error` is null with an answer;
            `responses`: the same, with a response object as body; `outcome`: flat, in the form of
            `store.queries.shown`.
        warnings: parts of the line that were ignored.
    """
    if form == "outcome":
        flat = _flat(line, custom_id, fusion_id, outcome, error)
        return {**flat, "warnings": list(warnings)} if warnings else flat
    response: dict[str, Any] | None = None
    fault = None
    if outcome is not None:
        status, body = _reply(outcome, form, warnings)
        response = {"status_code": status, "request_id": fusion_id, "body": body}
        fault = None if is_answered(outcome) else _fault(outcome)
    elif error is not None:
        fault = _with_all_fields(error)
    return {
        "id": f"batch_req_{fusion_id or line}",
        "custom_id": custom_id,
        "response": response,
        "error": fault,
        "index": line,
    }


def is_answered(outcome: Mapping[str, Any]) -> bool:
    """Whether an outcome has an answer, so that its line goes to the output file."""
    return outcome["status"] in ANSWERED


def is_retryable(outcome: Mapping[str, Any]) -> bool:
    """Whether submitting the line again may give an answer; False if it has one."""
    return not is_answered(outcome) and failures.is_retryable(outcome)


def _reply(
    outcome: dict[str, Any], form: Form, warnings: Sequence[str]
) -> tuple[int, Mapping[str, object]]:
    if not is_answered(outcome):
        failure = failures.failure_of(outcome)
        kind = "invalid_request_error" if failure.status < 500 else "server_error"
        error = {"message": failure.message, "type": kind, "param": None, "code": failure.code}
        return failure.status, {"error": error}
    created = int(datetime.fromisoformat(outcome["finished_at"]).timestamp())
    write = responses_shape.response_of if form == "responses" else chat_reply.completion_of
    return 200, write(outcome, model=_model(outcome), created=created, warnings=warnings)


def _model(outcome: Mapping[str, Any]) -> str:
    answers = outcome.get("answers", ())
    return str(answers[0]["model"]) if len(answers) == 1 else f"fusewire/{outcome['pool']}"


def _fault(outcome: dict[str, Any]) -> dict[str, Any]:
    failure = failures.failure_of(outcome)
    failed_models = {
        answer["model"]
        for answer in outcome.get("answers", ())
        if answer["status"] in ("error", "missing")
    }
    return _with_all_fields(
        {
            "code": failure.code,
            "message": failure.message,
            "retryable": is_retryable(outcome),
            "stage": "panel",
            "model": failed_models.pop() if len(failed_models) == 1 else None,
        }
    )


def _with_all_fields(error: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "code": error["code"],
        "message": error["message"],
        "param": error.get("param"),
        "retryable": error.get("retryable", error["code"] in _RETRYABLE_CODES),
        "stage": error.get("stage"),
        "model": error.get("model"),
        "attempts": error.get("attempts"),
    }


def _flat(
    line: int,
    custom_id: str,
    fusion_id: str | None,
    outcome: dict[str, Any] | None,
    error: dict[str, Any] | None,
) -> dict[str, Any]:
    if outcome is None:
        fault = _with_all_fields(error or {"code": "unsettled", "message": "it has no outcome yet"})
        status = _STATUS_BY_CODE.get(fault["code"], "failed")
        return {
            "is_degraded": status != "running",
            "degraded_reasons": [],
            "status": status,
            "id": fusion_id,
            "custom_id": custom_id,
            "error": fault["message"],
            "error_code": fault["code"],
            "error_param": fault["param"],
            "retryable": fault["retryable"],
            "index": line,
        }
    submitted_at = datetime.fromisoformat(outcome["submitted_at"])
    finished_at = datetime.fromisoformat(outcome["finished_at"])
    rest = {
        name: value
        for name, value in outcome.items()
        if name not in _FIRST and name not in _NOT_SHOWN
    }
    return {
        **{name: outcome.get(name) for name in _FIRST},
        "id": fusion_id,
        "custom_id": custom_id,
        "batch_id": outcome.get("batch_id"),
        **rest,
        "latency_ms": round((finished_at - submitted_at).total_seconds() * 1000, 1),
        "index": line,
    }
