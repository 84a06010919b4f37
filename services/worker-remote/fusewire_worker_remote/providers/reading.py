"""How a response is read, the same for every protocol; only what a body means differs. No IO."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from fusewire.contracts import FinishReason, ToolCall, Usage
from fusewire_worker_remote.errors import Failure, classify, is_error, truncated
from fusewire_worker_remote.providers.base import Assembly, HttpResponse, ProviderReply
from fusewire_worker_remote.sse import EventReader

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
"""The server gave up: what came is a piece of an answer."""
MOST_REASON_CHARS = 64
_EVENT_BEGINS = (b"data:", b"event:", b"error:", b"id:", b"retry:", b":")


def looks_like_events(data: bytes) -> bool:
    """Whether a body, of which these are the first bytes, is a stream of events, whatever its type says."""
    begun = data.removeprefix(b"\xef\xbb\xbf").lstrip()
    return begun.startswith(_EVENT_BEGINS)


def read(
    response: HttpResponse,
    now: datetime,
    *,
    read_body: Callable[[Mapping[str, Any]], ProviderReply | Failure],
    assemble: Callable[[datetime], Assembly],
) -> ProviderReply | Failure:
    """Tell an answer that came whole from a failure, whatever the bytes are.

    Args:
        response: whole.
        now: for waits that are given as a date.
        read_body: reads a body that is an object and no error.
        assemble: begins to put events together, for servers that stream what was asked for whole.
    """
    if not 200 <= response.status < 300:
        return _failed(response, now)
    if looks_like_events(response.body):
        return _from_events(response.body, assemble(now))
    try:
        body = json.loads(_text(response))
    except (ValueError, RecursionError):
        return _no_json(response.body)
    if isinstance(body, list):
        return _from_parts(body, assemble(now))
    if not isinstance(body, dict):
        return truncated("the response is not a JSON object")
    return _failed(response, now) if is_error(body) else read_body(body)


def _failed(response: HttpResponse, now: datetime) -> Failure:
    return classify(response.status, response.headers, response.body, now)


def _no_json(body: bytes) -> Failure:
    if body.lstrip().startswith(b"<"):
        return Failure(
            "bad_request", "a web page came back; base_url leads elsewhere", retryable=False
        )
    return truncated("the response is not whole JSON")


def _text(response: HttpResponse) -> str:
    """The body by the charset that its type names; JSON is UTF-8 otherwise."""
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
    """A stream whose events came as one JSON list."""
    for part in body:
        assembly.add_object(part)
    return assembly.result()


def no_answer(body: Mapping[str, Any], name: str, usage: Usage | None) -> Failure:
    """What a body is that has no answer in it.

    Args:
        body: the body.
        name: of its member that holds answers.
        usage: what it counts.
    """
    if name not in body:
        # Some other service answers at that address.
        return Failure(
            "bad_request",
            f"the response has no '{name}'; base_url leads elsewhere",
            retryable=False,
        )
    return truncated(f"the response has nothing in '{name}'", usage)


def answered(
    content: str,
    calls: tuple[ToolCall, ...],
    usage: Usage | None,
    *,
    reason: str,
    cost_usd: float | None = None,
    reasoning: str = "",
) -> ProviderReply | Failure:
    """A whole answer, or what it is when there is nothing in it.

    Args:
        content: its text.
        calls: its tool calls.
        usage: its tokens.
        reason: why it ended, in the provider's own word; empty where a server gives none to what is whole.
        cost_usd: what the provider says that it charged.
        reasoning: what was thought.
    """
    word = reason.lower()
    is_cut = word in _LENGTH
    if word in _BROKEN:
        return truncated("the provider failed while answering", usage)
    if not content and not calls:
        what = "the token limit was reached before any answer" if is_cut else "the answer is empty"
        return Failure("truncated", what, retryable=False, billed=True, usage=usage)
    finish: FinishReason | None = None
    if is_cut:
        finish = "length"
    elif not word or word in _DONE or calls:
        # Some servers say `stop` though there are calls.
        finish = "tool_calls" if calls else "stop"
    return ProviderReply(
        content or None,
        finish,
        usage,
        calls,
        provider_reason=reason[:MOST_REASON_CHARS] or None,
        cost_usd=cost_usd,
        reasoning=reasoning or None,
    )
