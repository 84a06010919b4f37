"""Clients of node, only their address changed, against a running stack. `make test-node`.

They come from npm: OpenAI's and OpenRouter's own, and Vercel's AI SDK, which asks OpenAI's
Responses, OpenAI's chat or OpenRouter's.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fusewire.settings import RemoteModel
from fusewire.testing.model_script import Fault, Script, ScriptedCall
from fusewire.testing.served import RunningStack

CALLS = Path("build/node/calls.mjs").absolute()
ANSWER = "a on d15d8a995a: Why?"
FUSED = {"a": 1, "b": 1, "c": 1, "j": 2}
"""Calls of one fusion: three members, and the judge in both orders."""
MODEL = "openrouter/fusion"
OSLO = ScriptedCall(name="weather", arguments={"city": "Oslo"})
AI = ["ai-responses", "ai-chat", "ai-openrouter"]
CLIENTS = ["openai", "openrouter", *AI]


def call(served: RunningStack, client: str, what: str, script: Script | None = None) -> Any:
    """What the call gave: its reply, or its error as `{"error": …}`."""
    served.script(script or Script())
    done = subprocess.run(
        ["node", str(CALLS), client, what, served.url],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return told.get("reply", told)


@pytest.mark.parametrize("client", ["openai", "openrouter"])
def test_models(served: RunningStack, client: str) -> None:
    assert call(served, client, "models")[0] == MODEL


@pytest.mark.parametrize("client", ["openai", "openrouter"])
def test_chat(served: RunningStack, client: str) -> None:
    reply = call(served, client, "chat")

    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert served.calls() == FUSED


@pytest.mark.parametrize("client", AI)
def test_a_text_of_the_ai_sdk(served: RunningStack, client: str) -> None:
    reply = call(served, client, "chat")

    assert (reply["text"], reply["finishReason"]) == (ANSWER, "stop")
    assert reply["usage"]["totalTokens"] > 0
    assert served.calls() == FUSED


@pytest.mark.parametrize("client", ["openai", "openrouter"])
def test_a_stream(served: RunningStack, client: str) -> None:
    chunks = call(served, client, "stream")

    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text == ANSWER
    assert chunks[-1]["usage"]
    assert served.calls() == FUSED


@pytest.mark.parametrize("client", AI)
def test_a_stream_of_the_ai_sdk(served: RunningStack, client: str) -> None:
    reply = call(served, client, "stream")

    assert "".join(reply["pieces"]) == ANSWER
    assert reply["usage"]["totalTokens"] > 0
    assert served.calls() == FUSED


@pytest.mark.parametrize("client", ["openai", "openrouter"])
def test_tools(served: RunningStack, client: str) -> None:
    message = call(served, client, "tools", Script.of(calls=(OSLO,)))["choices"][0]["message"]

    (called,) = message.get("tool_calls") or message["toolCalls"]
    assert called["function"]["name"] == "weather"
    assert json.loads(called["function"]["arguments"]) == {"city": "Oslo"}


@pytest.mark.parametrize("client", ["openai", "openrouter", *AI])
def test_an_answer_in_a_schema(served: RunningStack, client: str) -> None:
    reply = call(served, client, "schema")

    found = reply if client in AI else json.loads(reply["choices"][0]["message"]["content"])
    assert found == {"city": "Oslo"}


def test_openai_s_responses(served: RunningStack) -> None:
    first, second = call(served, "openai", "respond")
    assert first == ANSWER
    assert second
    events = call(served, "openai", "respondStream")
    assert (events[0], events[-1]) == ("response.created", "response.completed")
    assert "response.output_text.delta" in events


@pytest.mark.parametrize("client", CLIENTS)
def test_an_unknown_model(served: RunningStack, client: str) -> None:
    error = call(served, client, "unknown")["error"]

    assert error["status"] == 404
    assert "gtp" in error["message"]
    assert served.calls() == {}


@pytest.mark.parametrize("client", ["openai", "openrouter"])
def test_one_that_gives_up_and_repeats_buys_one_panel(served: RunningStack, client: str) -> None:
    reply = call(served, client, "repeats", Script.of(latency_ms=1500))

    if client == "openai":
        assert reply["choices"][0]["message"]["content"]
    # OpenRouter's asks no second time by itself, and may be gone before the judge is asked.
    assert all(count <= FUSED[name] for name, count in served.calls().items())


@pytest.mark.parametrize("client", CLIENTS)
def test_what_failed_is_not_bought_again(served: RunningStack, client: str) -> None:
    error = call(served, client, "chat", Script.of(*[Fault(kind="server_error")] * 99))["error"]

    assert error["status"] == 424
    # Fusewire asks each member again, as often as its configuration says; a second fusion would
    # double that.
    assert max(served.calls().values()) <= RemoteModel.model_fields["max_attempts"].default
