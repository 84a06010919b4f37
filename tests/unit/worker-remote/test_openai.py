import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import CallKind, Message, Sampling, Task, Tool, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire.testing.factories import make_task
from fusewire_worker_remote.dialect import Dialect
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import HttpResponse, ProviderReply
from fusewire_worker_remote.providers.openai import OpenAI

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
MODEL = RemoteModel(
    kind="remote", base_url="https://models.example/v1/", model="big-1", api_key_env="EXAMPLE_KEY"
)


def task(**sampling: Any) -> Task:
    return Task(
        task_id="f1-0-a",
        fusion_id="f1",
        round=0,
        call="a",
        kind="answer",
        model="big",
        tier="remote",
        tenant="t",
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="Où est Köln? 🙂"),
        ),
        sampling=Sampling(**sampling),
        residency="any",
        priority="normal",
        deadline_at=NOW + timedelta(minutes=1),
    )


def completion(**changes: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Here."},
        "finish_reason": "stop",
    }
    usage = {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    return {"choices": [{**choice, **changes}], "usage": usage}


def read(body: object, status: int = 200) -> ProviderReply | Failure:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OpenAI().read(HttpResponse(status, {}, raw), NOW)


def test_a_plain_task_asks_for_the_messages_and_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXAMPLE_KEY", "sk-1")
    request = OpenAI().request(task(), MODEL)
    assert request.url == "https://models.example/v1/chat/completions"
    assert request.headers["Authorization"] == "Bearer sk-1"
    assert request.headers["Idempotency-Key"] == "f1-0-a"
    assert json.loads(request.body) == {
        "model": "big-1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Où est Köln? 🙂"},
        ],
    }
    assert "sk-1" not in repr(request)
    assert "Köln" not in repr(request)


def test_sampling_is_mapped() -> None:
    schema = {
        "type": "object",
        "properties": {"best": {"enum": ["A", "B"]}},
        "required": ["best"],
        "additionalProperties": False,
    }
    request_task = task(
        max_tokens=9, temperature=0.0, top_p=0.5, seed=7, stop=("END",), response_schema=schema
    )
    body = json.loads(OpenAI().request(request_task, MODEL).body)
    assert {k: v for k, v in body.items() if k not in {"model", "messages"}} == {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["END"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    }


@pytest.mark.parametrize(
    "schema", [{"type": "object", "properties": {"a": {}}}, {"anyOf": [{"type": "object"}]}]
)
def test_a_schema_that_strict_mode_refuses_is_asked_for_without_it(schema: dict[str, Any]) -> None:
    body = json.loads(OpenAI().request(task(response_schema=schema), MODEL).body)
    assert body["response_format"]["json_schema"] == {
        "name": "answer",
        "schema": schema,
        "strict": False,
    }


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = (Tool(name="weather", description="Now.", parameters=SCHEMA), Tool(name="clock"))


@pytest.mark.parametrize(
    ("choice", "wire"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ("clock", {"type": "function", "function": {"name": "clock"}}),
    ],
)
def test_tools_are_offered(choice: str, wire: object) -> None:
    request_task = task().model_copy(update={"tools": TOOLS, "tool_choice": choice})
    body = json.loads(OpenAI().request(request_task, MODEL).body)
    assert {k: v for k, v in body.items() if k not in {"model", "messages"}} == {
        "tools": [
            {
                "type": "function",
                "function": {"name": "weather", "description": "Now.", "parameters": SCHEMA},
            },
            {"type": "function", "function": {"name": "clock"}},
        ],
        "tool_choice": wire,
    }


def test_calls_and_their_results_are_sent_on() -> None:
    call = ToolCall(id="abc123XYZ", name="weather", arguments='{"city":"Köln"}')
    turns = (
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="21 °C", tool_call_id="abc123XYZ"),
        Message(role="assistant", content="And now?", tool_calls=(call,)),
    )
    body = json.loads(OpenAI().request(task().model_copy(update={"messages": turns}), MODEL).body)
    function = {"name": "weather", "arguments": '{"city":"Köln"}'}
    calls = [{"id": "abc123XYZ", "type": "function", "function": function}]
    assert body["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "21 °C", "tool_call_id": "abc123XYZ"},
        {"role": "assistant", "content": "And now?", "tool_calls": calls},
    ]


def test_the_models_own_limit_applies_where_the_task_has_none() -> None:
    limited_model = MODEL.model_copy(update={"max_tokens": 77})
    assert json.loads(OpenAI().request(task(), limited_model).body)["max_tokens"] == 77
    assert json.loads(OpenAI().request(task(max_tokens=5), limited_model).body)["max_tokens"] == 5


