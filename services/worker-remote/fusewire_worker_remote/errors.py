"""What a provider's failure means: which class it is, whether to call again, whether it was paid for.

A failure's message is made of our own words, the status and the provider's error code. The
provider's own message is read but never repeated: it may hold the prompt or a piece of the key.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fusewire.contracts import ErrorCode, FinishReason, Usage
from fusewire_worker_remote.backoff import retry_after_s
from fusewire_worker_remote.error_tables import TABLES

_CODE = re.compile(r"[a-z]+(_[a-z]+)*")
_CODE_LENGTH = 48
_FINAL: tuple[ErrorCode, ...] = (
    "insufficient_quota",
    "context_length_exceeded",
    "refused",
    "model_not_found",
    "unauthorized",
)
"""Classes that a code or a wording settles, whatever the status; the first that fits."""
_WORD = re.compile(r"[a-z]+(_[a-z]+)*|[A-Z]+(_[A-Z]+)*|\d{1,9}")
_PARAM = re.compile(r"[a-z]+(_[a-z]+)*(\[\d+\]|\.[a-z]+(_[a-z]+)*)*")
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*")
_WAIT = re.compile(
    r"(?:try again|retry)[^.\d]{0,20}(\d{1,6}(?:\.\d{1,6})?) ?(ms|milliseconds|s\b|seconds?|m\b|minutes?)",
    re.IGNORECASE,
)
_MOST_TEXT = 2_000
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)s")


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that gave no answer."""

    code: ErrorCode
    message: str
    retryable: bool
    retry_after_s: float | None = None
    ambiguous: bool = False
    """Bytes were sent and no complete result came back: it may have been billed, and another call may be too."""
    billed: bool = False
    """The provider did the work, and charges for it as far as anyone can tell."""
    usage: Usage | None = None
    finish_reason: FinishReason | None = None
    status: int | None = None
    provider_code: str | None = None
    param: str | None = None


def truncated(what: str, usage: Usage | None = None) -> Failure:
    """A reply that broke off: paid for, and its whole is unknowable."""
    return Failure("truncated", what, retryable=True, ambiguous=True, billed=True, usage=usage)


def refused(what: str, usage: Usage | None = None) -> Failure:
    """The model, or a filter behind it, declined after the work was done. Asking again changes nothing."""
    return Failure(
        "refused", what, retryable=False, billed=True, usage=usage, finish_reason="content_filter"
    )


