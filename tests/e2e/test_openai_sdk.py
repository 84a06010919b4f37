"""OpenAI's own SDK, unchanged but for its `base_url`, against a running stack."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from fusewire import ids
from fusewire.testing.model_script import Fault, Script, ScriptedCall
from fusewire.testing.served import RunningStack, code_of

MODEL = "openrouter/fusion"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why?"}]
FUSED = {"a": 1, "b": 1, "c": 1, "j": 2}
"""Calls of one fusion: three members, and the judge in both orders."""


@pytest.fixture(params=["/v1", "/api/v1"])
def client(
    request: pytest.FixtureRequest, served: RunningStack, checked: httpx2.Client
) -> Iterator[OpenAI]:
    served.script(Script())
    with OpenAI(
        base_url=served.url + request.param, api_key="sk-any", http_client=checked
    ) as client:
        yield client


@pytest.fixture
def patient(served: RunningStack) -> Iterator[OpenAI]:
    served.script(Script())
    with OpenAI(base_url=f"{served.url}/v1", api_key="sk-any") as client:
        yield client


def test_models(client: OpenAI) -> None:
    listed = client.models.list().data

    assert [model.id for model in listed[:3]] == [MODEL, "fusewire/default", "fusewire/closed"]
    assert client.models.retrieve(MODEL).id == MODEL
    assert client.models.retrieve("fusewire/default").owned_by == "fusewire"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gtp")
    assert (code_of(caught.value.body), caught.value.param) == ("model_not_found", "model")


def test_chat(client: OpenAI, served: RunningStack) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert reply.choices[0].message.content == "a on d15d8a995a: Why?"
    assert (reply.choices[0].finish_reason, reply.model) == ("stop", MODEL)
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    fusion = (reply.model_extra or {})["fusion"]
    assert (fusion["outcome_status"], fusion["winner"], len(fusion["responses"])) == (
        "selected",
        "a",
        3,
    )
    assert reply.id == f"chatcmpl-{fusion['outcome_id']}"
    assert reply._request_id is not None
    assert served.calls() == FUSED


def test_a_stream(client: OpenAI) -> None:
    options: Any = {"include_usage": True}
    with client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "a on d15d8a995a: Why?"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0


def test_the_stream_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()

    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].message.content == "a on d15d8a995a: Why?"


def test_tools(client: OpenAI, served: RunningStack) -> None:
    served.script(Script.of(calls=(ScriptedCall(name="weather", arguments={"city": "Oslo"}),)))
    tools: Any = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]

    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=tools)
    (call,) = reply.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Oslo"},
    )
    assert reply.choices[0].finish_reason == "tool_calls"

    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=tools) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert streamed.type == "function"
    assert streamed.function.name == "weather"

    after: Any = [
        *MESSAGES,
        reply.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "Rain."},
    ]
    reply = client.chat.completions.create(model=MODEL, messages=after, tools=tools)
    assert reply.choices[0].message.content


def test_what_one_model_says_beside_its_calls_is_told_while_it_writes(
    client: OpenAI, served: RunningStack
) -> None:
    said = "I look at the weather first, then at the clock."
    weather = ScriptedCall(name="weather", arguments={"city": "Oslo"})
    served.script(Script.of(calls=(weather,), beside=said, token_ms=20))
    tools: Any = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]
    with client.chat.completions.stream(model="a", messages=MESSAGES, tools=tools) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        message = stream.get_final_completion().choices[0].message
    whole = (
        client.chat.completions.create(model="a", messages=MESSAGES, tools=tools).choices[0].message
    )

    # As it comes, and not in one piece at the end.
    assert len(pieces) > 3
    assert ("".join(pieces), message.content, whole.content) == (said, said, said)
    for one in (message, whole):
        (call,) = one.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments) == {"city": "Oslo"}


class Place(BaseModel):
    city: Literal["Oslo"]
    height_m: int


def test_a_parsed_answer(client: OpenAI) -> None:
    reply = client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Place)

    found = reply.choices[0].message.parsed
    assert isinstance(found, Place)
    assert found.city == "Oslo"


def test_a_fusion_by_plugin(client: OpenAI, served: RunningStack) -> None:
    plugin = {"id": "fusion", "analysis_models": ["a", "b"], "model": "j"}

    reply = client.chat.completions.create(
        model="c", messages=MESSAGES, extra_body={"plugins": [plugin]}
    )

    assert [m["model"] for m in (reply.model_extra or {})["fusion"]["members"]] == ["a", "b"]
    assert set(served.calls()) == {"a", "b", "j"}


def test_a_fusion_by_tool(client: OpenAI, served: RunningStack) -> None:
    tools: Any = [{"type": "openrouter:fusion", "parameters": {"analysis_models": ["b", "c"]}}]

    reply = client.chat.completions.create(model="j", messages=MESSAGES, tools=tools)

    assert [m["model"] for m in (reply.model_extra or {})["fusion"]["members"]] == ["b", "c"]
    assert set(served.calls()) == {"b", "c", "j"}


def test_tools_together_with_a_schema(client: OpenAI, served: RunningStack) -> None:
    """First the call, then the answer in the schema: as agents' frameworks ask."""
    served.script(Script.of(calls=(ScriptedCall(name="weather", arguments={"city": "Oslo"}),)))
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
    asked: Any = {
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": schema}}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": schema},
        },
    }
    first = (
        client.chat.completions.create(model=MODEL, messages=MESSAGES, **asked).choices[0].message
    )
    assert first.tool_calls
    told: Any = [*MESSAGES, first.model_dump(exclude_none=True)]
    told += [
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny."} for call in first.tool_calls
    ]
    second = client.chat.completions.create(model=MODEL, messages=told, **asked).choices[0].message
    assert json.loads(second.content or "") == {"city": "Oslo"}