def test_openai_itself_is_given_the_limit_by_its_newer_name() -> None:
    own = MODEL.model_copy(update={"base_url": "https://api.openai.com/v1"})
    body = json.loads(OpenAI().request(task(max_tokens=5), own).body)
    assert body["max_completion_tokens"] == 5
    assert "max_tokens" not in body


def test_the_key_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXAMPLE_KEY", raising=False)
    assert "Authorization" not in OpenAI().request(task(), MODEL).headers
    monkeypatch.setenv("EXAMPLE_KEY", "sk-2")
    assert OpenAI().request(task(), MODEL).headers["Authorization"] == "Bearer sk-2"


def test_an_answer_is_read() -> None:
    usage = Usage(prompt_tokens=11, completion_tokens=3, cached_tokens=4)
    assert read(completion()) == ProviderReply("Here.", "stop", usage, provider_reason="stop")


def test_an_answer_of_parts_is_joined() -> None:
    parts = [
        {"type": "thinking", "thinking": "…"},
        {"type": "text", "text": "He"},
        {"type": "text", "text": "re."},
    ]
    reply = read(completion(message={"content": parts}))
    assert isinstance(reply, ProviderReply)
    assert reply.content == "Here."


def test_lone_surrogates_do_not_reach_the_candidate() -> None:
    reply = read(json.dumps(completion(message={"content": "a\ud800b"})).encode())
    assert isinstance(reply, ProviderReply)
    assert reply.content == "a?b"


def call(name: object = "weather", arguments: object = "{}", id_: object = "c1") -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


CALLED = ToolCall(id="c1", name="weather", arguments="{}")


@pytest.mark.parametrize(
    ("content", "calls", "finish", "read_content", "read_calls", "reason"),
    [
        (None, [call()], "tool_calls", None, (CALLED,), "tool_calls"),
        ("", [call()], "stop", None, (CALLED,), "tool_calls"),
        ("Let me look.", [call()], "tool_calls", "Let me look.", (CALLED,), "tool_calls"),
        (None, [call()], "length", None, (CALLED,), "length"),
        (
            None,
            [call(), call("clock", id_="c2")],
            "tool_calls",
            None,
            (CALLED, ToolCall(id="c2", name="clock", arguments="{}")),
            "tool_calls",
        ),
        (
            None,
            [call(id_=None)],
            "tool_calls",
            None,
            (ToolCall(id="call_0", name="weather", arguments="{}"),),
            "tool_calls",
        ),
        (None, [call(arguments="")], "tool_calls", None, (CALLED,), "tool_calls"),
        (
            None,
            [call(arguments='{"x')],
            "tool_calls",
            None,
            (ToolCall(id="c1", name="weather", arguments='{"x'),),
            "tool_calls",
        ),
        (
            None,
            [call(arguments="\ud800")],
            "tool_calls",
            None,
            (ToolCall(id="c1", name="weather", arguments="?"),),
            "tool_calls",
        ),
        # What is no call is left out, and the rest is kept.
        (
            None,
            [call(None), call(""), None, {"id": "x"}, call()],
            "tool_calls",
            None,
            (CALLED,),
            "tool_calls",
        ),
        # Arguments as they come: missing, an object, text within text; ids that repeat.
        (
            None,
            [call(arguments=None), call(arguments={"a": 1}), call(arguments='"{\\"a\\": 1}"')],
            "tool_calls",
            None,
            (
                CALLED,
                ToolCall(id="c1_1", name="weather", arguments='{"a": 1}'),
                ToolCall(id="c1_2", name="weather", arguments='{"a": 1}'),
            ),
            "tool_calls",
        ),
        ("Here.", [call(None)], "tool_calls", "Here.", (), "stop"),
        ("Here.", {"not": "a list"}, "stop", "Here.", (), "stop"),
    ],
)
def test_tool_calls_are_read(
    content: str | None,
    calls: object,
    finish: str,
    read_content: str | None,
    read_calls: tuple[ToolCall, ...],
    reason: str,
) -> None:
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    reply = read(json.dumps(completion(message=message, finish_reason=finish)).encode())
    assert isinstance(reply, ProviderReply)
    assert (reply.content, reply.tool_calls, reply.finish_reason) == (
        read_content,
        read_calls,
        reason,
    )


