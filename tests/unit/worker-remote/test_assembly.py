"""Streams that real servers send and the fake one does not."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import ToolCall, Usage
from fusewire.sse import Event
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import PROVIDERS, ProviderReply

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def assemble(provider: str, *chunks: Any) -> tuple[str, ProviderReply | Failure]:
    """Return the text of the events, and the result."""
    assembly = PROVIDERS[provider].assemble(NOW)
    text = "".join(assembly.add(Event(c if isinstance(c, str) else json.dumps(c))) for c in chunks)
    return text, assembly.result()


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def call(arguments: str, **fields: Any) -> dict[str, Any]:
    name = {"name": fields.pop("name")} if "name" in fields else {}
    return {**fields, "function": {"arguments": arguments, **name}}


def test_a_character_may_be_cut_in_two() -> None:
    text, reply = assemble(
        "openai", delta(content="a\ud83d"), delta(content="\ude42b"), delta("stop"), "[DONE]"
    )
    assert isinstance(reply, ProviderReply)
    assert text == reply.content == "a🙂b"


def test_half_a_character_is_replaced() -> None:
    text, reply = assemble("openai", delta(content="a\ud83d"), delta("stop"))
    assert isinstance(reply, ProviderReply)
    assert (text, reply.content) == ("a", "a?")


@pytest.mark.parametrize(
    "pieces",
    [
        [
            call('{"a"', index=0, id="x", name="f"),
            call(": 1}", index=0),
            call("{}", index=1, id="y", name="g"),
        ],
        [call('{"a"', id="x", name="f"), call(": 1}"), call("{}", id="y", name="g")],  # no index
        [
            call('{"a": 1}', index=0, id="x", name="f"),
            call("{}", index=0, id="y", name="g"),
        ],  # one index for all
        [call('{"a": 1}', index=0, id="x", name="f"), call("{}", index=5, id="y", name="g")],
        [
            call('{"a"', index=0, id="x", name="f"),
            call("{}", index=1, id="y", name="g"),
            call(": 1}", index=0),
        ],
        [
            call('{"a"', index=0, id="x", name="f"),
            call(": 1}", index=0, id="x"),
            call("", index=1, id="y", name="g"),
        ],
    ],
)
def test_calls_are_put_together_from_their_pieces(pieces: list[dict[str, Any]]) -> None:
    text, reply = assemble(
        "openai", *(delta(tool_calls=[piece]) for piece in pieces), delta("tool_calls")
    )
    assert isinstance(reply, ProviderReply)
    first = ToolCall(id="x", name="f", arguments='{"a": 1}')
    assert (text, reply.tool_calls) == ("", (first, ToolCall(id="y", name="g", arguments="{}")))
    assert reply.finish_reason == "tool_calls"


@pytest.mark.parametrize("provider", ["openai", "mistral"])
def test_usage_may_come_with_the_last_choice_or_after_it(provider: str) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    with_choice = assemble(provider, delta(content="x"), {**delta("stop"), "usage": usage})
    after = assemble(
        provider, delta(content="x"), delta("stop"), {"choices": [], "usage": usage}, "[DONE]"
    )
    assert with_choice == after
    assert isinstance(after[1], ProviderReply)
    assert after[1].usage is not None


def test_mistrals_chunks_are_joined() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hi"}]
    text, reply = assemble("mistral", delta(content=parts), delta("stop", content="."))
    assert isinstance(reply, ProviderReply)
    assert text == reply.content == "Hi."


def test_a_streamed_refusal_is_one() -> None:
    _, failure = assemble("openai", delta(refusal="I can"), delta(refusal="not."), delta("stop"))
    assert isinstance(failure, Failure)
    assert failure.code == "refused"


ERRORS = {
    "openai": {"error": {"code": 429, "message": "x"}},
    "mistral": {"object": "error", "message": "x", "type": "rate_limited"},
    "deepseek": {"error": {"code": 429, "message": "x"}},
    "anthropic": {"type": "error", "error": {"type": "rate_limit_error", "message": "x"}},
    "gemini": {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "x"}},
}
BEGUN: dict[str, list[Any]] = {
    "openai": [delta(role="assistant"), delta(content="Hi")],
    "mistral": [delta(content="Hi")],
    "deepseek": [delta(role="assistant"), delta(content="Hi")],
    "anthropic": [
        {"type": "message_start", "message": {"usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    ],
    "gemini": [{"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]}],
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_error_before_the_answer_costs_nothing_and_one_within_it_does(provider: str) -> None:
    _, before = assemble(provider, *BEGUN[provider][:-2], ERRORS[provider])
    text, within = assemble(provider, *BEGUN[provider], ERRORS[provider], *BEGUN[provider])
    assert isinstance(before, Failure)
    assert (before.code, before.ambiguous, before.billed) == ("rate_limited", False, False)
    assert isinstance(within, Failure)
    assert (within.code, within.ambiguous, within.billed) == ("truncated", True, True)
    assert text == "Hi"


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("rest", [[], ['{"cut'], ["[]"]], ids=repr)
def test_what_has_no_end_is_truncated(provider: str, rest: list[str]) -> None:
    for beginning in ([], BEGUN[provider]):
        _, failure = assemble(provider, *beginning, *rest)
        assert isinstance(failure, Failure)
        assert (failure.code, failure.ambiguous, failure.billed) == ("truncated", True, True)


ENDED: dict[str, list[Any]] = {
    "openai": [delta("stop")],
    "mistral": [delta("stop")],
    "deepseek": [delta("stop")],
    "anthropic": [
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop"},
    ],
    "gemini": [{"candidates": [{"finishReason": "STOP"}]}],
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_event_that_cannot_be_read_may_have_held_a_piece_of_the_answer(provider: str) -> None:
    _, reply = assemble(provider, *BEGUN[provider], *ENDED[provider])
    _, failure = assemble(provider, *BEGUN[provider], '{"cut', *ENDED[provider])
    assert isinstance(reply, ProviderReply)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.ambiguous) == ("truncated", True)


def test_geminis_thoughts_are_paid_for() -> None:
    counts = {
        "promptTokenCount": 9,
        "cachedContentTokenCount": 4,
        "candidatesTokenCount": 3,
        "thoughtsTokenCount": 5,
    }
    last = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": counts}
    _, reply = assemble("gemini", *BEGUN["gemini"], last)
    assert isinstance(reply, ProviderReply)
    assert reply.usage == Usage(
        prompt_tokens=9, completion_tokens=8, cached_tokens=4, reasoning_tokens=5
    )


def test_geminis_thoughts_are_not_told() -> None:
    thought_part = {"text": "hm", "thought": True}
    last = {"candidates": [{"content": {"parts": [{"text": "!"}]}, "finishReason": "STOP"}]}
    text, reply = assemble(
        "gemini", {"candidates": [{"content": {"parts": [thought_part, {"text": "Hi"}]}}]}, last
    )
    assert isinstance(reply, ProviderReply)
    assert text == reply.content == "Hi!"


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT"])
def test_gemini_withholds(reason: str) -> None:
    _, failure = assemble("gemini", {"candidates": [{"finishReason": reason}]})
    assert isinstance(failure, Failure)
    assert failure.code == "refused"
    _, blocked_prompt = assemble("gemini", {"promptFeedback": {"blockReason": reason}})
    assert isinstance(blocked_prompt, Failure)
    assert blocked_prompt.code == "refused"


def test_gemini_may_write_a_call_that_is_none() -> None:
    _, failure = assemble("gemini", {"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL"}]})
    assert isinstance(failure, Failure)
    assert (failure.code, failure.ambiguous) == ("truncated", True)


def test_anthropics_cut_arguments_are_kept_as_they_are() -> None:
    block = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    _, reply = assemble(
        "anthropic",
        BEGUN["anthropic"][0],
        {"type": "content_block_start", "index": 0, "content_block": block},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": '{"a": '},
        },
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens"},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    )
    assert isinstance(reply, ProviderReply)
    assert reply.tool_calls == (ToolCall(id="t1", name="f", arguments='{"a": '),)
    assert reply.finish_reason == "length"


KEYS = [
    *(
        "error",
        "object",
        "type",
        "choices",
        "delta",
        "content",
        "finish_reason",
        "tool_calls",
        "function",
        "index",
    ),
    *(
        "name",
        "arguments",
        "message",
        "content_block",
        "text",
        "partial_json",
        "input",
        "stop_reason",
        "usage",
    ),
    *(
        "candidates",
        "parts",
        "finishReason",
        "functionCall",
        "promptFeedback",
        "usageMetadata",
        "id",
        "details",
    ),
]
LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3)
WORDS = st.sampled_from(
    ["message_start", "content_block_start", "content_block_delta", "message_delta", "tool_use"]
)
JSON = st.recursive(
    LEAVES | WORDS,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("provider", PROVIDERS)
@given(chunks=st.lists(JSON, max_size=4))
def test_any_events_come_to_something(provider: str, chunks: list[Any]) -> None:
    text, result = assemble(provider, *BEGUN[provider], *chunks)
    assert isinstance(result, ProviderReply | Failure)
    if isinstance(result, ProviderReply):
        assert (result.content or "").startswith(text)
