"""A conversation with tools, through the pipeline, on the real SmolLM2-135M."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
from openai import AsyncOpenAI
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionToolUnionParam,
)

from fusewire.settings import Nats, Settings
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_worker_edge.pull import pull

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

CITY: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Lima", "Oslo"]}},
    "required": ["city"],
}
PARAMETERS: dict[str, dict[str, object]] = {"get_weather": CITY, "get_time": CITY}


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer) -> Settings:
    root = os.environ.get("FUSEWIRE_MODELS")
    folder = pull("smollm2-135m", Path(root) if root else None)
    return make_settings(
        nats=Nats(url=nats.url),
        models={"tiny": {"kind": "edge", "path": folder}},
        pool={"members": ["tiny"], "judge": None},
    )


@pytest.fixture
def tools() -> list[ChatCompletionToolUnionParam]:
    return [
        {"type": "function", "function": {"name": n, "parameters": p}}
        for n, p in PARAMETERS.items()
    ]


async def test_three_turns_with_parallel_calls(
    settings: Settings, running: Running, tools: list[ChatCompletionToolUnionParam]
) -> None:
    """With OpenAI's SDK as the client: what it is given, it can give back."""
    messages: list[ChatCompletionMessageParam] = [
        {
            "role": "user",
            "content": "What is the weather in Paris and in Lima? Call get_weather for each.",
        }
    ]
    services = ("judge", "worker-edge", "dispatcher", "ingest")
    async with (
        running(settings, *services) as client,
        AsyncOpenAI(base_url=f"{client.url}/v1", api_key="any") as sdk,
    ):

        async def ask(**chosen: Any) -> ChatCompletionMessage:
            reply: ChatCompletion = await sdk.chat.completions.create(
                model="fusewire/default",
                messages=messages,
                tools=tools,
                max_tokens=200,
                timeout=250,
                **chosen,
            )
            said = reply.choices[0]
            assert said.finish_reason == ("tool_calls" if said.message.tool_calls else "stop")
            for call in functions(said.message):
                jsonschema.validate(
                    json.loads(call.function.arguments), PARAMETERS[call.function.name]
                )
            return said.message

        first = await ask(tool_choice="required")
        calls = functions(first)
        assert len(calls) > 1

        messages.append(cast("ChatCompletionMessageParam", first.model_dump(exclude_none=True)))
        for i, call in enumerate(calls):
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": call.id,
                    "content": json.dumps({"celsius": 21 + i}),
                }
            )
        second = await ask(tool_choice="none")
        assert second.content
        assert not second.tool_calls

        messages.append(cast("ChatCompletionMessageParam", second.model_dump(exclude_none=True)))
        messages.append({"role": "user", "content": "And what time is it in Oslo?"})
        named = {"type": "function", "function": {"name": "get_time"}}
        third = await ask(tool_choice=named, parallel_tool_calls=False)
        assert [call.function.name for call in functions(third)] == ["get_time"]


def functions(message: ChatCompletionMessage) -> list[ChatCompletionMessageFunctionToolCall]:
    found = message.tool_calls or []
    assert all(call.type == "function" for call in found)
    return [call for call in found if call.type == "function"]


async def test_a_conversation_that_lacks_a_result_fails_with_the_reason(
    settings: Settings, running: Running, tools: list[ChatCompletionToolUnionParam]
) -> None:
    async with running(settings, "judge", "worker-edge", "dispatcher", "ingest") as client:
        call = {"id": "abc123def", "name": "get_time", "arguments": '{"city": "Oslo"}'}
        body = {"messages": [{"role": "user", "content": "x"}, _asked([call])], "tools": tools}
        outcome = await client.submit(body, wait_s=250)

    assert outcome["status"] == "failed"
    assert [answer["error_code"] for answer in outcome["answers"]] == ["bad_request"]


async def test_a_model_that_is_kept_from_tools_is_not_asked(
    settings: Settings, running: Running, tools: list[ChatCompletionToolUnionParam]
) -> None:
    models = {
        **settings.models,
        "tiny": settings.models["tiny"].model_copy(update={"tools": False}),
    }
    kept = settings.model_copy(update={"models": models})
    async with running(kept, "judge", "worker-edge", "dispatcher", "ingest") as client:
        outcome = await client.submit({"prompt": "What time is it?", "tools": tools}, wait_s=250)

    assert outcome["status"] == "failed"
    assert "no_tools" in json.dumps(outcome)


def _asked(calls: list[dict[str, Any]]) -> dict[str, Any]:
    functions = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
    return {
        "role": "assistant",
        "tool_calls": [
            {"id": call["id"], "type": "function", "function": function}
            for call, function in zip(calls, functions, strict=True)
        ],
    }
