"""Lines of a batch's input: OpenAI's, Mistral's, Anthropic's and bare ones, and their faults."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import Image, Message, ToolCall
from fusewire_ingest.admission.admit import PoolRule, RefusedError
from fusewire_ingest.admission.model_names import ModelNames
from fusewire_ingest.openai.batch_line import BatchLine, read

LIMIT = 10_000
NAMES = ModelNames.of({"gpt": "vendor/gpt-5", "edge": None})
POOLS = {
    "default": PoolRule("merge", "any", 60, 86_400, NAMES),
    "small": PoolRule("best-of", "any", 60, 86_400, NAMES),
}
USER = {"role": "user", "content": "Why?"}
CHAT = {"model": "fusion", "messages": [USER]}
PNG = "data:image/png;base64,aGk="


def line(value: Any, **options: Any) -> BatchLine:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return read(data, LIMIT, POOLS, "default", **options)


def openai(body: Any = CHAT, **more: Any) -> dict[str, Any]:
    return {
        "custom_id": "one",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
        **more,
    }


def anthropic(**params: Any) -> dict[str, Any]:
    return {
        "custom_id": "one",
        "params": {"model": "fusion", "max_tokens": 9, "messages": [USER], **params},
    }


def turns(batch_line: BatchLine) -> list[Message]:
    return [turn.message() for turn in batch_line.submission.messages or ()]


def refusal(value: Any) -> RefusedError:
    with pytest.raises(RefusedError) as exc_info:
        line(value)
    return exc_info.value


FORMS = [
    ("openai", openai()),
    ("openai", openai(url="/v1/fusions", body={"messages": [USER]})),
    ("mistral", {"custom_id": "one", "body": {"messages": [USER]}}),
    ("anthropic", anthropic()),
    ("bare", {"custom_id": "one", "messages": [USER]}),
    ("bare", {"custom_id": "one", "model": "fusion", "messages": [USER]}),
]


@pytest.mark.parametrize(("form", "value"), FORMS)
def test_every_form_asks_the_same(form: str, value: dict[str, Any]) -> None:
    batch_line = line(value)

    assert (batch_line.form, batch_line.custom_id) == (form, "one")
    assert turns(batch_line) == [Message(role="user", content="Why?")]
    assert (batch_line.submission.pool, batch_line.submission.custom_id) == ("default", None)
    assert (
        line({name: inner for name, inner in value.items() if name != "custom_id"}).custom_id
        is None
    )


@pytest.mark.parametrize(("form", "value"), FORMS)
def test_a_batchs_pool_and_mode_hold_for_every_form(form: str, value: dict[str, Any]) -> None:
    batch_line = line(value, pool="small", mode="debate").submission

    assert (batch_line.pool, batch_line.mode) == ("small", "debate"), form


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "Why?", "pool": "small", "mode": "merge"},
        openai({"messages": [USER], "pool": "small", "mode": "merge"}, url="/v1/fusions"),
        openai({**CHAT, "fusewire": {"pool": "small", "mode": "merge"}}),
        anthropic(fusewire={"pool": "small", "mode": "merge"}),
    ],
)
def test_a_lines_own_pool_and_mode_win(value: dict[str, Any]) -> None:
    batch_line = line(value, pool="default", mode="debate").submission

    assert (batch_line.pool, batch_line.mode) == ("small", "merge")


def test_a_batchs_pool_is_asked_in_place_of_models_that_are_not_ours() -> None:
    theirs = openai({**CHAT, "model": "gpt-of-somebody"})

    assert line(theirs, pool="small").submission.pool == "small"
    assert refusal(theirs).param == "body.model"
    assert line(openai({**CHAT, "model": "edge"})).submission.members == ("edge",)


def test_what_is_not_done_is_told() -> None:
    assert len(line(openai({**CHAT, "reasoning_effort": "low"})).warnings) == 1
    assert len(line(anthropic(thinking={"type": "enabled", "budget_tokens": 1024})).warnings) == 1
    assert line(anthropic(thinking={"type": "disabled"})).warnings == ()


def test_anthropics_parameters() -> None:
    tool = {
        "name": "clock",
        "description": "Now.",
        "input_schema": {"type": "object"},
        "cache_control": {},
    }
    batch_line = line(
        anthropic(
            system=[
                {"type": "text", "text": "Be "},
                {"type": "text", "text": "brief.", "cache_control": {}},
            ],
            stop_sequences=["END"],
            temperature=0.5,
            top_p=0.9,
            tools=[tool],
            tool_choice={"type": "tool", "name": "clock"},
            metadata={"user_id": "u"},
            stream=False,
        )
    )
    submission = batch_line.submission

    assert turns(batch_line)[0] == Message(role="system", content="Be brief.")
    assert (submission.max_tokens, submission.temperature, submission.top_p, submission.stop) == (
        9,
        0.5,
        0.9,
        ("END",),
    )
    assert (submission.tools[0].function.name, submission.tools[0].function.description) == (
        "clock",
        "Now.",
    )
    assert (submission.tools[0].function.parameters, submission.tool_choice) == (
        {"type": "object"},
        "clock",
    )
    assert turns(line(anthropic(system="Brief.")))[0].content == "Brief."


@pytest.mark.parametrize(
    ("theirs", "ours"), [("auto", "auto"), ("any", "required"), ("none", "none")]
)
def test_anthropics_choices(theirs: str, ours: str) -> None:
    value = anthropic(tools=[{"name": "clock", "input_schema": {}}], tool_choice={"type": theirs})
    assert line(value).submission.tool_choice == ours


def test_anthropics_blocks() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "See "}, {"type": "image", "source": source}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "c1", "name": "clock", "input": {"zone": "Zürich"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c1",
                    "content": [{"type": "text", "text": "noon"}],
                },
                {"type": "text", "text": "And?"},
                {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            ],
        },
    ]
    assert turns(line(anthropic(messages=messages))) == [
        Message(role="user", content="See ", images=(Image(url=PNG, at=4),)),
        Message(
            role="assistant",
            content="Let me look.",
            tool_calls=(ToolCall(id="c1", name="clock", arguments='{"zone": "Zürich"}'),),
        ),
        Message(role="tool", content="noon", tool_call_id="c1"),
        Message(
            role="user", content="And?", images=(Image(url="https://example.org/a.png", at=4),)
        ),
    ]


REFUSED: list[tuple[Any, str, str | None, str]] = [
    # line, code, param, part of the message
    (b'{"prompt": "a" "b"}', "invalid_json", None, "column 16"),
    (b'{"prompt": NaN}', "invalid_json", None, "NaN"),
    (b'{"prompt": "\\ud800"}', "invalid_json", None, "surrogate"),
    (b'{"prompt": "\\u0000"}', "invalid_request", None, "NUL"),
    (b'{"prompt": "\xff"}', "invalid_json", None, "byte 13"),
    (b'\xef\xbb\xbf{"prompt": "x"}', "invalid_json", None, "byte order mark"),
    (b'{"prompt": "x", "prompt": "y"}', "invalid_json", None, "twice"),
    (
        {"body": {"messages": [{**USER, "content": [[[0]]]}]}},
        "invalid_request",
        "body.messages.0.content.0",
        "text",
    ),
    ({}, "invalid_request", "messages", "either"),
    ({"prompt": "x" * LIMIT}, "prompt_too_large", None, "limit is 10000"),
    ({"prompt": "x", "custom_id": 5}, "invalid_request", "custom_id", "a text of 1 to 256"),
    ({"prompt": "x", "custom_id": ""}, "invalid_request", "custom_id", "1 to 256"),
    ({"prompt": "x", "custom_id": "i" * 257}, "invalid_request", "custom_id", "1 to 256"),
    ({"prompt": "x", "batch_id": "b"}, "invalid_request", "batch_id", "remove it"),
    ({"prompt": "x", "pool": "smal"}, "unknown_pool", "pool", "did you mean 'small'?"),
    (
        {"prompt": "x", "temprature": 1},
        "invalid_request",
        "temprature",
        "did you mean 'temperature'",
    ),
    ({"model": "fusion", "messages": [USER], "n": 2}, "unsupported_parameter", "n", "n times"),
    (openai(method="GET"), "invalid_request", "method", "POST"),
    (openai(url="/v1/embeddings"), "invalid_request", "url", "/v1/fusions or /v1/responses"),
    (openai(url=["/v1/embeddings"]), "invalid_request", "url", "/v1/fusions or /v1/responses"),
    (openai(customid="x"), "invalid_request", "customid", "did you mean 'custom_id'?"),
    (openai(body=None), "invalid_request", "body", "an object"),
    (openai({**CHAT, "stream": True}), "invalid_request", "body.stream", "remove it"),
    (
        openai({**CHAT, "max_tokens": 0}),
        "invalid_request",
        "body.max_tokens",
        "'body.max_tokens': ",
    ),
    (openai({**CHAT, "n": 2}), "unsupported_parameter", "body.n", "'body.n' is not supported"),
    (
        openai({**CHAT, "messages": [{"role": "x"}]}),
        "invalid_request",
        "body.messages.0.role",
        "developer",
    ),
    (
        openai({"prompt": "x", "custom_id": "y"}, url="/v1/fusions"),
        "invalid_request",
        "body.custom_id",
        "remove it",
    ),
    (
        openai({"prompt": "x", "pool": "y"}, url="/v1/fusions"),
        "unknown_pool",
        "body.pool",
        "known: default",
    ),
    ({"custom_id": "x", "body": {}}, "invalid_request", "body.messages", "either"),
    ({"custom_id": "x", "body": 5}, "invalid_request", "body", "an object"),
    ({"params": 5}, "invalid_request", "params", "an object"),
    (anthropic(model="nobody"), "model_not_found", "params.model", "'nobody'"),
    (anthropic(max_tokens=0), "invalid_request", "params.max_tokens", "'params.max_tokens'"),
    (anthropic(stop_sequences=["a"] * 5), "invalid_request", "params.stop_sequences", "at most 4"),
    (anthropic(stream=True), "invalid_request", "params.stream", "remove it"),
    (anthropic(top_k=5), "unsupported_parameter", "params.top_k", "remove it"),
    (anthropic(system=5), "invalid_request", "params.system", "a list"),
    (
        anthropic(system="x", messages=[USER, {**USER, "content": []}]),
        "invalid_request",
        "params.messages.1",
        "null",
    ),
    (
        anthropic(system=[{"type": "image"}]),
        "unsupported_parameter",
        "params.system.0",
        "only text",
    ),
    (anthropic(messages=5), "invalid_request", "params.messages", "a list"),
    (
        anthropic(messages=[{"role": "system", "content": "x"}]),
        "invalid_request",
        "params.messages.0.role",
        "user or",
    ),
    (
        anthropic(messages=[{"role": ["user"], "content": "x"}]),
        "invalid_request",
        "params.messages.0.role",
        "user or",
    ),
    (
        anthropic(messages=[{"role": "user", "content": 5}]),
        "invalid_request",
        "params.messages.0.content",
        "a list",
    ),
    (
        anthropic(messages=[{"role": "user", "content": [{"type": "document"}]}]),
        "unsupported_parameter",
        "params.messages.0.content.0",
        "no place",
    ),
    (
        anthropic(
            messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]
        ),
        "unsupported_parameter",
        "params.messages.0.content.0.source",
        "base64 or url",
    ),
    (
        anthropic(messages=[{"role": "user", "content": [{"type": "tool_use"}]}]),
        "unsupported_parameter",
        "params.messages.0.content.0",
        "no place",
    ),
    (
        anthropic(messages=[USER, {"role": "user", "content": [{"type": "text", "text": 5}]}]),
        "invalid_request",
        "params.messages.1.content.0.text",
        "a text",
    ),
    (
        anthropic(
            messages=[
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "x"}, {"type": "tool_result"}],
                }
            ],
        ),
        "invalid_request",
        "params.messages.0.content.1",
        "move it up",
    ),
    (
        anthropic(
            messages=[{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c9"}]}]
        ),
        "invalid_request",
        "params.messages",
        "no earlier message",
    ),
    (
        anthropic(tools=[{"type": "web_search_20250305"}]),
        "unsupported_tool",
        "params.tools.0",
        "remove it",
    ),
    (anthropic(tools=[{"name": "auto"}]), "invalid_request", "params.tools.0.name", "rename"),
    (anthropic(tool_choice={"type": "x"}), "invalid_request", "params.tool_choice.type", "any"),
]


@pytest.mark.parametrize(("value", "code", "param", "part"), REFUSED)
def test_it_is_refused(value: Any, code: str, param: str | None, part: str) -> None:
    batch_line = refusal(value)

    assert (batch_line.code, batch_line.param) == (code, param)
    assert part in batch_line.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
BLOCK = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["text", "image", "image_url", "tool_use", "tool_result", "thinking", "document"]
        )
    },
    optional=dict.fromkeys(
        ["text", "source", "input", "id", "name", "tool_use_id", "content", "image_url"], JSON
    ),
)
TURN = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "tool", "system"]),
        "content": JSON | st.lists(BLOCK, max_size=3),
    },
    optional={"tool_calls": JSON, "tool_call_id": JSON},
)
NAMES_OF = [
    "model",
    "system",
    "tools",
    "tool_choice",
    "stop_sequences",
    "thinking",
    "plugins",
    "fusewire",
    "stream",
]
BODY = JSON | st.fixed_dictionaries(
    {"messages": st.lists(TURN, max_size=3)}, optional=dict.fromkeys(NAMES_OF, JSON)
)
LINE = st.fixed_dictionaries(
    {},
    optional={
        "custom_id": JSON,
        "method": JSON | st.just("POST"),
        "url": JSON | st.sampled_from(["/v1/chat/completions", "/v1/fusions"]),
        "body": BODY,
        "params": BODY,
        "prompt": JSON,
        "messages": st.lists(TURN, max_size=3),
    },
)


def is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(RefusedError):
        assert line(value).submission.pool in POOLS


@given(LINE | JSON)
def test_no_line_raises_anything_but_a_refusal(value: Any) -> None:
    is_read_or_refused(value)


@given(st.binary(max_size=60), st.integers(0, 80))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes, at: int) -> None:
    good = json.dumps(
        {"prompt": "Why is the sky blue?", "custom_id": "one", "temperature": 0.5}
    ).encode()
    is_read_or_refused(data)
    is_read_or_refused(good[:at] + data + good[at:])
