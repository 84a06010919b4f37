"""OpenRouter's own SDK, unchanged but for its `server_url`, against a running stack."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openrouter import OpenRouter, errors
from openrouter.components import ChatResult, OpenAIFile, OpenAIFileDeleted, OpenAIFileList

from fusewire import ids
from fusewire.testing.eventually import until
from fusewire.testing.model_script import Fault, Script, ScriptedCall
from fusewire.testing.served import Served

MODEL = "openrouter/fusion"
MESSAGES: Any = [{"role": "user", "content": "Why?"}]
ANSWER = "a on d15d8a995a: Why?"


@pytest.fixture
def client(served: Served) -> Iterator[OpenRouter]:
    served.script(Script())
    with OpenRouter(api_key="sk-or-any", server_url=f"{served.url}/api/v1") as client:
        yield client


def chat(client: OpenRouter, **given: Any) -> ChatResult:
    reply = client.chat.send(**{"model": MODEL, "messages": MESSAGES, **given})
    assert isinstance(reply, ChatResult)
    return reply


def streamed(client: OpenRouter, **given: Any) -> list[Any]:
    with client.chat.send(**{"model": MODEL, "messages": MESSAGES, "stream": True, **given}) as stream:
        return list(stream)


def test_models(client: OpenRouter) -> None:
    listed = client.models.list()

    assert listed is not None
    assert [m.id for m in listed.result.data] == [MODEL, "fusewire/default", "fusewire/closed", "a", "b", "c", "j"]
    found = client.models.get(author="openrouter", slug="fusion")
    assert found.data.id == MODEL
    with pytest.raises(errors.NotFoundResponseError):
        client.models.get(author="fusewire", slug="none")


def test_chat(client: OpenRouter, served: Served) -> None:
    reply = chat(client)

    assert reply.choices[0].message.content == ANSWER
    assert (reply.choices[0].finish_reason, reply.model) == ("stop", MODEL)
    assert reply.usage is not None
    assert reply.usage.total_tokens > 0
    assert served.calls() == {"a": 1, "b": 1, "c": 1, "j": 2}


def test_a_stream(client: OpenRouter) -> None:
    chunks = streamed(client, stream_options={"include_usage": True})

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens > 0


def test_tools(client: OpenRouter, served: Served) -> None:
    served.script(Script.of(calls=(ScriptedCall(name="weather", arguments={"city": "Oslo"}),)))
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]

    (call,) = chat(client, tools=tools).choices[0].message.tool_calls or []

    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})


def test_an_answer_in_a_schema(client: OpenRouter) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}

    reply = chat(client, response_format=form)

    assert json.loads(str(reply.choices[0].message.content)) == {"city": "Oslo"}


def test_a_fusion_by_plugin(client: OpenRouter, served: Served) -> None:
    plugin = {"id": "fusion", "analysis_models": ["a", "b"], "model": "j", "preset": "general-high"}

    chat(client, model="c", plugins=[plugin])

    assert set(served.calls()) == {"a", "b", "j"}


def test_a_fusion_by_tool(client: OpenRouter, served: Served) -> None:
    tool = {"type": "openrouter:fusion", "parameters": {"analysis_models": ["b", "c"]}}

    chat(client, model="j", tools=[tool])

    assert set(served.calls()) == {"b", "c", "j"}


def test_errors_have_their_types(client: OpenRouter, served: Served) -> None:
    with pytest.raises(errors.NotFoundResponseError) as absent:
        chat(client, model="fusewire/none")
    assert "there is no pool 'none'" in str(absent.value)
    with pytest.raises(errors.BadRequestResponseError) as bad:
        chat(client, logprobs=True)
    assert bad.value.data.error.code == 400
    assert (bad.value.data.error.metadata or {})["code"] == "unsupported_parameter"
    assert served.calls() == {}

    served.script(Script.of(*[Fault(kind="rate_limited", headers={"retry-after": "3600"})] * 9))
    with pytest.raises(errors.TooManyRequestsResponseError):
        chat(client)
    assert served.calls() == {"a": 1, "b": 1, "c": 1}


def test_an_error_within_a_stream(client: OpenRouter, served: Served) -> None:
    served.script(Script.of(latency_ms=800))
    fusion_id = ids.fusion_id("default", None, "key-mid-stream-2")

    def write() -> None:
        while not served.calls():
            time.sleep(0.02)
        served.write(fusion_id, "Something that will not be chosen")

    writing = threading.Thread(target=write)
    writing.start()
    chunks = streamed(client, http_headers={"Idempotency-Key": "mid-stream-2"})
    writing.join()

    assert chunks[0].choices[0].delta.content == "Something that will not be chosen"
    assert (chunks[-1].error.code, chunks[-1].choices) == (409, [])


def test_files(client: OpenRouter) -> None:
    data = b'{"prompt": "Why?"}\n'
    made = client.files.upload(file={"file_name": "in.jsonl", "content": data})

    assert isinstance(made, OpenAIFile)
    assert (made.filename, made.bytes_, made.status) == ("in.jsonl", len(data), "processed")
    found = client.files.retrieve(file_id=made.id)
    assert isinstance(found, OpenAIFile)
    assert found.id == made.id
    listed = client.files.list()
    assert listed is not None
    assert isinstance(listed.result, OpenAIFileList)
    assert made.id in [file.id for file in listed.result.data]
    assert client.files.download(file_id=made.id).read() == data
    assert isinstance(client.files.delete(file_id=made.id), OpenAIFileDeleted)
    with pytest.raises(errors.NotFoundResponseError):
        client.files.retrieve(file_id=made.id)


def batch_of(client: OpenRouter, *requests: Any) -> Any:
    made = client.batch.create_batches(endpoint="/v1/chat/completions", model=MODEL, requests=requests)

    def over() -> Any:
        found = client.batch.get_batches(id=made.id)
        return None if found.status in ("validating", "in_progress", "finalizing") else found

    return until(over, "the end of the batch")


def test_a_batch(client: OpenRouter, served: Served) -> None:
    done = batch_of(client, *({"custom_id": f"c{n}", "body": {"messages": MESSAGES}} for n in range(3)))

    assert (done.status, done.model, done.request_counts.completed) == ("completed", MODEL, 3)
    assert [result.custom_id for result in done.results] == ["c0", "c1", "c2"]
    assert all(result.error is None and result.response.status_code == 200 for result in done.results)
    assert done.usage.total_tokens > 0
    listed = client.batch.list(limit=1)
    assert listed is not None
    assert [one.id for one in listed.result.data] == [done.id]

    served.script(Script.of(*[Fault(kind="bad_request")] * 99))
    failed = batch_of(client, {"custom_id": "c", "body": {"messages": MESSAGES}})
    assert (failed.status, failed.request_counts.failed) == ("completed", 1)
    assert failed.results[0].response is None
    assert "every member failed" in failed.results[0].error.message


def test_a_batch_that_cannot_be_done(client: OpenRouter, served: Served) -> None:
    refused = batch_of(client, {"custom_id": "c", "body": {"messages": MESSAGES, "n": 2}})
    assert refused.status == "failed"
    assert "'body.n'" in refused.error.message
    with pytest.raises(errors.OpenRouterError) as caught:
        batch_of(client)
    assert caught.value.status_code == 400
    assert served.calls() == {}
