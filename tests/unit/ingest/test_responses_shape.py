"""OpenAI's Responses API as lines of a batch: submissions, refusals and replies."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from fusewire.contracts import Image, Message, ToolCall
from fusewire.testing.factories import make_outcome
from fusewire_ingest.admission.admit import PoolRule, RefusedError
from fusewire_ingest.admission.model_names import ModelNames
from fusewire_ingest.openai.batch_line import BatchLine, read, url_of
from fusewire_ingest.openai.responses import response_of

URL = "/v1/responses"
POOLS = {
    "default": PoolRule(
        "merge", "any", 60, 86_400, ModelNames.of({"gpt": "vendor/gpt-5", "edge": None})
    )
}
CLOCK = {
    "type": "function",
    "name": "clock",
    "description": "Now.",
    "parameters": {"type": "object"},
    "strict": True,
}


def line(body: Any, endpoint: str = URL, **more: Any) -> BatchLine:
    line_object = {"custom_id": "one", "method": "POST", "url": URL, "body": body, **more}
    return read(json.dumps(line_object).encode(), 10_000, POOLS, "default", endpoint=endpoint)


def refusal(body: Any, endpoint: str = URL) -> RefusedError:
    with pytest.raises(RefusedError) as exc_info:
        line(body, endpoint)
    return exc_info.value


def turns(batch_line: BatchLine) -> list[Message]:
    return [turn.message() for turn in batch_line.submission.messages or ()]


def test_a_text_is_a_prompt() -> None:
    batch_line = line(
        {"model": "fusion", "input": "Why?", "instructions": "Be brief.", "max_output_tokens": 50}
    )

    assert (batch_line.form, batch_line.warnings, batch_line.submission.max_tokens) == (
        "openai",
        (),
        50,
    )
    assert turns(batch_line) == [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Why?"),
    ]


def test_a_conversation_with_calls_images_and_thought() -> None:
    batch_line = line(
        {
            "model": "fusion",
            "input": [
                {"role": "developer", "content": "Be brief."},
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "See "},
                        {
                            "type": "input_image",
                            "image_url": "https://example.org/a.png",
                            "detail": "auto",
                        },
                    ],
                },
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Let me look.", "annotations": []}],
                },
                {
                    "type": "function_call",
                    "call_id": "c1",
                    "name": "clock",
                    "arguments": '{"zone": "Zürich"}',
                },
                {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "noon"},
                {"type": "function_call_output", "call_id": "c2", "output": "night"},
            ],
        }
    )

    calls = (
        ToolCall(id="c1", name="clock", arguments='{"zone": "Zürich"}'),
        ToolCall(id="c2", name="clock", arguments="{}"),
    )
    assert turns(batch_line) == [
        Message(role="system", content="Be brief."),
        Message(
            role="user", content="See ", images=(Image(url="https://example.org/a.png", at=4),)
        ),
        Message(role="assistant", content="Let me look.", tool_calls=calls),
        Message(role="tool", content="noon", tool_call_id="c1"),
        Message(role="tool", content="night", tool_call_id="c2"),
    ]


def test_a_call_stands_without_words() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "noon"}
    first, second, _ = turns(
        line({"model": "fusion", "input": [{"role": "user", "content": "When?"}, call, output]})
    )

    assert (first.content, second.role, second.content) == ("When?", "assistant", "")
    assert [body.id for body in second.tool_calls] == ["c1"]


@pytest.mark.parametrize(
    ("choice", "chat_choice"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ("none", "none"),
        ({"type": "function", "name": "clock"}, "clock"),
    ],
)
def test_tools_and_their_choice(choice: Any, chat_choice: str) -> None:
    batch_line = line(
        {"model": "fusion", "input": "When?", "tools": [CLOCK], "tool_choice": choice}
    ).submission

    assert (batch_line.tools[0].function.name, batch_line.tools[0].function.parameters) == (
        "clock",
        {"type": "object"},
    )
    assert batch_line.tool_choice == chat_choice


def test_the_form_of_the_answer() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}

    assert (
        line({"model": "fusion", "input": "?", "text": {"format": form}}).submission.response_schema
        == schema
    )
    assert (
        line(
            {"model": "fusion", "input": "?", "text": {"format": {"type": "text"}}}
        ).submission.response_schema
        is None
    )
    batch_line = line(
        {
            "model": "fusion",
            "input": "?",
            "text": {"verbosity": "low"},
            "reasoning": {"effort": "low"},
        }
    )
    assert len(batch_line.warnings) == 2


@pytest.mark.parametrize(
    ("body", "code", "param", "part"),
    [
        ({}, "invalid_request", "body.input", "a list"),
        ({"input": 5}, "invalid_request", "body.input", "a list"),
        ({"input": [5]}, "invalid_request", "body.input.0", "an object"),
        (
            {"input": [{"role": "tool", "content": "x"}]},
            "invalid_request",
            "body.input.0.role",
            "developer",
        ),
        (
            {"input": [{"role": "user", "content": 5}]},
            "invalid_request",
            "body.input.0.content",
            "a list",
        ),
        (
            {"input": [{"role": "user", "content": [5]}]},
            "invalid_request",
            "body.input.0.content.0",
            "a part",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "unsupported_parameter",
            "body.input.0.content.0",
            "only text",
        ),
        (
            {"input": [{"type": "item_reference", "id": "x"}]},
            "unsupported_parameter",
            "body.input.0",
            "function_call",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c"}]},
            "invalid_request",
            "body.input.0.name",
            "a text",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            "invalid_request",
            "body.input",
            "no earlier message",
        ),
        (
            {"input": "x", "previous_response_id": "r"},
            "unsupported_parameter",
            "body.previous_response_id",
            "whole",
        ),
        ({"input": "x", "background": True}, "unsupported_parameter", "body.background", "whole"),
        (
            {"input": "x", "truncation": "auto"},
            "unsupported_parameter",
            "body.truncation",
            "shorten",
        ),
        ({"input": "x", "stream": True}, "invalid_request", "body.stream", "remove it"),
        (
            {"input": "x", "max_output_tokens": 0},
            "invalid_request",
            "body.max_output_tokens",
            "greater",
        ),
        (
            {"input": "x", "top_logprobs": 2},
            "unsupported_parameter",
            "body.top_logprobs",
            "remove it",
        ),
        ({"input": "x", "text": 5}, "invalid_request", "body.text", "an object"),
        (
            {"input": "x", "text": {"frmt": 1}},
            "unsupported_parameter",
            "body.text.frmt",
            "remove it",
        ),
        (
            {"input": "x", "text": {"format": {"type": "x"}}},
            "invalid_request",
            "body.text.format.type",
            "json_schema",
        ),
        (
            {"input": "x", "tools": [{"type": "web_search"}]},
            "unsupported_tool",
            "body.tools.0",
            "remove it",
        ),
        (
            {"input": "x", "tools": [{"type": "function"}]},
            "invalid_request",
            "body.tools.0.name",
            "",
        ),
        ({"input": "x", "tool_choice": "some"}, "invalid_request", "body.tool_choice", "required"),
        ({"input": "x", "model": "nobody"}, "model_not_found", "body.model", "'nobody'"),
    ],
)
def test_it_is_refused(body: dict[str, Any], code: str, param: str, part: str) -> None:
    refused_error = refusal({"model": "fusion", **body})

    assert (refused_error.code, refused_error.param) == (code, param), refused_error.message
    assert part in refused_error.message


def test_a_batch_has_one_shape_of_results() -> None:
    assert (
        "a batch of its own"
        in refusal({"model": "fusion", "input": "x"}, "/v1/chat/completions").message
    )
    chat = {"model": "fusion", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(RefusedError, match="a batch of its own"):
        line(chat, url="/v1/chat/completions")
    assert url_of(b'{"custom_id": "x", "url": "/v1/responses"}') == URL
    assert {url_of(data) for data in (b"{", b"[]", b'{"url": "/v1/fusions"}')} == {
        "/v1/chat/completions"
    }


@given(
    st.dictionaries(
        st.sampled_from(
            ["input", "tools", "text", "instructions", "tool_choice", "reasoning", "model"]
        ),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["type", "role", "content", "name", "format", "call_id"]), inner
                )
            ),
            max_leaves=10,
        ),
    )
)
def test_nothing_raises_anything_but_a_refusal(body: dict[str, Any]) -> None:
    with contextlib.suppress(RefusedError):
        line(body)


def test_an_outcome_is_a_response() -> None:
    outcome = make_outcome(tool_calls=(ToolCall(id="c1", name="clock", arguments="{}"),))
    body = response_of(json.loads(outcome.encode()), model="fusion", created=5)
    response = Response.model_validate(body, strict=True)

    assert (response.id, response.status, response.output_text) == (
        f"resp_{outcome.fusion_id}",
        "completed",
        "Paris.",
    )
    message, call = response.output
    assert (message.type, call.type) == ("message", "function_call")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert body["fusion"]["outcome_id"] == outcome.fusion_id
