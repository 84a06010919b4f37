"""The part of reading a response that all protocols share. No IO."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from fusewire.contracts import FinishReason, ToolCall, Usage
from fusewire.sse import EventReader
from fusewire_worker_remote.errors import Failure, classify, is_error, truncation
from fusewire_worker_remote.providers.base import Assembly, HttpResponse, ProviderReply

_LENGTH = {
    "length",
    "max_tokens",
    "max_output_tokens",
    "max_length",
    "model_length",
    "model_context_window_exceeded",
    "token_limit",
}
_DONE = {
    "stop",
    "end_turn",
    "eos",
    "eos_token",
    "stop_sequence",
    "complete",
    "completed",
    "tool_calls",
    "tool_use",
    "function_call",
}
_BROKEN = {
    "error",
    "abort",
    "aborted",
    "cancelled",
    "canceled",
    "network_error",
    "insufficient_system_resource",
    "malformed_function_call",
    "other",
    "timeout",
}
"""Reasons by which the server gave up: the answer is incomplete."""
MOST_REASON_CHARS = 64
_EVENT_BEGINS = (b"data:", b"event:", b"error:", b"id:", b"retry:", b":")


def looks_like_events(data: bytes) -> bool:
    """Whether a body with these first bytes is a stream of events, whatever its type says."""
    return data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_EVENT_BEGINS)


def read(
    response: HttpResponse,
    now: datetime,
    *,
    read_body: Callable[[Mapping[str, Any]], ProviderReply | Failure],
    assemble: Callable[[datetime], Assembly],
) -> ProviderReply | Failure:
    """Read a response that came whole. Any bytes are an answer or a failure.

    Args:
        response: the response, with its body.
        now: the current time, for waits that are given as a date.
        read_body: reads a body that is an object and no error.
        assemble: returns an empty assembly, for servers that stream although they should not.
    """
    if not 200 <= response.status < 300:
        return _classify(response, now)
    if looks_like_events(response.body):
        return _from_events(response.body, assemble(now))
    try:
        body = json.loads(_text(response))
    except (ValueError, RecursionError):
        return _malformed_body(response.body)
    if isinstance(body, list):
        return _from_parts(body, assemble(now))
    if not isinstance(body, dict):
        return truncation("the response is not a JSON object")
    return _classify(response, now) if is_error(body) else read_body(body)


def _classify(response: HttpResponse, now: datetime) -> Failure:
    return classify(response.status, response.headers, response.body, now)


def _malformed_body(body: bytes) -> Failure:
    if body.lstrip().startswith(b"<"):
        return Failure(
            "bad_request", "a web page came back; base_url leads elsewhere", retryable=False
        )
    return truncation("the response is not whole JSON")


def _text(response: HttpResponse) -> str:
    """Decode the body by the charset that its type names, by default UTF-8."""
    _, _, rest = response.headers.get("content-type", "").partition("charset=")
    charset = rest.partition(";")[0].strip(" \"'") or "utf-8"
    try:
        return response.body.decode(charset)
    except (LookupError, UnicodeDecodeError):
        return response.body.decode("utf-8", errors="replace")


def _from_events(body: bytes, assembly: Assembly) -> ProviderReply | Failure:
    events = EventReader()
    for event in (*events.feed(body), *events.end()):
        assembly.add(event)
    return assembly.result()


def _from_parts(body: list[Any], assembly: Assembly) -> ProviderReply | Failure:
    """Read a stream whose events came as one JSON list."""
    for part in body:
        assembly.add_object(part)
    return assembly.result()


def no_answer(body: Mapping[str, Any], name: str, usage: Usage | None) -> Failure:
    """Return the failure of a body without an answer.

    Args:
        body: the body.
        name: its member that should hold answers.
        usage: its tokens.
    """
    if name not in body:
        # Some other service answers at that address.
        return Failure(
            "bad_request",
            f"the response has no '{name}'; base_url leads elsewhere",
            retryable=False,
        )
    return truncation(f"the response has nothing in '{name}'", usage)


def make_reply(
    content: str,
    calls: tuple[ToolCall, ...],
    usage: Usage | None,
    *,
    reason: str,
    cost_usd: float | None = None,
    reasoning: str = "",
) -> ProviderReply | Failure:
    """Return a whole answer, or the failure that it is without content.

    Args:
        content: its text.
        calls: its tool calls.
        usage: its tokens.
        reason: why it ended, in the provider's own word; empty if the server gives no reason.
        cost_usd: the cost that the provider reports.
        reasoning: its thought.
    """
    if reason.lower() in _BROKEN:
        return truncation("the provider failed while answering", usage)
    if not content and not calls:
        is_cut = reason.lower() in _LENGTH
        message = (
            "the token limit was reached before any answer" if is_cut else "the answer is empty"
        )
        return Failure("truncated", message, retryable=False, billed=True, usage=usage)
    return ProviderReply(
        content or None,
        _finish_reason(reason.lower(), has_calls=bool(calls)),
        usage,
        calls,
        provider_reason=reason[:MOST_REASON_CHARS] or None,
        cost_usd=cost_usd,
        reasoning=reasoning or None,
    )


def _finish_reason(reason: str, *, has_calls: bool) -> FinishReason | None:
    if reason in _LENGTH:
        return "length"
    if has_calls:
        # Some servers give `stop` as the reason although there are calls.
        return "tool_calls"
    # A reason that nobody knows is never read as `stop` (docs/decisions/0036).
    if not reason or reason in _DONE:
        return "stop"
    return None
