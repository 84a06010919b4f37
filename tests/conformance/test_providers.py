"""One suite over the four protocols of hosted models, each case over a real socket.

What the server understood is compared in OpenAI's form, into which it turns every protocol's
requests, so that one expectation serves all. It refuses what a protocol does not know.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fusewire.contracts import Candidate, Image, Message, Sampling, Task, Tool, ToolCall
from fusewire.settings import RemoteModel
from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.factories import known_usage
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.model_connection import RecordedRequest
from fusewire.testing.model_script import Fault, FaultKind, Script, ScriptedCall
from fusewire.testing.model_server import ModelServer
from fusewire.worker import TokenPublisher
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger_kv import KvLedger

PROVIDERS = ["openai", "anthropic", "gemini", "mistral", "deepseek"]
KEY = "sk-secret-5550123"
KEY_HEADERS = {
    "openai": f"Authorization: Bearer {KEY}",
    "mistral": f"Authorization: Bearer {KEY}",
    "deepseek": f"Authorization: Bearer {KEY}",
    "anthropic": f"x-api-key: {KEY}",
    "gemini": f"x-goog-api-key: {KEY}",
}
SAID = "Grüße aus Köln, 日本 🙂 and more."
PIXEL = "data:image/png;base64,iVBORw0KGgo="
PHOTO = "https://images.example/a.jpg"
CLOCK = Tool(name="clock")
WEATHER = Tool(
    name="weather",
    description="Now.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
ASKED = ToolCall(id="call_abc", name="weather", arguments='{"city": "Rome"}')

pytestmark = pytest.mark.parametrize("provider", PROVIDERS)


def now() -> datetime:
    return datetime.now(UTC)


class Heard(TokenPublisher):
    """Keeps what is told, by attempt."""

    def __init__(self) -> None:
        self.attempts: list[list[str]] = [[]]

    @property
    def is_enabled(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return "".join(self.attempts[-1])

    async def __call__(self, text: str) -> None:
        self.attempts[-1].append(text)

    def restart(self) -> None:
        self.attempts.append([])


def a_task(content: str = "Hello", **changes: Any) -> Task:
    given: dict[str, Any] = {
        "task_id": "f1-0-a",
        "fusion_id": "f1",
        "round": 0,
        "call": "a",
        "kind": "answer",
        "model": "big",
        "tier": "remote",
        "tenant": "t",
        "messages": (Message(role="user", content=content),),
        "sampling": Sampling(),
        "residency": "any",
        "priority": "normal",
        "deadline_at": now() + timedelta(seconds=60),
        **changes,
    }
    return Task(**given)


async def no_wait(_: float) -> None:
    """Between attempts."""


class Side:
    """A worker, and the server that it calls."""

    def __init__(self, provider: str, server: ModelServer, generate: RemoteGenerate) -> None:
        self.provider = provider
        self.server = server
        self.generate = generate
        self._calls = 0

    async def ask(self, task: Task | None = None, tell: TokenPublisher | None = None) -> Candidate:
        """Make a call; each is a task of its own."""
        self._calls += 1
        wanted = (task or a_task()).model_copy(
            update={"task_id": f"f1-0-{self._calls}", "is_streamed": tell is not None}
        )
        return await self.generate.generate(wanted, tell)

    async def asked(self, task: Task) -> dict[str, Any]:
        """Make a call that succeeds; what the server understood."""
        candidate = await self.ask(task)
        assert candidate.error is None, self.server.stats.unknown
        return self.recorded.request

    @property
    def recorded(self) -> RecordedRequest:
        return self.server.stats.recorded[-1]


@asynccontextmanager
async def calling(provider: str, script: Script, **model: Any) -> AsyncIterator[Side]:
    async with ModelServer(script) as server:
        settings = {
            "kind": "remote",
            "provider": provider,
            "base_url": server.base_url_of(provider),
            "model": "gemini-3-big" if provider == "gemini" else "big-1",
            "timeout_s": 20,
            **model,
        }
        generate = RemoteGenerate(
            {"big": RemoteModel.model_validate(settings)},
            KvLedger(MemoryKeyValue()),
            clock=now,
            sleep=no_wait,
            rng=random.Random(0).random,
            worker_id="w1",
        )
        try:
            yield Side(provider, server, generate)
        finally:
            await generate.aclose()


def said(**model: Any) -> Script:
    return Script.of(recording=True, **{"answer": SAID, **model})


def same(one: Candidate, other: Candidate) -> bool:
    """Whether two candidates say the same, whenever and for whatever task."""
    apart = {"task_id", "started_at", "finished_at"}
    return one.model_dump(exclude=apart) == other.model_dump(exclude=apart)


# What is asked


async def test_a_plain_question_is_answered(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    async with calling(provider, said(), api_key_env="FAKE_KEY") as side:
        candidate = await side.ask(a_task(depth=2))
        recorded = side.recorded
    assert (candidate.content, candidate.finish_reason, candidate.provider) == (
        SAID,
        "stop",
        provider,
    )
    assert candidate.tool_calls == ()
    assert known_usage(candidate).prompt_tokens > 0
    assert known_usage(candidate).completion_tokens > 1
    assert [(m["role"], m["content"]) for m in recorded.request["messages"]] == [("user", "Hello")]
    assert not recorded.request.get("stream")
    assert KEY_HEADERS[provider] in recorded.head
    assert "x-fusewire-depth: 3" in recorded.head
    assert ("anthropic-version: 2023-06-01" in recorded.head) is (provider == "anthropic")


async def test_a_conversation_keeps_its_turns(provider: str) -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "Two."),
        ("user", "Three?"),
    ]
    async with calling(provider, said()) as side:
        task = a_task(messages=tuple(Message(role=role, content=text) for role, text in turns))
        request = await side.asked(task)
    assert [(m["role"], m["content"]) for m in request["messages"]] == turns


async def test_a_conversation_of_a_system_prompt_alone_has_somebody_to_answer_to(
    provider: str,
) -> None:
    async with calling(provider, said()) as side:
        request = await side.asked(a_task(messages=(Message(role="system", content="Say hello."),)))
    assert [m["content"] for m in request["messages"]] == ["Say hello."]
    assert request["messages"][0]["role"] == (
        "user" if provider in {"anthropic", "gemini"} else "system"
    )


async def test_sampling_is_asked_for_as_far_as_it_is_known(provider: str) -> None:
    sampling = Sampling(max_tokens=9, temperature=0.5, seed=7, stop=("END", "STOP"))
    async with calling(provider, said()) as side:
        request = await side.asked(a_task(sampling=sampling))
    assert (request["max_tokens"], request["temperature"], request["stop"]) == (
        9,
        0.5,
        ["END", "STOP"],
    )
    assert request.get("seed") == (None if provider == "anthropic" else 7)


async def test_the_answers_length_is_the_models_where_the_task_has_none(provider: str) -> None:
    async with calling(provider, said(), max_tokens=77) as side:
        assert (await side.asked(a_task()))["max_tokens"] == 77
    async with calling(provider, said()) as side:
        assert (await side.asked(a_task())).get("max_tokens") == (
            4096 if provider == "anthropic" else None
        )


@pytest.mark.parametrize(
    ("choice", "understood"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ("clock", {"type": "function", "function": {"name": "clock"}}),
    ],
)
async def test_tools_are_offered(provider: str, choice: str, understood: object) -> None:
    async with calling(provider, said()) as side:
        request = await side.asked(a_task(tools=(WEATHER, CLOCK), tool_choice=choice))
    first, second = (tool["function"] for tool in request["tools"])
    assert first == {"name": "weather", "description": "Now.", "parameters": WEATHER.parameters}
    assert second["name"] == "clock"
    assert request["tool_choice"] == understood


async def test_tools_are_called(provider: str) -> None:
    calls = (
        ScriptedCall(name="weather", arguments={"city": "Köln", "days": 2}),
        ScriptedCall(name="clock"),
    )
    async with calling(provider, said(calls=calls)) as side:
        candidate = await side.ask(a_task(tools=(WEATHER, CLOCK)))
    assert (candidate.content, candidate.finish_reason) == (None, "tool_calls")
    assert [call.name for call in candidate.tool_calls] == ["weather", "clock"]
    assert [json.loads(call.arguments) for call in candidate.tool_calls] == [
        {"city": "Köln", "days": 2},
        {},
    ]
    assert len({call.id for call in candidate.tool_calls}) == 2


async def test_results_of_tools_go_back_to_their_calls(provider: str) -> None:
    other = ToolCall(id="call_def", name="clock", arguments="{}")
    turns = (
        Message(role="user", content="Weather?"),
        Message(role="assistant", content="I look.", tool_calls=(ASKED, other)),
        Message(role="tool", content="21 °C", tool_call_id=ASKED.id),
        Message(role="tool", content='{"time": "noon"}', tool_call_id=other.id),
        Message(role="user", content="And in Rome?"),
    )
    async with calling(provider, said()) as side:
        messages = (await side.asked(a_task(messages=turns, tools=(WEATHER, CLOCK))))["messages"]
    # Mistral takes no user right after a result.
    between = ["assistant"] if provider == "mistral" else []
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", *between, "user"]
    called = messages[1]["tool_calls"]
    assert messages[1]["content"] == "I look."
    assert [call["function"]["name"] for call in called] == ["weather", "clock"]
    assert [json.loads(call["function"]["arguments"]) for call in called] == [{"city": "Rome"}, {}]
    if provider == "gemini":  # has names and no ids, and objects for results
        assert [m["name"] for m in messages[2:4]] == ["weather", "clock"]
        assert [json.loads(m["content"]) for m in messages[2:4]] == [
            {"result": "21 °C"},
            {"time": "noon"},
        ]
    else:
        assert [m["tool_call_id"] for m in messages[2:4]] == [call["id"] for call in called]
        assert [m["content"] for m in messages[2:4]] == ["21 °C", '{"time": "noon"}']


SCHEMA = {
    "type": "object",
    "properties": {
        "winner": {"enum": ["A", "B"]},
        "reason": {"type": "string", "minLength": 2, "maxLength": 240},
        "marks": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2},
    },
    "required": ["winner", "reason"],
}


async def test_an_answer_by_a_schema_is_json(provider: str) -> None:
    async with calling(provider, said()) as side:
        task = a_task(sampling=Sampling(response_schema=SCHEMA))
        candidate = await side.ask(task)
        told = Heard()
        streamed = await side.ask(task, told)
        request = side.recorded.request
    assert candidate.content is not None
    assert json.loads(candidate.content)["winner"] == "A"
    assert streamed.content == candidate.content == told.text
    if provider == "deepseek":  # the schema stands in the prompt
        assert request["response_format"] == {"type": "json_object"}
        assert json.dumps(SCHEMA) in request["messages"][0]["content"]
        return
    schema = request["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == {"winner", "reason", "marks"}
    if provider != "anthropic":
        assert schema == SCHEMA
    else:
        assert "minLength: 2, maxLength: 240" in schema["properties"]["reason"]["description"]


async def test_an_answer_by_an_open_schema_is_asked_for(provider: str) -> None:
    sampling = Sampling(response_schema={"type": "object"})
    async with calling(provider, Script.of(recording=True, answer='{"any": 1}')) as side:
        candidate = await side.ask(a_task(sampling=sampling))
        recorded = side.recorded
    assert candidate.ok, side.server.stats.unknown
    if provider == "gemini":
        assert recorded.body["generationConfig"] == {"responseMimeType": "application/json"}
    elif provider == "anthropic":  # structured outputs know no open objects
        assert "response_format" not in recorded.request
        assert '{"type": "object"}' in recorded.request["messages"][0]["content"]
    else:
        assert recorded.request["response_format"] == {"type": "json_object"}


async def test_images_stand_where_they_stood(provider: str) -> None:
    text = "Before, between, after."
    images = (Image(url=PIXEL, at=8), Image(url=PHOTO, at=17))
    async with calling(provider, said()) as side:
        request = await side.asked(
            a_task(messages=(Message(role="user", content=text, images=images),))
        )
    parts = [
        part.get("text") or part["image_url"]["url"] for part in request["messages"][0]["content"]
    ]
    assert parts == ["Before, ", PIXEL, "between, ", PHOTO, "after."]


async def test_two_images_at_one_place_keep_their_order(provider: str) -> None:
    images = (Image(url=PHOTO, at=0), Image(url=PIXEL, at=0))
    async with calling(provider, said()) as side:
        request = await side.asked(
            a_task(messages=(Message(role="user", content="Which?", images=images),))
        )
    parts = [
        part.get("text") or part["image_url"]["url"] for part in request["messages"][0]["content"]
    ]
    assert parts == [PHOTO, PIXEL, "Which?"]


# What comes back


async def test_cached_tokens_are_part_of_the_prompts(provider: str) -> None:
    task = a_task("long " * 100)
    async with calling(provider, said()) as side:
        plain = await side.ask(task)
    async with calling(provider, said(cached_tokens=50)) as side:
        cached = await side.ask(task)
        streamed = await side.ask(task, Heard())
    assert known_usage(cached).cached_tokens == 50
    assert cached.usage == known_usage(plain).model_copy(update={"cached_tokens": 50})
    assert streamed.usage == cached.usage


# fate, result, requests, may be paid twice; the same whole and streamed
FATES: list[tuple[FaultKind | Fault, str, int, bool]] = [
    ("length", "ok", 1, False),
    (Fault(kind="drip", seconds=0.02), "ok", 1, False),
    ("content_filter", "refused", 1, False),
    ("content_policy", "refused", 1, False),
    ("bad_request", "bad_request", 1, False),
    ("context_length_exceeded", "context_length_exceeded", 1, False),
    ("too_large", "context_length_exceeded", 1, False),
    ("unauthorized", "unauthorized", 1, False),
    ("forbidden", "unauthorized", 1, False),
    ("model_not_found", "model_not_found", 1, False),
    ("insufficient_quota", "insufficient_quota", 1, False),
    ("rate_limited", "ok", 2, False),
    ("server_error", "ok", 2, False),
    ("unavailable", "ok", 2, False),
    ("overloaded", "ok", 2, False),
    ("error_in_200", "ok", 2, False),
    ("empty", "truncated", 1, False),
    ("huge", "answer_too_large", 1, False),
    # Unknowable: called once more.
    ("gateway_timeout", "ok", 2, True),
    ("close", "ok", 2, True),
    ("garbage", "ok", 2, True),
    ("truncate", "ok", 2, True),
    ("no_finish_reason", "ok", 1, False),
    ("stream_close", "ok", 2, True),
]


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("fate", "result", "requests", "twice"), FATES, ids=repr)
async def test_each_fate_has_its_candidate(
    provider: str,
    is_streamed: bool,
    fate: FaultKind | Fault,
    result: str,
    requests: int,
    twice: bool,
) -> None:
    if provider == "gemini" and (fate == "empty" or (fate == "no_finish_reason" and is_streamed)):
        # An empty answer of Gemini's is mostly gone with the next call, and only its reason ends
        # a stream.
        result, requests, twice = "ok", 2, True
    tell = Heard() if is_streamed else None
    async with calling(provider, Script.of(fate, answer=SAID)) as side:
        candidate = await side.ask(tell=tell)
        assert not side.server.stats.unknown
        assert (candidate.error.code if candidate.error else "ok") == result
        assert (side.server.stats.requests, candidate.attempts) == (requests, requests)
    assert candidate.maybe_paid_twice is twice
    if tell and candidate.ok:
        assert tell.text == candidate.content
        assert len(tell.attempts) == requests
    if fate == "length":
        assert candidate.finish_reason == "length"
        assert candidate.content == SAID[: len(SAID) // 2]
    if fate == "content_filter":
        assert candidate.finish_reason == "content_filter"
        assert known_usage(candidate).prompt_tokens > 0


async def test_the_wait_that_is_asked_for_is_kept(provider: str) -> None:
    late = Fault(kind="rate_limited", headers={"retry-after": "3600"})
    async with calling(provider, Script.of(late)) as side:
        candidate = await side.ask()
        assert side.server.stats.requests == 1
    assert candidate.error is not None
    assert (candidate.error.code, candidate.error.retryable) == ("rate_limited", True)


async def test_a_call_that_hangs_is_made_once_more(provider: str) -> None:
    async with calling(provider, Script.of("hang"), timeout_s=0.5) as side:
        candidate = await side.ask()
        assert side.server.stats.requests == 2
    assert (candidate.ok, candidate.maybe_paid_twice) == (True, True)


# Streams


async def test_a_stream_comes_to_the_same_as_a_whole_answer(provider: str) -> None:
    script = Script.of(answer=SAID, token_ms=1)
    async with calling(provider, script) as side:
        whole = await side.ask()
        tell = Heard()
        streamed = await side.ask(tell=tell)
        first = side.server.stats.first_token_ns
    assert same(whole, streamed)
    assert len(tell.attempts[0]) > 3
    assert tell.text == whole.content
    assert [len(times) for times in first.values()] == [1]


async def test_streamed_calls_come_to_the_same_as_whole_ones(provider: str) -> None:
    calls = (
        ScriptedCall(name="weather", arguments={"city": "Köln", "days": 2}),
        ScriptedCall(name="clock"),
    )
    task = a_task(tools=(WEATHER, CLOCK))
    async with calling(provider, Script.of(calls=calls)) as side:
        whole = await side.ask(task)
        tell = Heard()
        streamed = await side.ask(task, tell)
    assert len(whole.tool_calls) == 2
    assert same(whole, streamed)
    assert tell.text == ""


async def test_text_is_told_while_the_answer_is_being_written(provider: str) -> None:
    hang = Fault(kind="stream_hang", tokens=2)
    async with calling(provider, Script.of(hang, answer=SAID), max_attempts=1) as side:
        begun = asyncio.Event()

        class Telling(Heard):
            async def __call__(self, text: str) -> None:
                await super().__call__(text)
                if SAID.startswith(self.text) and len(self.text.split()) == 2:
                    begun.set()

        running = asyncio.create_task(side.ask(tell=Telling()))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


BREAKS = ["stream_close", "stream_error", "stream_hang"]


@pytest.mark.parametrize("kind", BREAKS)
async def test_a_stream_that_breaks_off_is_paid_for_and_tried_once_more(
    provider: str, kind: FaultKind
) -> None:
    fault = Fault(kind=kind, tokens=2)
    priced = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}
    async with calling(provider, Script.of(fault, answer=SAID), timeout_s=1, **priced) as side:
        tell = Heard()
        candidate = await side.ask(tell=tell)
        assert side.server.stats.requests == 2
    assert (candidate.content, candidate.maybe_paid_twice, candidate.attempts) == (SAID, True, 2)
    assert len(tell.attempts) == 2, "the reader was not told to begin anew"
    assert SAID.startswith("".join(tell.attempts[0]))
    assert tell.attempts[0]
    assert tell.text == SAID


@pytest.mark.parametrize("kind", BREAKS)
async def test_a_stream_that_breaks_off_twice_is_a_failure(provider: str, kind: FaultKind) -> None:
    fault = Fault(kind=kind, tokens=2)
    async with calling(provider, Script.of(fault, fault, fault, answer=SAID), timeout_s=1) as side:
        candidate = await side.ask(tell=Heard())
        assert side.server.stats.requests == 2
    assert candidate.error is not None
    assert candidate.error.code == ("timeout" if kind == "stream_hang" else "truncated")
    assert not candidate.error.retryable
    assert candidate.cost_usd is None


async def test_nobody_to_read_along_means_no_stream(provider: str) -> None:
    async with calling(provider, said()) as side:
        unheard = TokenPublisher(None, a_task(is_streamed=True))
        assert (await side.ask(tell=unheard)).ok
        assert not side.recorded.request.get("stream")
        assert (await side.ask(tell=Heard())).ok
        assert side.recorded.request["stream"]


async def test_a_server_that_does_not_stream_is_read_whole(provider: str) -> None:
    async with calling(provider, Script.of("stream_unknown", answer=SAID)) as side:
        tell = Heard()
        candidate = await side.ask(tell=tell)
    assert (candidate.content, candidate.attempts) == (SAID, 1)
    assert tell.attempts == [[SAID]]


async def test_no_call_is_made_on_a_connection_that_had_a_stream(provider: str) -> None:
    async with calling(provider, said()) as side:
        for tell, connections in [(None, 1), (None, 1), (Heard(), 2), (Heard(), 3), (None, 3)]:
            assert (await side.ask(tell=tell)).ok
            assert side.server.stats.connections == connections
