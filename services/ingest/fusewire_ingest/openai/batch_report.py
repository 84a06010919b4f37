"""One line of a batch's output: in OpenAI's shape, or an outcome as the API shows it. Pure.

Works on the JSON of outcomes as it is stored: batches have a million lines.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from fusewire_ingest.openai import chat_reply
from fusewire_ingest.openai import responses as responses_shape

Form = Literal["openai", "responses", "outcome"]

_FIRST = ("is_degraded", "degraded_reasons", "status")
_NOT_SHOWN = ("v", "fusion_id", "custom_id", "batch_id")
_RETRYABLE_CODES = {"batch_expired", "batch_cancelled"}


def report(  # noqa: PLR0917 - one line's columns, in their order
    line: int,
    custom_id: str,
    fusion_id: str | None,
    outcome: dict[str, Any] | None,
    error: dict[str, Any] | None,
    form: Form,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """What became of one input line.

    Args:
        line: its number in the input, for `index`.
        custom_id: its id.
        fusion_id: None where it never was submitted.
        outcome: `outcomes.body`, parsed.
        error: why there is no outcome: `code`, `message`, and what else `error` has in the result.
        form: `openai`: `{id, custom_id, response{status_code, request_id, body}, error, index}`, where `response` is
            null without an outcome and `error` null with an answer; `responses`: the same, with a response object
            as body; `outcome`: flat, as `store.queries.shown` has it.
        warnings: what the line asked for and did not get.
    """
    if form == "outcome":
        found = _flat(line, custom_id, fusion_id, outcome, error)
        return {**found, "warnings": list(warnings)} if warnings else found
    response: dict[str, Any] | None = None
    fault = None
    if outcome is not None:
        status, body = _reply(outcome, form, warnings)
        response = {"status_code": status, "request_id": fusion_id, "body": body}
        fault = None if is_answered(outcome) else _fault(outcome)
    elif error is not None:
        fault = _complete(error)
    return {
        "id": f"batch_req_{fusion_id or line}",
        "custom_id": custom_id,
        "response": response,
        "error": fault,
        "index": line,
    }


def is_answered(outcome: Mapping[str, Any]) -> bool:
    """Whether an outcome holds an answer, and its line goes to the output file and not to the error file."""
    return outcome["status"] in ("fused", "voted", "single")


def is_retryable(outcome: Mapping[str, Any]) -> bool:
    """Whether the same line, submitted again, might be answered; False for one that has its answer."""
    return not is_answered(outcome) and chat_reply.is_retryable(outcome)


def _reply(
    outcome: dict[str, Any], form: Form, warnings: Sequence[str]
) -> tuple[int, Mapping[str, object]]:
    if not is_answered(outcome):
        found = chat_reply.failure_of(outcome)
        kind = "invalid_request_error" if found.status < 500 else "server_error"
        return found.status, {
            "error": {"message": found.message, "type": kind, "param": None, "code": found.code}
        }
    created = int(datetime.fromisoformat(outcome["finished_at"]).timestamp())
    write = responses_shape.response_of if form == "responses" else chat_reply.completion_of
    return 200, write(outcome, model=_model(outcome), created=created, warnings=warnings)


def _model(outcome: Mapping[str, Any]) -> str:
    answers = outcome.get("answers", ())
    return str(answers[0]["model"]) if len(answers) == 1 else f"fusewire/{outcome['pool']}"


def _fault(outcome: dict[str, Any]) -> dict[str, Any]:
    found = chat_reply.failure_of(outcome)
    failed = {a["model"] for a in outcome.get("answers", ()) if a["status"] in ("error", "missing")}
    return _complete(
        {
            "code": found.code,
            "message": found.message,
            "retryable": is_retryable(outcome),
            "stage": "panel",
            "model": failed.pop() if len(failed) == 1 else None,
        }
    )


def _complete(error: Mapping[str, Any]) -> dict[str, Any]:
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
        fault = _complete(error or {"code": "unsettled", "message": "it has no outcome yet"})
        status = _status(fault["code"])
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
    since, until = (
        datetime.fromisoformat(outcome[name]) for name in ("submitted_at", "finished_at")
    )
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
        "latency_ms": round((until - since).total_seconds() * 1000, 1),
        "index": line,
    }


def _status(code: str) -> str:
    return {"unsettled": "running", "batch_expired": "expired", "batch_cancelled": "cancelled"}.get(
        code, "failed"
    )