def classify(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> Failure:
    """Say what an HTTP response that holds no answer means.

    Args:
        status: the HTTP status. Of a 200 the body's own `error.code` is taken, where it is one.
        headers: with lower-case names.
        body: any bytes; the shapes of OpenAI, vLLM, FastAPI, OpenRouter, Anthropic, Google and Mistral are understood.
    """
    error = _error(body)
    codes = {c.lower() for c in (error.get("code"), error.get("type")) if isinstance(c, str)}
    if status < 300:
        status = _inner_status(error.get("code"), codes)
    text = str(error.get("message", "")).lower()
    what = _describe(status, error)
    failure = (
        _by_code(status, codes, text, what)
        or _by_details(error, what)
        or _by_status(status, headers, what, now)
    )
    if failure.code == "rate_limited" and failure.retry_after_s is None:
        failure = replace(failure, retry_after_s=_retry_delay_s(error, now))
    failure = replace(failure, status=status, provider_code=_code(error), param=_param(error))
    if headers.get("x-should-retry") == "false":
        return replace(failure, retryable=False, retry_after_s=None)
    return failure


def _by_code(status: int, codes: set[str], text: str, what: str) -> Failure | None:
    """What the body's own code settles, or its words, whatever the status."""
    of_status: dict[int, ErrorCode] = {402: "insufficient_quota", 413: "context_length_exceeded"}
    found = {of_status.get(status)}
    for table in TABLES:
        found |= {code for word, code in table.codes.items() if word in codes}
        found |= {
            one.code
            for one in table.wordings
            if status in one.statuses and one.pattern.search(text)
        }
    code = next((code for code in _FINAL if code in found), None)
    if code is None:
        return None
    return Failure(
        code, what, retryable=False, finish_reason="content_filter" if code == "refused" else None
    )


def _by_status(status: int, headers: Mapping[str, str], what: str, now: datetime) -> Failure:
    if status == 429:
        return Failure(
            "rate_limited", what, retryable=True, retry_after_s=retry_after_s(headers, now)
        )
    if status in {401, 403}:
        return Failure("unauthorized", what, retryable=False)
    if status in {404, 410}:
        return Failure(
            "model_not_found",
            f"{what}: no such model there, or base_url leads elsewhere",
            retryable=False,
        )
    if status in {504, 524}:  # a gateway gave up waiting: the model behind it may have finished
        return Failure("timeout", what, retryable=True, ambiguous=True)
    if status >= 500 or status in {408, 409}:
        return Failure(
            "server_error", what, retryable=True, retry_after_s=retry_after_s(headers, now)
        )
    return Failure("bad_request", what, retryable=False)


def _inner_status(code: object, codes: set[str]) -> int:
    """The status that a provider put into the body of a 200; 500 when it put none."""
    known = [status for table in TABLES for word, status in table.statuses.items() if word in codes]
    if known:
        return known[0]
    try:
        status = int(str(code))
    except ValueError:
        return 500
    return status if 400 <= status < 600 else 500


def _by_details(error: Mapping[str, Any], what: str) -> Failure | None:
    """What only the details of an error tell, as Google's do."""
    details = _details(error)
    broken = [
        v for one in details if isinstance(one.get("violations"), list) for v in one["violations"]
    ]
    told = [str(one.get("reason")) for one in details]
    told += [str(one.get("quotaId")) for one in broken if isinstance(one, dict)]
    known = [(reason, code) for table in TABLES for reason, code in table.reasons.items()]
    code = next((code for reason, code in known if any(reason in one for one in told)), None)
    return Failure(code, what, retryable=False) if code else None


def _retry_delay_s(error: Mapping[str, Any], now: datetime) -> float | None:
    """The wait that a body asks for and no header: Google's, OpenRouter's, or OpenAI's and Azure's in words."""
    delays = (_SECONDS.fullmatch(str(one.get("retryDelay"))) for one in _details(error))
    if (found := next((float(found[1]) for found in delays if found), None)) is not None:
        return found
    metadata = error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    if isinstance(headers, dict):
        return retry_after_s(
            {str(name).lower(): str(value) for name, value in headers.items()}, now
        )
    told = _WAIT.search(str(error.get("message", ""))[:_MOST_TEXT])
    if told is None:
        return None
    unit = told[2].lower()
    if unit.startswith(("ms", "mil")):
        return float(told[1]) / 1000
    return float(told[1]) * (60 if unit.startswith("m") else 1)


def _details(error: Mapping[str, Any]) -> list[dict[str, Any]]:
    details = error.get("details")
    return [one for one in details if isinstance(one, dict)] if isinstance(details, list) else []


def is_error(body: Mapping[str, Any]) -> bool:
    """Whether a body, or an event of a stream, that came with status 200 is an error all the same."""
    if body.get("error") or body.get("object") == "error" or body.get("type") == "error":
        return True
    minimax = body.get("base_resp")
    return isinstance(minimax, dict) and minimax.get("status_code") not in (None, 0)


def _error(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    if isinstance(parsed, list) and parsed:
        parsed = parsed[0]  # Google's errors come so where a stream was asked for
    if not isinstance(parsed, dict):
        return {}
    if isinstance(minimax := parsed.get("base_resp"), dict) and not parsed.get("error"):
        code = minimax.get("status_code")
        named = (
            [table.numbers[code] for table in TABLES if code in table.numbers]
            if isinstance(code, int)
            else []
        )
        return {"code": named[0] if named else "base_resp", "message": minimax.get("status_msg")}
    error = parsed.get("error", parsed)
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _code(error: Mapping[str, Any]) -> str | None:
    """The provider's own code. Only a number or a word of a fixed form: anything else may hold the prompt."""
    for value in (error.get("code"), error.get("status"), error.get("type")):
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
            return str(value)
        if isinstance(value, str) and len(value) <= _CODE_LENGTH and _WORD.fullmatch(value):
            return value
    return None


def _param(error: Mapping[str, Any]) -> str | None:
    value = error.get("param")
    return (
        value
        if isinstance(value, str) and len(value) <= _CODE_LENGTH and _PARAM.fullmatch(value)
        else None
    )


def _describe(status: int, error: Mapping[str, Any]) -> str:
    shown = [
        value
        for value in (error.get("code"), error.get("type"), error.get("param"))
        if isinstance(value, str) and len(value) <= _CODE_LENGTH and _CODE.fullmatch(value)
    ]
    google = error.get("status")
    if isinstance(google, str) and len(google) <= _CODE_LENGTH and _STATUS.fullmatch(google):
        shown.append(google.lower())
    return f"HTTP {status}" + (f" ({', '.join(dict.fromkeys(shown))})" if shown else "")
