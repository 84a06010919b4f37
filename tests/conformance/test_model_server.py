"""The fake model server itself: that tests and benchmarks can rely on what it is told to do."""

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
import pytest

from fusewire.testing.model_script import Model, ModelScript, Rule, Script, ScriptedCall
from fusewire.testing.model_server import ModelServer
from fusewire.testing.processes import bound


async def ask(base_url: str, prompt: str, *, key: str = "", **more: Any) -> str:
    choice = await chosen(base_url, prompt, key=key, **more)
    return str(choice["message"]["content"])


async def chosen(base_url: str, prompt: str, *, key: str = "", **more: Any) -> dict[str, Any]:
    body = {"model": "big-1", "messages": [{"role": "user", "content": prompt}], **more}
    headers = {"Idempotency-Key": key} if key else {}
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"{base_url}/chat/completions", json=body, headers=headers) as response,
    ):
        completion = await response.json()
        choice: dict[str, Any] = completion["choices"][0]
        return choice


async def test_answers_follow_the_script() -> None:
    rules = (Rule(match=r"capital of (\w+)", answer="Paris"),)
    script = Script(models={"big-1": ModelScript(rules=rules, answer="{model} says {prompt}")})
    async with ModelServer(script) as server:
        assert await ask(server.base_url, "The capital of France?") == "Paris"
        assert await ask(server.base_url, "Hello {braces}") == "big-1 says Hello {braces}"


async def test_tools_are_called_by_the_script_where_they_are_offered() -> None:
    rules = (
        Rule(
            match="twice",
            calls=(ScriptedCall(name="clock"), ScriptedCall(name="clock", arguments="{no JSON")),
        ),
    )
    script = Script.of(
        rules=rules,
        answer="In words.",
        calls=(ScriptedCall(name="weather", arguments={"city": "Rom"}),),
    )
    tools = [{"type": "function", "function": {"name": "weather"}}]
    async with ModelServer(script) as server:
        once = await chosen(server.base_url, "Weather?", tools=tools)
        twice = await chosen(server.base_url, "Weather, twice", tools=tools)
        plain = await chosen(server.base_url, "Weather?")
        barred = await chosen(server.base_url, "Weather?", tools=tools, tool_choice="none")
        turns = [
            {"role": "user", "content": "Weather?"},
            {"role": "tool", "tool_call_id": "call_0", "content": "Wet."},
        ]
        answered = await chosen(server.base_url, "", tools=tools, messages=turns)
    called = {"name": "weather", "arguments": '{"city": "Rom"}'}
    assert once["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_0", "type": "function", "function": called}],
    }
    assert once["finish_reason"] == "tool_calls"
    assert [c["function"]["arguments"] for c in twice["message"]["tool_calls"]] == [
        "{}",
        "{no JSON",
    ]
    for said in (plain, barred, answered):
        assert (said["message"]["content"], said["finish_reason"]) == ("In words.", "stop")


async def test_without_a_script_answers_depend_on_the_prompt_alone() -> None:
    async with ModelServer() as server:
        first = await ask(server.base_url, "Hello")
        assert await ask(server.base_url, "Hello") == first
        assert await ask(server.base_url, "Hello?") != first


