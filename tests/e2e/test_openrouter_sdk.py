"""OpenRouter's own SDK, unchanged but for its `server_url`, against a running stack."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openrouter import OpenRouter, components, errors

from fusewire.testing.model_script import Fault, Script, ScriptedCall
from fusewire.testing.served import RunningStack

MODEL = "openrouter/fusion"
MESSAGES: list[components.ChatMessagesTypedDict] = [{"role": "user", "content": "Why?"}]
FUSED = {"a": 1, "b": 1, "c": 1, "j": 2}
"""Calls of one fusion: three members, and the judge in both orders."""
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}


@pytest.fixture
def client(served: RunningStack) -> Iterator[OpenRouter]:
    served.script(Script())
    with OpenRouter(api_key="sk-any", server_url=f"{served.url}/api/v1") as client:
        yield client


def test_models(client: OpenRouter) -> None:
    page = client.models.list()
    assert page is not None
    listed = page.result.data
    assert listed[0].id == MODEL
    assert client.models.count().data.count == len(listed)


def test_chat(client: OpenRouter, served: RunningStack) -> None:
    reply = client.chat.send(model=MODEL, messages=MESSAGES)

    assert reply.choices[0].message.content == "a on d15d8a995a: Why?"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens > 0
    assert served.calls() == FUSED


def test_a_stream_has_usage_and_cost_unasked(client: OpenRouter, served: RunningStack) -> None:
    with client.chat.send(model=MODEL, messages=MESSAGES, stream=True) as stream:
        heard = list(stream)

    text = "".join(chunk.choices[0].delta.content or "" for chunk in heard if chunk.choices)
    assert text == "a on d15d8a995a: Why?"
    assert heard[-1].usage is not None
    assert heard[-1].usage.total_tokens > 0
    assert served.calls() == FUSED


def test_its_ways_to_sample_and_to_name_models(client: OpenRouter, served: RunningStack) -> None:
    sampled: dict[str, Any] = {
        "top_k": 40,
        "min_p": 0.05,
        "frequency_penalty": 0.5,
        "repetition_penalty": 1.1,
    }
    reply = client.chat.send(model="b:nitro", messages=MESSAGES, seed=5, **sampled)
    assert reply.choices[0].message.content == "b on d15d8a995a: Why?"
    assert served.calls() == {"b": 1}
    with pytest.raises(errors.OpenRouterError) as caught:
        client.chat.send(model=f"{MODEL}@preset/mine", messages=MESSAGES)
    assert caught.value.status_code == 400
    assert "presets" in caught.value.body


def test_tools(client: OpenRouter, served: RunningStack) -> None:
    served.script(Script.of(calls=(ScriptedCall(name="weather", arguments={"city": "Oslo"}),)))
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
    reply = client.chat.send(model=MODEL, messages=MESSAGES, tools=tools)

    calls = reply.choices[0].message.tool_calls
    assert calls
    call = calls[0]
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


def test_an_answer_in_a_schema(client: OpenRouter) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}
    reply = client.chat.send(model=MODEL, messages=MESSAGES, response_format=form)
    assert json.loads(str(reply.choices[0].message.content)) == {"city": "Oslo"}


def test_errors_have_their_types(client: OpenRouter, served: RunningStack) -> None:
    with pytest.raises(errors.NotFoundResponseError) as absent:
        client.chat.send(model="gtp", messages=MESSAGES)
    assert absent.value.status_code == 404
    assert "nearest" in absent.value.message
    with pytest.raises(errors.BadRequestResponseError):
        client.chat.send(model=MODEL, messages=MESSAGES, logprobs=True)
    assert served.calls() == {}


def test_what_failed_is_not_bought_again(client: OpenRouter, served: RunningStack) -> None:
    """Its SDK repeats whatever has a status of 500 and more, for an hour."""
    served.script(Script.of(*[Fault(kind="server_error")] * 99))
    with pytest.raises(errors.OpenRouterError) as caught:
        client.chat.send(model=MODEL, messages=MESSAGES)
    assert caught.value.status_code == 424
    first = json.loads(caught.value.body)["error"]["metadata"]
    assert first["code"] == "all_panels_failed"
    assert len(first["fusion"]["failed_models"]) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_gives_up_and_repeats_buys_one_panel(
    served: RunningStack, stream: bool
) -> None:
    """As the SDK does after five seconds by default; here after less than the members take."""
    served.script(Script.of(latency_ms=1500))
    with OpenRouter(api_key="sk-any", server_url=f"{served.url}/api/v1", timeout_ms=500) as client:
        if stream:
            # A comment comes at once, and each piece within the client's patience.
            with (
                pytest.raises(Exception, match="timed out"),
                client.chat.send(model=MODEL, messages=MESSAGES, stream=True) as heard,
            ):
                list(heard)
            with client.chat.send(
                model=MODEL, messages=MESSAGES, stream=True, timeout_ms=60_000
            ) as heard:
                told = list(heard)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices)
        else:
            reply = client.chat.send(model=MODEL, messages=MESSAGES)
            assert reply.choices[0].message.content
    assert served.calls() == FUSED


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # its own, of fields that it reads
def test_a_generation_a_key_and_its_credits(client: OpenRouter) -> None:
    reply = client.chat.send(model=MODEL, messages=MESSAGES)
    made = client.generations.get_generation(id=reply.id).data
    assert (made.id, made.finish_reason, made.tokens_prompt) == (
        reply.id,
        "stop",
        reply.usage and reply.usage.prompt_tokens,
    )
    mine = client.api_keys.get_current_key_metadata().data
    assert (mine.label, mine.limit, mine.usage >= 0) == ("default", None, True)
    assert client.credits.get_credits().data.total_usage == mine.usage
    with pytest.raises(errors.NotFoundResponseError):
        client.generations.get_generation(id="chatcmpl-none")