def test_usage_that_is_absent_is_unknown_and_not_zero() -> None:
    reply = read({"choices": completion()["choices"]})
    assert isinstance(reply, ProviderReply)
    assert reply.usage is None


@pytest.mark.parametrize("finish", ["length", "max_tokens"])
def test_a_cut_answer_is_accepted_and_flagged(finish: str) -> None:
    reply = read(completion(finish_reason=finish))
    assert isinstance(reply, ProviderReply)
    assert reply.finish_reason == "length"


@pytest.mark.parametrize(
    ("body", "code", "is_ambiguous", "is_billed"),
    [
        (completion(finish_reason="content_filter"), "refused", False, True),
        (completion(message={"content": None, "refusal": "I cannot."}), "refused", False, True),
        (completion(finish_reason="error"), "truncated", True, True),
        (completion(error={"code": 502}), "truncated", True, True),
        (completion(message={"content": ""}), "truncated", False, True),
        (completion(message={"content": ""}, finish_reason="length"), "truncated", False, True),
        (completion(message=None), "truncated", False, True),
        (completion(message={"content": None, "tool_calls": []}), "truncated", False, True),
        (
            completion(message={"tool_calls": [call(None)]}, finish_reason="tool_calls"),
            "truncated",
            False,
            True,
        ),
        (completion(finish_reason="network_error"), "truncated", True, True),
        (
            completion(error={"code": 403, "message": "flagged by moderation"}),
            "refused",
            False,
            True,
        ),
        ({"choices": []}, "truncated", True, True),
        # Some other service answers at that address.
        ({}, "bad_request", False, False),
        (b"<!doctype html><title>Hi</title>", "bad_request", False, False),
        ([], "truncated", True, True),
        (b"", "truncated", True, True),
        (b'{"choices": [{"mess', "truncated", True, True),
        (b"\xff\xfe\xff", "truncated", True, True),
        (b"[" * 200_000, "truncated", True, True),
        ({"error": {"code": 503, "message": "x"}}, "server_error", False, False),
    ],
)
def test_what_is_no_answer_is_a_failure(
    body: object, code: str, is_ambiguous: bool, is_billed: bool
) -> None:
    failure = read(body)
    assert isinstance(failure, Failure)
    assert (failure.code, failure.ambiguous, failure.billed) == (code, is_ambiguous, is_billed)


def test_a_withheld_answer_keeps_its_usage() -> None:
    failure = read(completion(finish_reason="content_filter"))
    assert isinstance(failure, Failure)
    assert failure.usage == Usage(prompt_tokens=11, completion_tokens=3, cached_tokens=4)


TOOL_KEYS = ["tool_calls", "function", "name", "arguments"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "error",
                    "choices",
                    "message",
                    "content",
                    "finish_reason",
                    "usage",
                    "prompt_tokens",
                    *TOOL_KEYS,
                ]
            ),
            inner,
        )
    ),
    max_leaves=12,
)


@given(calls=st.lists(JSON, max_size=3))
def test_any_tool_calls_are_read(calls: object) -> None:
    assert isinstance(read(completion(message={"tool_calls": calls})), ProviderReply | Failure)


@given(body=JSON)
def test_any_json_is_read(body: object) -> None:
    assert isinstance(read(body), ProviderReply | Failure)


@pytest.mark.parametrize(
    ("base_url", "kind", "is_thinking", "is_low"),
    [
        ("https://api.openai.com/v1", "verdict", True, True),
        ("https://openrouter.ai/api/v1", "verdict", True, True),
        ("https://api.openai.com/v1", "verdict", False, False),
        ("https://api.openai.com/v1", "answer", True, False),
        ("http://models.example/v1", "verdict", True, False),
    ],
)
def test_a_model_that_thinks_thinks_little_over_a_verdict(
    base_url: str, kind: CallKind, is_thinking: bool, is_low: bool
) -> None:
    model = RemoteModel(kind="remote", base_url=base_url, model="m")
    request = OpenAI().request(make_task(kind=kind), model, Dialect(is_thinking=is_thinking))

    assert request.payload.get("reasoning_effort") == ("low" if is_low else None)


def test_the_configuration_decides_how_much_is_thought() -> None:
    model = RemoteModel(
        kind="remote",
        base_url="https://api.openai.com/v1",
        model="m",
        params={"reasoning_effort": "high"},
    )
    request = OpenAI().request(make_task(kind="verdict"), model, Dialect(is_thinking=True))

    assert request.payload["reasoning_effort"] == "high"
