"""OpenAI's own SDK on the Responses API with only another `base_url`, on a running stack."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from fusewire.testing.model_script import Fault, Rule, Script, ScriptedCall
from fusewire.testing.served import RunningStack, code_of

MODEL = "openrouter/fusion"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
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


def test_a_response(client: OpenAI, served: RunningStack) -> None:
    made = client.responses.create(model=MODEL, input="Why?")
    assert (made.output_text, made.status) == ("a on d15d8a995a: Why?", "completed")
    assert made.usage is not None
    assert made.usage.total_tokens > 0
    assert served.calls() == FUSED
    again = client.responses.retrieve(made.id)
    assert (again.id, again.output_text) == (made.id, made.output_text)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_none")


def test_a_conversation_goes_on(client: OpenAI, served: RunningStack) -> None:
    """With what was said before, and the instructions of each request alone."""
    first = client.responses.create(model=MODEL, input="Why?", instructions="Be brief.")
    rules = (Rule(match="again", answer="As before."), Rule(match="now", answer="As ever."))
    served.script(Script.of(rules=rules, recording=True))
    second = client.responses.create(
        model="b", input="And now?", previous_response_id=first.id, instructions="Be polite."
    )
    third = client.responses.create(
        model="b", input="And now again?", previous_response_id=second.id
    )
    assert [one.output_text for one in (second, third)] == ["As ever.", "As before."]
    shown = [one["messages"] for one in served.requests("b")]
    assert [one["role"] for one in shown[0]] == ["system", "user", "assistant", "user"]
    assert [one["content"] for one in shown[0]] == [
        "Be polite.",
        "Why?",
        first.output_text,
        "And now?",
    ]
    assert [one["content"] for one in shown[1]][-3:] == ["And now?", "As ever.", "And now again?"]
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model=MODEL, input="Why?", previous_response_id="resp_none")
    assert code_of(unknown.value.body) == "unknown_response"


def test_a_stream_has_the_events_that_clients_expect(client: OpenAI) -> None:
    with client.responses.create(model=MODEL, input="Why?", stream=True) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    last = events[-1]
    assert last.type == "response.completed"
    assert text == last.response.output_text == "a on d15d8a995a: Why?"
    assert last.response.usage is not None


def test_the_sdks_own_helper_follows_it(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="Why?") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "a on d15d8a995a: Why?"


def test_tools_and_their_results(client: OpenAI, served: RunningStack) -> None:
    served.script(Script.of(calls=(ScriptedCall(name="weather", arguments={"city": "Oslo"}),)))
    tools: Any = [{"type": "function", "name": "weather", "parameters": CITY, "strict": True}]
    first = client.responses.create(model=MODEL, input="Why?", tools=tools)
    (call,) = first.output
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Oslo"}

    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}]
    second = client.responses.create(
        model=MODEL, input=result, previous_response_id=first.id, tools=tools
    )
    assert second.output_text

    with client.responses.create(model=MODEL, input="Why?", tools=tools, stream=True) as stream:
        events = list(stream)
    deltas = [
        event.delta for event in events if event.type == "response.function_call_arguments.delta"
    ]
    assert json.loads("".join(deltas)) == {"city": "Oslo"}


def test_an_answer_in_a_schema(client: OpenAI) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}}
    made = client.responses.create(model=MODEL, input="Why?", text=form)
    assert json.loads(made.output_text) == {"city": "Oslo"}


def test_errors_have_their_types(client: OpenAI, served: RunningStack) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(model=MODEL, input="Why?", background=True)
    assert bad.value.param == "background"
    heard: Any = [{"role": "user", "content": [{"type": "input_audio"}]}]
    with pytest.raises(openai.BadRequestError) as unnamed:
        client.responses.create(model=MODEL, input=heard)
    assert str(unnamed.value.param).startswith("input.0")
    assert served.calls() == {}

    served.script(Script.of(*[Fault(kind="bad_request")] * 99))
    with client.responses.create(model=MODEL, input="Why?", stream=True) as stream:
        error, failed = list(stream)[-2:]
    assert (error.type, getattr(error, "code", None)) == ("error", "bad_request")
    assert failed.type == "response.failed"
    assert (failed.response.status, failed.response.error and failed.response.error.code) == (
        "failed",
        "server_error",
    )
