"""Failures of an outcome that has no answer, as HTTP reports them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusewire import replies
from fusewire.contracts import Outcome

Body = Mapping[str, Any]
"""The JSON of an outcome, or of a part of it."""

_MEMBER_STATUS = {
    "rate_limited": 429,
    "insufficient_quota": 402,
    "unauthorized": 401,
    "model_not_found": 404,
}
"""HTTP status by error code, for codes that have only one."""
_RETRYABLE_CODES = {
    "rate_limited",
    "server_error",
    "connect_error",
    "timeout",
    "truncated",
    "deadline_exceeded",
    "engine_failed",
    "cancelled",
}
_FAILED_STATUS = 424
"""Status of a provider's failure in a stored outcome: many clients repeat a request by themselves
after any status of 500 and more, and would pay again (docs/decisions/0018)."""
_SHARED_FAILURES = {
    "rate_limited": (429, "rate_limited", "try again later, or add members of other providers"),
    "insufficient_quota": (
        402,
        "insufficient_credits",
        "the provider's account has no credit left; top it up",
    ),
    "context_length_exceeded": (400, "context_length_exceeded", "shorten the messages"),
    "bad_request": (
        400,
        "bad_request",
        "the providers refuse it as it stands; see each member's code",
    ),
    "model_not_found": (
        404,
        "model_not_found",
        "no provider knows its model; mend `model` in the configuration",
    ),
    "unauthorized": (
        _FAILED_STATUS,
        "provider_key_refused",
        "the providers refuse this Fusewire's keys; mend them",
    ),
}
"""By the error code that all members failed with: status, code and advice."""
_WITHHELD_CODE = "refused"
"""Error code of members that declined to answer."""


@dataclass(frozen=True)
class Failure:
    """The failure of an outcome without an answer.

    Attributes:
        status: the HTTP status.
        code: OpenAI's error code, or one of Fusewire's own.
        message: what went wrong, and how to mend it.
        retry_after_s: when to try again; None if that is unknown, or never.
        failed_models: the members that failed, as `fusion.failed_models`.
    """

    status: int
    code: str
    message: str
    retry_after_s: float | None = None
    failed_models: tuple[replies.chat.FailedModel, ...] = ()


def failure(outcome: Outcome) -> Failure:
    """The failure of an outcome that has no answer."""
    return failure_of(outcome.model_dump(mode="json"))


def failure_of(body: Body) -> Failure:
    """As `failure`, of an outcome's JSON."""
    status, code, message = _classify(body)
    retry_after_s = _shortest_wait_s(body) if status == 429 else None
    return Failure(status, code, message, retry_after_s, tuple(failed_models(body)))


def _classify(body: Body) -> tuple[int, str, str]:
    """Status, code and message."""
    reason = body.get("error") or "there is no answer"
    if body["status"] == "cancelled":
        return 409, "cancelled", "it was cancelled before there was an answer"
    if body["status"] == "expired":
        return 504, "deadline_exceeded", f"{reason}; try again, or give it more time"
    codes = _error_codes(body)
    shared_failure = _SHARED_FAILURES.get(next(iter(codes))) if len(codes) == 1 else None
    if shared_failure is not None:
        status, code, advice = shared_failure
        return status, code, f"{reason}; {advice}"
    if not body.get("answers"):
        return 400, "no_member_available", f"{reason}; ask for other members or another pool"
    if not codes:
        return _FAILED_STATUS, "invalid_tool_calls", f"{reason}; try again, or mend the tools"
    return _FAILED_STATUS, "all_panels_failed", f"{reason}; see each member's error"


def _shortest_wait_s(body: Body) -> float | None:
    waits_s = (answer.get("retry_after_s") for answer in body.get("answers", ()))
    return min((wait_s for wait_s in waits_s if wait_s is not None), default=None)


def failed_models(body: Body) -> list[replies.chat.FailedModel]:
    """Members that failed or did not answer, as `fusion.failed_models`."""
    return [
        _failed_model(answer)
        for answer in body.get("answers", ())
        if answer["status"] in ("error", "missing")
    ]


def _failed_model(answer: Body) -> replies.chat.FailedModel:
    error = answer.get("error_code") or "missing"
    return {
        "model": answer["model"],
        "error": error,
        "status_code": answer.get("error_status") or _MEMBER_STATUS.get(error),
        "provider_code": answer.get("provider_code"),
        "param": answer.get("provider_param"),
    }


def is_withheld(outcome: Outcome) -> bool:
    """Whether every member declined to answer. OpenAI's clients expect that as an answer."""
    codes = {answer.error_code for answer in outcome.answers if answer.error_code}
    return outcome.status == "failed" and codes == {_WITHHELD_CODE}


def is_withheld_body(body: Body) -> bool:
    """As `is_withheld`, of an outcome's JSON."""
    return body["status"] == "failed" and _error_codes(body) == {_WITHHELD_CODE}


def is_retryable(body: Body) -> bool:
    """Whether submitting the same prompt again may give an answer.

    Args:
        body: the JSON of an outcome that has none.
    """
    if body["status"] in ("expired", "cancelled"):
        return True
    if not body.get("answers"):
        return False
    codes = _error_codes(body)
    return not codes or not codes.isdisjoint(_RETRYABLE_CODES)


def _error_codes(body: Body) -> set[str]:
    """Error codes of all members that failed."""
    return {answer["error_code"] for answer in body.get("answers", ()) if answer.get("error_code")}
