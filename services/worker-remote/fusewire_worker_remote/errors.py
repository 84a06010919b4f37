"""Classifies failures of providers: the error code, whether to call again, whether it is billed.

A failure's message is made of our own words, the status and the provider's error code. The
provider's own message is read but never repeated: it may hold the prompt or a piece of the key.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from fusewire.contracts import ErrorCode, FinishReason, Usage
from fusewire_worker_remote.backoff import believable_s, retry_after_s
from fusewire_worker_remote.error_tables import TABLES

_CODE = re.compile(r"[a-z]+(_[a-z]+)*")
_CODE_LENGTH = 48
"""Most characters of a code that is repeated."""
_FINAL: tuple[ErrorCode, ...] = (
    "insufficient_quota",
    "context_length_exceeded",
    "refused",
    "model_not_found",
    "unauthorized",
)
"""Codes that a provider's code or wording decides, whatever the status; the first wins."""
_WORD = re.compile(r"[a-z]+(_[a-z]+)*|[A-Z]+(_[A-Z]+)*|\d{1,9}")
_PARAM = re.compile(r"[a-z]+(_[a-z]+)*(\[\d+\]|\.[a-z]+(_[a-z]+)*)*")
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*")
_WAIT = re.compile(
    r"(?:try again|retry)[^.\d]{0,20}"
    r"(\d{1,6}(?:\.\d{1,6})?) ?(ms|milliseconds|s\b|seconds?|m\b|minutes?)",
    re.IGNORECASE,
)
"""A wait in the words of a message."""
_MOST_TEXT = 2_000
"""Most characters of a message that are searched for a wait."""
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s")


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that gave no answer."""

    code: ErrorCode
    message: str
    retryable: bool
    retry_after_s: float | None = None
    ambiguous: bool = False
    """Bytes were sent, and no complete result came: it may be billed, and so may the next call."""
    billed: bool = False
    """The provider did the work, and presumably charges for it."""
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    status: int | None = None
    provider_code: str | None = None
    param: str | None = None
    origin: Literal["response", "connection", "store"] = "response"
    """Where it was seen: in what the server answered, in the connection to it, or in our own store
    of large parts, which says nothing of the server."""


def truncation(message: str, usage: Usage | None = None) -> Failure:
    """Return the failure of a reply that broke off: paid for, with an unknowable result."""
    return Failure("truncated", message, retryable=True, ambiguous=True, billed=True, usage=usage)


def content_refusal(message: str, usage: Usage | None = None) -> Failure:
    """Return the failure of a call that the model, or a filter behind it, declined to answer.

    The work was done, so it is paid for; another call would change nothing.
    """
    return Failure(
        "refused",
        message,
        retryable=False,
        billed=True,
        usage=usage,
        finish_reason="content_filter",
    )


def classify(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Failure:
    """Return the failure that an HTTP response without an answer means.

    Args:
        status: the HTTP status. For a 200 the body's own `error.code` is used, if it is a status.
        headers: headers with lower-case names.
        body: any bytes; the forms of OpenAI, vLLM, FastAPI, OpenRouter, Anthropic, Google and
            Mistral are understood.
        now: the current time, with a zone.
    """
    error = _parse_error(body)
    words = (error.get("code"), error.get("type"))
    codes = {word.lower() for word in words if isinstance(word, str)}
    if status < 300:
        status = _inner_status(error.get("code"), codes)
    text = str(error.get("message", "")).lower()
    message = _describe(status, error)
    failure = (
        _classify_code(status, codes, text, message)
        or _classify_details(error, message)
        or _classify_status(status, headers, message, now)
    )
    if failure.code == "rate_limited" and failure.retry_after_s is None:
        failure = replace(failure, retry_after_s=believable_s(_retry_delay_s(error, now)))
    failure = replace(
        failure, status=status, provider_code=_provider_code(error), param=_param(error)
    )
    if headers.get("x-should-retry") == "false":
        return replace(failure, retryable=False, retry_after_s=None)
    return failure


def _classify_code(status: int, codes: set[str], text: str, message: str) -> Failure | None:
    """Classify by the body's own code or wording, whatever the status."""
    found_codes = _table_codes(status, codes, text)
    if status == 402:
        found_codes.add("insufficient_quota")
    if status == 413:
        found_codes.add("context_length_exceeded")
    code = next((code for code in _FINAL if code in found_codes), None)
    if code is None:
        return None
    finish_reason: FinishReason | None = "content_filter" if code == "refused" else None
    return Failure(code, message, retryable=False, finish_reason=finish_reason)


def _table_codes(status: int, codes: set[str], text: str) -> set[ErrorCode]:
    """Return our codes for a provider's codes and wording, after all tables of errors."""
    found_codes: set[ErrorCode] = set()
    # All tables: a gateway passes on the codes of other providers (docs/decisions/0037).
    for table in TABLES:
        found_codes.update(code for word, code in table.codes.items() if word in codes)
        found_codes.update(
            wording.code
            for wording in table.wordings
            if status in wording.statuses and wording.pattern.search(text)
        )
    return found_codes


