"""A conversation with tools, through the pipeline, on the real SmolLM2-135M."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fusewire.settings import Nats, Settings
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_worker_edge.pull import pull

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Lima", "Oslo"]}}, "required": ["city"]}
PARAMETERS = {"get_weather": CITY, "get_time": CITY}
TOOLS = [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in PARAMETERS.items()]


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer) -> Settings:
    root = os.environ.get("FUSEWIRE_MODELS")
    folder = pull("smollm2-135m", Path(root) if root else None)
    return make_settings(
        nats=Nats(url=nats.url),
        models={"tiny": {"kind": "edge", "path": folder}},
        pool={"members": ["tiny"], "judge": None},
    )


async def ask(client: Client, messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {"messages": messages, "tools": TOOLS, "max_tokens": 200, "residency": "edge-only", **fields}
    outcome = await client.submit(body, wait_s=250)
    assert outcome["status"] == "single", outcome
    for call in outcome["tool_calls"]:
        jsonschema.validate(json.loads(call["arguments"]), PARAMETERS[call["name"]])
    return outcome


async def test_three_turns_with_parallel_calls(settings: Settings, running: Running) -> None:
    async with running(settings, "judge", "worker-edge", "dispatcher", "ingest") as client:
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "What is the weather in Paris and in Lima? Call get_weather for each."}
        ]
        calls = (await ask(client, messages, tool_choice="required"))["tool_calls"]
        assert len(calls) > 1

        messages.append(_asked(calls))
        messages += [_result(call["id"], {"celsius": 21 + i}) for i, call in enumerate(calls)]
        answer = await ask(client, messages, tool_choice="none")
        assert answer["content"]
        assert answer["tool_calls"] == []

        messages.append({"role": "assistant", "content": answer["content"]})
        messages.append({"role": "user", "content": "And what time is it in Oslo?"})
        chosen = {"type": "function", "function": {"name": "get_time"}}
        third = await ask(client, messages, tool_choice=chosen, parallel_tool_calls=False)
        assert [call["name"] for call in third["tool_calls"]] == ["get_time"]


async def test_a_conversation_that_lacks_a_result_fails_with_the_reason(settings: Settings, running: Running) -> None:
    async with running(settings, "judge", "worker-edge", "dispatcher", "ingest") as client:
        call = {"id": "abc123def", "name": "get_time", "arguments": '{"city": "Oslo"}'}
        body = {"messages": [{"role": "user", "content": "x"}, _asked([call])], "tools": TOOLS}
        outcome = await client.submit(body, wait_s=250)

    assert outcome["status"] == "failed"
    assert [answer["error_code"] for answer in outcome["answers"]] == ["bad_request"]


async def test_a_model_that_is_kept_from_tools_is_not_asked(settings: Settings, running: Running) -> None:
    models = {**settings.models, "tiny": settings.models["tiny"].model_copy(update={"tools": False})}
    kept = settings.model_copy(update={"models": models})
    async with running(kept, "judge", "worker-edge", "dispatcher", "ingest") as client:
        outcome = await client.submit({"prompt": "What time is it?", "tools": TOOLS}, wait_s=250)

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


def _result(call_id: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": json.dumps(value)}