async def test_a_schema_that_is_asked_for_is_satisfied() -> None:
    schema = {
        "type": "object",
        "properties": {
            "best": {"$ref": "#/$defs/label"},
            "ranking": {"type": "array", "items": {"$ref": "#/$defs/label"}, "minItems": 2},
            "reason": {"type": "string", "maxLength": 3},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            "tie": {"type": "boolean"},
            "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
        "required": ["best", "reason"],
        "$defs": {"label": {"enum": ["A", "B"]}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    async with ModelServer() as server:
        answer = await ask(server.base_url, "Judge.", response_format=wanted)
    assert json.loads(answer) == {
        "best": "A",
        "ranking": ["A", "B"],
        "reason": "fit",
        "confidence": 0,
        "tie": True,
        "note": None,
    }


def test_latencies_and_faults_are_seeded() -> None:
    script = ModelScript(
        latency_ms=50, latency_sigma=1.0, fault_rates={"server_error": 0.05, "rate_limited": 0.05}
    )

    def drawn(seed: int) -> list[tuple[str | None, float]]:
        model = Model("m", script.model_copy(update={"seed": seed}))
        fates = [(model.next_fault(), model.next_latency_s()) for _ in range(2000)]
        return [(fault.kind if fault else None, latency) for fault, latency in fates]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    latencies = sorted(latency for _, latency in drawn(1))
    assert 0.04 < latencies[1000] < 0.06
    assert latencies[-1] > 5 * latencies[1000]
    assert 60 <= sum(kind == "server_error" for kind, _ in drawn(1)) <= 140


async def test_faults_repeat_when_told_to() -> None:
    async with ModelServer(Script.of("none", "server_error", repeat_faults=True)) as server:
        for _ in range(3):
            await ask(server.base_url, "Hello")
            with pytest.raises(KeyError):
                await ask(server.base_url, "Hello")


async def test_requests_that_arrive_in_pieces_or_together_are_each_answered() -> None:
    body = b'{"model": "m", "messages": []}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with ModelServer(Script.of(latency_ms=1)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for piece in (request[:20], request[20:70], request[70:] + request + request):
            writer.write(piece)
            await asyncio.sleep(0.01)
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
        assert server.stats.requests == 3
        writer.close()
        await writer.wait_closed()


async def test_it_runs_in_a_process_of_its_own_and_is_controlled_over_http() -> None:
    command = bound([sys.executable, "-m", "fusewire.testing.model_server", "--port", "0"])
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{json.loads(await process.stdout.readline())['port']}"
        async with aiohttp.ClientSession() as client:
            script = Script.of(recording=True, answer="scripted")
            async with client.post(
                f"{url}/_control/script", data=script.model_dump_json()
            ) as response:
                assert response.status == 200
            for _ in range(2):
                assert await ask(f"{url}/v1", "Say xyzzy", key="k1") == "scripted"
            async with client.get(f"{url}/_control/stats") as response:
                stats = await response.json()
            assert (stats["requests"], stats["by_model"], stats["by_key"]) == (
                2,
                {"big-1": 2},
                {"k1": 2},
            )
            assert stats["recorded"][1]["body"]["messages"][0]["content"] == "Say xyzzy"
            async with client.get(f"{url}/_control/received") as response:
                assert (await response.read()).count(b"xyzzy") == 2
            async with client.post(f"{url}/_control/script", data=b'{"models": 3}') as response:
                assert response.status == 400
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_a_stream_comes_token_by_token_and_its_first_is_timed() -> None:
    body = {"model": "big-1", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    async with (
        ModelServer(Script.of(answer="one two three", token_ms=1)) as server,
        aiohttp.ClientSession() as client,
    ):
        before = time.monotonic_ns()
        async with client.post(f"{server.base_url}/chat/completions", json=body) as response:
            assert response.content_type == "text/event-stream"
            lines = [line.decode().strip() async for line in response.content if line.strip()]
        (written,) = server.stats.first_token_ns["big-1"]
        assert before < written < time.monotonic_ns()
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert [d["content"] for d in deltas if d.get("content")] == ["one ", "two ", "three"]
    assert chunks[-1]["usage"]["completion_tokens"] > 0


STRANGE: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages", {"model": "m", "messages": []}),
    ("/v1/messages", {"model": "m", "max_tokens": 1, "messages": [], "seed": 1}),
    ("/mistral/v1/chat/completions", {"model": "m", "messages": [], "stream_options": {}}),
    ("/v1/models/m:generateContent", {"contents": [], "stream": True}),
]


@pytest.mark.parametrize(("path", "body"), STRANGE)
async def test_what_a_protocol_does_not_know_is_refused(path: str, body: dict[str, Any]) -> None:
    async with ModelServer() as server, aiohttp.ClientSession() as client:
        async with client.post(f"http://127.0.0.1:{server.port}{path}", json=body) as response:
            assert response.status in {400, 422}
        assert len(server.stats.unknown) == 1