def _classify_status(
    status: int, headers: Mapping[str, str], message: str, now: datetime
) -> Failure:
    if status == 429:
        wait_s = retry_after_s(headers, now)
        return Failure("rate_limited", message, retryable=True, retry_after_s=wait_s)
    if status in {401, 403}:
        return Failure("unauthorized", message, retryable=False)
    if status in {404, 410}:
        message = f"{message}: no such model there, or base_url leads elsewhere"
        return Failure("model_not_found", message, retryable=False)
    if status in {504, 524}:  # a gateway gave up waiting: the model behind it may have finished
        return Failure("timeout", message, retryable=True, ambiguous=True)
    if status >= 500 or status in {408, 409}:
        wait_s = retry_after_s(headers, now)
        return Failure("server_error", message, retryable=True, retry_after_s=wait_s)
    return Failure("bad_request", message, retryable=False)


def _inner_status(code: object, codes: set[str]) -> int:
    """Return the status that a provider put into the body of a 200; 500 if it put none."""
    for table in TABLES:
        for word, status in table.statuses.items():
            if word in codes:
                return status
    try:
        status = int(str(code))
    except ValueError:
        return 500
    return status if 400 <= status < 600 else 500


def _classify_details(error: Mapping[str, Any], message: str) -> Failure | None:
    """Classify by an error's details, in which Google gives its reasons."""
    details = _details(error)
    reasons = [str(detail.get("reason")) for detail in details]
    for detail in details:
        reasons += _quota_ids(detail.get("violations"))
    text = "\n".join(reasons)
    for table in TABLES:
        for word, code in table.reasons.items():
            if word in text:
                return Failure(code, message, retryable=False)
    return None


def _quota_ids(violations: object) -> list[str]:
    if not isinstance(violations, list):
        return []
    return [str(quota.get("quotaId")) for quota in violations if isinstance(quota, dict)]


def _retry_delay_s(error: Mapping[str, Any], now: datetime) -> float | None:
    """Return the seconds to wait that only a body gives.

    Google gives them in the details, OpenRouter among its provider's headers, OpenAI and Azure in
    the message.
    """
    for detail in _details(error):
        if match := _SECONDS.fullmatch(str(detail.get("retryDelay"))):
            return float(match[1])
    metadata = error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    if isinstance(headers, dict):
        texts = {str(name).lower(): str(value) for name, value in headers.items()}
        return retry_after_s(texts, now)
    return _parse_wait_s(str(error.get("message", ""))[:_MOST_TEXT])


def _parse_wait_s(text: str) -> float | None:
    """Return the seconds that a message asks to wait.

    >>> _parse_wait_s("Please try again in 2 minutes.")
    120.0
    """
    match = _WAIT.search(text)
    if match is None:
        return None
    number, unit = float(match[1]), match[2].lower()
    if unit.startswith(("ms", "mil")):
        return number / 1000
    return number * (60 if unit.startswith("m") else 1)


def _details(error: Mapping[str, Any]) -> list[dict[str, Any]]:
    details = error.get("details")
    if not isinstance(details, list):
        return []
    return [detail for detail in details if isinstance(detail, dict)]


def is_error(body: Mapping[str, Any]) -> bool:
    """Whether a body, or an event of a stream, is an error although it came with status 200."""
    if body.get("error") or body.get("object") == "error" or body.get("type") == "error":
        return True
    minimax = body.get("base_resp")
    return isinstance(minimax, dict) and minimax.get("status_code") not in (None, 0)


def _parse_error(body: bytes) -> dict[str, Any]:
    """Return the error that a body holds; empty if it holds none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(document, list) and document:
        document = document[0]  # Google sends errors in a list where a stream was requested
    if not isinstance(document, dict):
        return {}
    if isinstance(minimax := document.get("base_resp"), dict) and not document.get("error"):
        return _minimax_error(minimax)
    error = document.get("error", document)
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _minimax_error(base_resp: Mapping[str, Any]) -> dict[str, Any]:
    """Return MiniMax's error, which has a number, in OpenAI's form."""
    number = base_resp.get("status_code")
    code = "base_resp"
    if isinstance(number, int):
        code = next((table.numbers[number] for table in TABLES if number in table.numbers), code)
    return {"code": code, "message": base_resp.get("status_msg")}


def _provider_code(error: Mapping[str, Any]) -> str | None:
    """Return the provider's own code.

    Only a number or a word of a fixed form: anything else may hold the prompt.
    """
    for code in (error.get("code"), error.get("status"), error.get("type")):
        if isinstance(code, int) and not isinstance(code, bool) and 0 <= code < 10**9:
            return str(code)
        if isinstance(code, str) and len(code) <= _CODE_LENGTH and _WORD.fullmatch(code):
            return code
    return None


def _param(error: Mapping[str, Any]) -> str | None:
    """Return the parameter that an error names, if it has the form of a name."""
    param = error.get("param")
    if not isinstance(param, str) or len(param) > _CODE_LENGTH:
        return None
    return param if _PARAM.fullmatch(param) else None


def _describe(status: int, error: Mapping[str, Any]) -> str:
    """Describe an error by its status and by those of its words that cannot hold the prompt."""
    words = [
        word
        for word in (error.get("code"), error.get("type"), error.get("param"))
        if isinstance(word, str) and len(word) <= _CODE_LENGTH and _CODE.fullmatch(word)
    ]
    google = error.get("status")
    if isinstance(google, str) and len(google) <= _CODE_LENGTH and _STATUS.fullmatch(google):
        words.append(google.lower())
    if not words:
        return f"HTTP {status}"
    return f"HTTP {status} ({', '.join(dict.fromkeys(words))})"
