"""OpenAI's own SDK, unchanged but for its `base_url`: files and batches against a running stack."""

import io
import json
import time
from collections.abc import Iterator
from typing import Any, Final, cast

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from openai.types.responses import Response

from fusewire.testing.eventually import until
from fusewire.testing.model_script import Fault, Script
from fusewire.testing.served import RunningStack, code_of

OVER = ("completed", "failed", "expired", "cancelled")
CHAT: Final = "/v1/chat/completions"


@pytest.fixture(params=["/v1", "/api/v1"])
def client(
    request: pytest.FixtureRequest, served: RunningStack, checked: httpx2.Client
) -> Iterator[OpenAI]:
    served.script(Script())
    with OpenAI(
        base_url=served.url + request.param, api_key="sk-any", http_client=checked, max_retries=0
    ) as client:
        yield client


def lines(count: int, **more: Any) -> bytes:
    body = {"model": "fusion", "messages": [{"role": "user", "content": "Why?"}], **more}
    shown = [
        {"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": body} for n in range(count)
    ]
    return "\n".join(map(json.dumps, shown)).encode()


def uploaded(client: OpenAI, data: bytes) -> str:
    return client.files.create(file=("in.jsonl", data), purpose="batch").id


def made(client: OpenAI, data: bytes, **more: Any) -> Batch:
    return client.batches.create(
        input_file_id=uploaded(client, data), endpoint=CHAT, completion_window="24h", **more
    )


def ended(client: OpenAI, batch: Batch) -> Batch:
    def over() -> Batch | None:
        found = client.batches.retrieve(batch.id)
        return found if found.status in OVER else None

    return cast("Batch", until(over, "the end of the batch"))


def content(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_files(client: OpenAI) -> None:
    data = lines(2)
    made = client.files.create(file=io.BytesIO(data), purpose="batch")
    other = client.files.create(file=("other.jsonl", b"{}"), purpose="batch")

    assert (made.object, made.purpose, made.bytes) == ("file", "batch", len(data))
    assert client.files.wait_for_processing(made.id, poll_interval=0.01).status == "processed"
    assert client.files.retrieve(other.id).filename == "other.jsonl"
    assert client.files.content(made.id).read() == data
    listed = [file.id for file in client.files.list(limit=1, order="asc")]
    assert listed.index(made.id) < listed.index(other.id), "the pages are followed to the end"
    assert client.files.delete(other.id).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(other.id)
    assert code_of(caught.value.body) == "not_found"


def test_usage_is_summed_with_its_details(client: OpenAI, served: RunningStack) -> None:
    served.script(Script.of(cached_tokens=1))
    usage = ended(client, made(client, lines(2))).usage
    served.script(Script())

    assert usage is not None
    # Two lines of three members and a judge in both orders, of each one prompt token.
    assert (
        usage.input_tokens_details.cached_tokens,
        usage.output_tokens_details.reasoning_tokens,
    ) == (10, 0)


def test_a_batch(client: OpenAI) -> None:
    batch = made(client, lines(3), metadata={"name": "mine"})
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", CHAT, "24h")
    assert client.files.list(purpose="batch").data
    batch = ended(client, batch)

    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (
        batch.request_counts.total,
        batch.request_counts.completed,
        batch.request_counts.failed,
    ) == (3, 3, 0)
    assert (batch.metadata, batch.error_file_id, batch.errors) == ({"name": "mine"}, None, None)
    found = content(client, batch.output_file_id)
    assert [line["custom_id"] for line in found] == ["c0", "c1", "c2"]
    for line in found:
        assert (line["error"], line["response"]["status_code"]) == (None, 200)
        assert line["response"]["body"]["choices"][0]["message"]["content"]
    assert batch.output_file_id
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert batch.id in [one.id for one in client.batches.list(limit=1)]


def test_a_batch_of_responses(client: OpenAI) -> None:
    told = {"method": "POST", "url": "/v1/responses", "body": {"model": "fusion", "input": "Why?"}}
    data = "\n".join(json.dumps({"custom_id": f"c{n}", **told}) for n in range(2)).encode()
    asked = client.batches.create(
        input_file_id=uploaded(client, data), endpoint="/v1/responses", completion_window="24h"
    )
    batch = ended(client, asked)

    assert (batch.status, batch.endpoint) == ("completed", "/v1/responses")
    for found in content(client, batch.output_file_id):
        response = Response.model_validate(found["response"]["body"])
        assert (found["response"]["status_code"], response.status) == (200, "completed")
        assert response.output_text


def test_lines_that_fail(client: OpenAI, served: RunningStack) -> None:
    served.script(Script.of(*[Fault(kind="bad_request")] * 99))
    batch = ended(client, made(client, lines(2)))

    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert batch.request_counts is not None
    assert batch.request_counts.failed == 2
    first, _ = content(client, batch.error_file_id)
    assert (first["custom_id"], first["error"]["code"]) == ("c0", "bad_request")


def test_a_cancelled_batch(client: OpenAI, served: RunningStack) -> None:
    served.script(Script.of(latency_ms=300))
    batch = made(client, lines(600))
    while batch.status == "validating":
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    assert client.batches.cancel(batch.id).status in ("cancelling", "finalizing", "cancelled")
    batch = ended(client, batch)

    assert batch.status == "cancelled"
    assert batch.cancelled_at
    assert {line["error"]["code"] for line in content(client, batch.error_file_id)} <= {
        "cancelled",
        "batch_cancelled",
    }


def test_a_bad_line_fails_the_whole(client: OpenAI, served: RunningStack) -> None:
    batch = ended(client, made(client, lines(1) + b"\n" + lines(1, n=2).replace(b"c0", b"c1")))

    assert batch.status == "failed"
    assert batch.errors is not None
    (fault,) = batch.errors.data or []
    assert (fault.line, fault.code, fault.param) == (2, "unsupported_parameter", "body.n")
    assert served.calls() == {}


def test_errors_have_their_types(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as absent:
        client.batches.retrieve("batch_none")
    assert absent.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    assert (code_of(unknown.value.body), unknown.value.param) == ("unknown_file", "input_file_id")
    with pytest.raises(openai.BadRequestError) as bad:
        client.files.create(file=b"x", purpose="fine-tune")
    assert bad.value.param == "purpose"
    batch = made(client, lines(20))
    with pytest.raises(openai.ConflictError) as used:
        client.files.delete(batch.input_file_id)
    assert code_of(used.value.body) == "file_in_use"
    ended(client, batch)