def test_errors_have_their_types(client: OpenAI, served: RunningStack) -> None:
    with pytest.raises(openai.NotFoundError) as absent:
        client.chat.completions.create(model="fusewire/none", messages=MESSAGES)
    assert (code_of(absent.value.body), absent.value.param) == ("unknown_pool", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, n=2)
    assert (code_of(bad.value.body), bad.value.param) == ("unsupported_parameter", "n")
    assert bad.value.request_id is not None
    assert served.calls() == {}


def test_what_failed_is_not_tried_again(client: OpenAI, served: RunningStack) -> None:
    limited = Fault(kind="rate_limited", headers={"retry-after": "3600"})
    served.script(Script.of(*[limited] * 9))
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert code_of(caught.value.body) == "rate_limited"
    assert served.calls() == {"a": 1, "b": 1, "c": 1}

    served.script(Script.of(*[Fault(kind="bad_request")] * 9))
    with pytest.raises(openai.APIError) as broken:
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert code_of(broken.value.body) == "bad_request"
    assert served.calls() == {"a": 1, "b": 1, "c": 1}

    # A server's fault, which the client would repeat if it were told as one.
    served.script(Script.of(*[Fault(kind="server_error")] * 99))
    with pytest.raises(openai.APIStatusError) as failed:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert (failed.value.status_code, code_of(failed.value.body)) == (424, "all_panels_failed")
    assert failed.value.response.headers["x-should-retry"] == "false"


def test_an_error_within_a_stream(patient: OpenAI, served: RunningStack) -> None:
    served.script(Script.of(latency_ms=800))
    fusion_id = ids.fusion_id("default", None, "key-mid-stream")

    def write() -> None:
        while not served.calls():
            time.sleep(0.02)
        served.write(fusion_id, "Something that will not be chosen")

    writing = threading.Thread(target=write)
    writing.start()
    heard: list[Any] = []
    headers = {"Idempotency-Key": "mid-stream"}
    stream = patient.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_headers=headers
    )
    with stream, pytest.raises(openai.APIError) as caught:
        heard.extend(stream)
    writing.join()

    assert heard[0].choices[0].delta.content == "Something that will not be chosen"
    assert caught.value.code == "stream_superseded"
    assert not isinstance(caught.value, openai.APIStatusError)


@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_s_own_retry_pays_nothing_twice(served: RunningStack, stream: bool) -> None:
    served.script(Script())
    with served.cutting(replies=1) as url, OpenAI(base_url=f"{url}/v1", api_key="sk-any") as client:
        if stream:
            with client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True
            ) as chunks:
                text = "".join(c.choices[0].delta.content or "" for c in chunks)
        else:
            reply = client.chat.completions.create(model=MODEL, messages=MESSAGES)
            text = reply.choices[0].message.content or ""

    assert text == "a on d15d8a995a: Why?"
    assert served.calls() == FUSED


def test_a_retry_after_a_timeout_waits_for_the_same_run(
    patient: OpenAI, served: RunningStack
) -> None:
    served.script(Script.of(latency_ms=600))

    hasty = patient.with_options(timeout=0.5, max_retries=20)
    reply = hasty.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert reply.choices[0].message.content
    assert served.calls() == FUSED
