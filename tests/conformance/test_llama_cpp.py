"""A hosted model at a real server: llama.cpp's own, on a tiny model with random weights."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest

from fusewire.contracts import Candidate, Message, Sampling, Task
from fusewire.settings import RemoteModel
from fusewire.testing.factories import known_usage
from fusewire.testing.llama_server import llama_server
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.tiny_gguf import write_gguf
from fusewire.worker import TokenPublisher
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger_kv import KvLedger

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "is_port": {"type": "boolean"}},
    "required": ["city", "is_port"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("llama") / "tiny.gguf"
    write_gguf(path, {"token_embd": "Q8_0", "": "Q4_1"}, is_tied=True, metadata={}, drop="", add="")
    with llama_server(path) as address:
        yield f"{address}/v1"


@pytest.fixture
async def generate(url: str) -> AsyncIterator[RemoteGenerate]:
    found = RemoteGenerate(
        {"tiny": RemoteModel(kind="remote", base_url=url, model="tiny", timeout_s=250)},
        KvLedger(MemoryKeyValue()),
        clock=lambda: datetime.now(UTC),
        sleep=asyncio.sleep,
        rng=random.Random(0).random,
        worker_id="w1",
    )
    yield found
    await found.aclose()


class Told(TokenPublisher):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    @property
    def is_enabled(self) -> bool:
        return True

    async def __call__(self, text: str) -> None:
        self.pieces.append(text)

    def restart(self) -> None:
        self.pieces.clear()


def a_task(text: str = "Why?", **changes: Any) -> Task:
    given: dict[str, Any] = {
        "task_id": "t1",
        "fusion_id": "f1",
        "round": 0,
        "call": "a",
        "kind": "answer",
        "member": "one",
        "model": "tiny",
        "tier": "remote",
        "tenant": "t",
        "messages": (
            Message(role="system", content="Be brief."),
            Message(role="user", content=text),
        ),
        "sampling": Sampling(max_tokens=12, temperature=0.0, seed=7),
        "residency": "any",
        "priority": "normal",
        "deadline_at": datetime.now(UTC) + timedelta(seconds=60),
        **changes,
    }
    return Task(**given)


def counted(candidate: Candidate) -> tuple[bool, int, str | None]:
    return candidate.ok, known_usage(candidate).completion_tokens, candidate.finish_reason


async def test_an_answer_is_cut_at_its_limit_and_counted(generate: RemoteGenerate) -> None:
    answer = await generate.generate(a_task())

    assert counted(answer) == (True, 12, "length")
    assert known_usage(answer).prompt_tokens > 20
    assert answer.cost_usd is None, "nobody knows what a local server costs"


async def test_a_stream_tells_the_whole_answer_in_pieces(generate: RemoteGenerate) -> None:
    told = Told()
    answer = await generate.generate(a_task(is_streamed=True), told)

    assert counted(answer) == (True, 12, "length")
    assert len(told.pieces) > 3
    assert "".join(told.pieces) == answer.content


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_answer_keeps_to_its_schema(
    generate: RemoteGenerate, *, is_streamed: bool
) -> None:
    sampling = Sampling(max_tokens=200, temperature=0.0, seed=7, response_schema=SCHEMA)
    answer = await generate.generate(a_task(sampling=sampling, is_streamed=is_streamed), Told())

    assert answer.finish_reason == "stop"
    jsonschema.validate(json.loads(answer.content or ""), SCHEMA)


async def test_what_is_too_long_is_refused_for_good(generate: RemoteGenerate) -> None:
    answer = await generate.generate(a_task("word " * 3000))

    assert answer.error is not None
    assert (answer.error.code, answer.error.retryable, answer.attempts) == (
        "context_length_exceeded",
        False,
        1,
    )
