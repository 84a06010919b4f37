"""Whatever a server answers: a reply or a failure, and numbers that the database holds."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire.contracts import Usage
from fusewire.sse import Event
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import PROVIDERS, HttpResponse, ProviderReply

NOW = datetime(2026, 11, 28, tzinfo=UTC)
KEYS = (
    *(
        "choices",
        "message",
        "delta",
        "content",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "completion_tokens",
    ),
    *(
        "total_tokens",
        "cost",
        "error",
        "code",
        "index",
        "id",
        "tool_calls",
        "function",
        "name",
        "arguments",
    ),
    *(
        "function_call",
        "type",
        "text",
        "stop_reason",
        "content_block",
        "input",
        "input_tokens",
        "output_tokens",
    ),
    *(
        "thinking",
        "candidates",
        "parts",
        "finishReason",
        "usageMetadata",
        "promptTokenCount",
        "candidatesTokenCount",
    ),
    *("functionCall", "args", "status_code", "base_resp", "x_groq", "refusal", "reasoning_content"),
)
WORDS = [
    "stop",
    "length",
    "text",
    "tool_use",
    "message_start",
    "content_block_start",
    "content_block_delta",
]
WORDS += [
    "message_delta",
    "message_stop",
    "STOP",
    "f",
    "{}",
    '"{}"',
    "<think>",
    "</think>",
    "\ud800",
]
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -1, 1e400, 0, True])
JSON = st.recursive(
    st.none() | NUMBERS | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=25,
)


def check(result: ProviderReply | Failure) -> None:
    usage = result.usage or Usage()
    assert max(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) < 2**31
    if isinstance(result, ProviderReply):
        assert result.content or result.tool_calls
        assert result.cost_usd is None or 0 <= result.cost_usd <= 1e6
        for call in result.tool_calls:
            call.model_dump_json()


@pytest.mark.parametrize("provider", list(PROVIDERS))
@given(body=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5) | JSON)
@settings(max_examples=150)
def test_a_whole_answer(provider: str, body: Any) -> None:
    response = HttpResponse(200, {}, json.dumps(body).encode(errors="replace"))
    check(PROVIDERS[provider].read(response, NOW))


@pytest.mark.parametrize("provider", list(PROVIDERS))
@given(events=st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5) | JSON, max_size=5))
@settings(max_examples=150)
def test_a_stream(provider: str, events: list[Any]) -> None:
    assembly = PROVIDERS[provider].assemble(NOW)
    for event in events:
        assembly.add(Event(json.dumps(event)))
    check(assembly.result())


@pytest.mark.parametrize("provider", list(PROVIDERS))
@given(
    status=st.sampled_from([200, 400, 401, 403, 404, 422, 429, 500]), body=st.binary(max_size=60)
)
def test_any_bytes(provider: str, status: int, body: bytes) -> None:
    check(
        PROVIDERS[provider].read(
            HttpResponse(status, {"content-type": "text/x; charset=odd"}, body), NOW
        )
    )
