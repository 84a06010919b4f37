"""Models that do not take what others do: a refusal is found out once, for each protocol."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from nats.js.kv import KeyValue

from fusewire import provision
from fusewire.bus import Bus
from fusewire.contracts import Candidate, Message, Sampling, Task
from fusewire.settings import Nats, RemoteModel, Settings
from fusewire.testing.factories import make_task
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.model_script import (
    CLAUDE_5,
    DEEPSEEK,
    KIMI,
    REASONING,
    ModelScript,
    Refusal,
    Script,
)
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import DIALECT_BUCKET, topology
from fusewire_cli.client import Client
from fusewire_worker_remote.dialects import DialectStore, KvDialects, MemoryDialects
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger_kv import KvLedger

MakeBus = Callable[..., Awaitable[Bus]]
MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FULL = Sampling(
    max_tokens=50, temperature=0.0, top_p=0.5, seed=7, stop=("END",), response_schema=SCHEMA
)
NAMES = {
    "openai": ("max_tokens", "temperature", "top_p", "seed", "stop", "response_format"),
    "mistral": ("max_tokens", "temperature", "top_p", "random_seed", "stop", "response_format"),
    "anthropic": ("temperature", "stop_sequences", "output_config"),
    "gemini": (
        "maxOutputTokens",
        "temperature",
        "topP",
        "seed",
        "stopSequences",
        "responseJsonSchema",
    ),
}
"""What each protocol calls FULL's parameters; Anthropic wants a limit, no seed, and one of two."""
CASES = [(provider, name) for provider, names in NAMES.items() for name in names]


def a_task(number: int = 1, **changes: Any) -> Task:
    return make_task(
        task_id=f"f1-0-a{number}",
        model="big",
        tier="remote",
        messages=(
            Message(role="system", content="Be brief."),
            Message(role="user", content="Where is the Louvre?"),
        ),
        deadline_at=datetime.now(UTC) + timedelta(seconds=200),
        **{"sampling": FULL, **changes},
    )


def generator(
    server: ModelServer, provider: str, dialects: DialectStore, **settings: Any
) -> RemoteGenerate:
    address = server.base_url_of(provider)
    model = RemoteModel(kind="remote", provider=provider, base_url=address, model="big", **settings)
    return RemoteGenerate(
        {"big": model},
        KvLedger(MemoryKeyValue()),
        dialects,
        clock=lambda: datetime.now(UTC),
        sleep=asyncio.sleep,
        rng=random.Random(0).random,
        worker_id="w",
    )


async def asked(
    server: ModelServer, provider: str, *tasks: Task, **settings: Any
) -> list[Candidate]:
    """What comes back of these tasks, one after the other."""
    generate = generator(
        server, provider, settings.pop("dialects", None) or MemoryDialects(), **settings
    )
    try:
        return [await generate.generate(task) for task in tasks]
    finally:
        await generate.aclose()


@pytest.mark.parametrize(("provider", "parameter"), CASES)
async def test_a_refused_parameter_is_left_out_and_never_sent_again(
    model_server: ModelServer, provider: str, parameter: str
) -> None:
    refuses = (Refusal(parameter=parameter, is_named=provider != "anthropic"),)
    model_server.set_script(Script(models={"*": ModelScript(refuses=refuses)}, recording=True))
    first, second = await asked(model_server, provider, a_task(1), a_task(2))

    assert first.error is None, first.error
    assert second.error is None, second.error
    # The second is not refused any more; a schema is asked for as a JSON object, then in words.
    is_form = parameter in ("response_format", "output_config", "responseJsonSchema")
    assert model_server.stats.requests in ((3, 4) if is_form else (3,))
    sent = model_server.stats.recorded[-1].body
    assert first.attempts + second.attempts == model_server.stats.requests
    assert parameter not in {**sent, **sent.get("generationConfig", {})}
    if is_form:
        assert "satisfies this schema" in str(sent)


@pytest.mark.parametrize(
    ("refuses", "provider"),
    [(REASONING, "openai"), (CLAUDE_5, "anthropic"), (KIMI, "openai"), (DEEPSEEK, "openai")],
)
async def test_models_of_today_answer_and_the_second_call_is_not_refused(
    model_server: ModelServer, refuses: tuple[Refusal, ...], provider: str
) -> None:
    model_server.set_script(Script(models={"*": ModelScript(refuses=refuses)}, recording=True))
    first, second = await asked(model_server, provider, a_task(1), a_task(2))
    refused = model_server.stats.requests - 2

    assert (first.error, second.error) == (None, None)
    assert 1 <= refused <= len(refuses)
    sent = model_server.stats.recorded[-1].body
    if refuses == REASONING:
        # The limit is renamed and not lost.
        assert sent["max_completion_tokens"] == 50


async def test_a_system_prompt_that_is_refused_comes_from_the_developer(
    model_server: ModelServer,
) -> None:
    message = (
        "Unsupported value: 'messages[0].role' does not support 'system' with this model; "
        "use 'developer'."
    )
    refuses = (Refusal(parameter="system", message=message, is_named=False),)
    model_server.set_script(Script(models={"*": ModelScript(refuses=refuses)}, recording=True))
    (found,) = await asked(model_server, "openai", a_task())

    assert found.error is None
    assert model_server.stats.recorded[-1].body["messages"][0] == {
        "role": "developer",
        "content": "Be brief.",
    }


async def test_what_cannot_be_left_out_is_the_answer(model_server: ModelServer) -> None:
    refuses = (Refusal(parameter="messages", message="Invalid 'messages': too many images."),)
    model_server.set_script(Script(models={"*": ModelScript(refuses=refuses)}))
    (found,) = await asked(model_server, "openai", a_task())

    assert found.error is not None
    assert (found.error.code, model_server.stats.requests) == ("bad_request", 1)


@pytest.mark.parametrize(
    ("parameter", "message", "code"),
    [
        (
            "max_tokens",
            "max_tokens is too large: 50. This model supports at most 40 completion tokens.",
            "bad_request",
        ),
        ("stop", "Invalid 'stop': maximum of 4 sequences", "bad_request"),
        ("temperature", "temperature: must be less than or equal to 1", "bad_request"),
        (
            "max_tokens",
            "This model's maximum context length is 40 tokens; 'max_tokens' is 50.",
            "context_length_exceeded",
        ),
    ],
)
async def test_a_wrong_value_is_no_refusal_of_its_parameter(
    model_server: ModelServer, parameter: str, message: str, code: str
) -> None:
    refuses = (Refusal(parameter=parameter, message=message, is_named=False),)
    model_server.set_script(Script(models={"*": ModelScript(refuses=refuses)}))
    dialects = MemoryDialects()
    (found,) = await asked(model_server, "openai", a_task(), dialects=dialects)

    assert found.error is not None
    assert (found.error.code, model_server.stats.requests) == (code, 1)
    assert (
        dialects.of(
            RemoteModel(kind="remote", base_url=model_server.base_url, model="big")
        ).describe()
        == ""
    )


async def test_a_server_that_goes_on_refusing_is_left(model_server: ModelServer) -> None:
    names = (*NAMES["openai"], "max_completion_tokens", "model")
    model_server.set_script(
        Script(models={"*": ModelScript(refuses=tuple(Refusal(parameter=name) for name in names))})
    )
    (found,) = await asked(model_server, "openai", a_task())

    assert found.error is not None
    assert found.error.code == "bad_request"
    assert model_server.stats.requests <= 10


@pytest.mark.parametrize("provider", list(NAMES))
async def test_nothing_is_sent_that_nobody_gave(model_server: ModelServer, provider: str) -> None:
    model_server.set_script(Script(recording=True))
    (found,) = await asked(model_server, provider, a_task(sampling=Sampling()))

    assert found.error is None
    sent = model_server.stats.recorded[-1].body
    # Anthropic's requests need a limit.
    assert set(sent) - {"max_tokens"} <= {
        "model",
        "messages",
        "system",
        "contents",
        "systemInstruction",
    }
    assert ("max_tokens" in sent) == (provider == "anthropic")


@pytest.mark.parametrize("provider", list(NAMES))
async def test_the_configuration_adds_and_drops(model_server: ModelServer, provider: str) -> None:
    model_server.set_script(Script(recording=True))
    dropped = NAMES[provider][1]
    (found,) = await asked(
        model_server,
        provider,
        a_task(sampling=Sampling(temperature=0.5, stop=("END",))),
        drop=[dropped, "temperature"],
    )

    assert found.error is None
    sent = model_server.stats.recorded[-1].body
    assert not {dropped, "temperature"} & {*sent, *sent.get("generationConfig", {})}


async def test_further_parameters_are_sent_as_they_are(model_server: ModelServer) -> None:
    model_server.set_script(Script(recording=True))
    await asked(model_server, "openai", a_task(), params={"reasoning_effort": "low"})

    assert model_server.stats.recorded[-1].body["reasoning_effort"] == "low"


@pytest.mark.parametrize("provider", list(NAMES))
async def test_a_model_may_always_be_asked_for_a_stream(
    model_server: ModelServer, provider: str
) -> None:
    model_server.set_script(Script(recording=True))
    (found,) = await asked(model_server, provider, a_task(sampling=Sampling()), always_stream=True)

    assert found.content is not None
    assert model_server.stats.recorded[-1].request["stream"] is True


async def test_thought_and_fences_are_no_part_of_an_answer(model_server: ModelServer) -> None:
    answer = '```json\n{"city": "Paris"}\n```'
    rule = {"match": ".", "answer": answer}
    model_server.set_script(Script.of(thinks="The Louvre is in Paris.", rules=[rule]))
    (found,) = await asked(model_server, "openai", a_task())

    assert (found.content, found.reasoning) == ('{"city": "Paris"}', "The Louvre is in Paris.")


async def test_what_one_worker_finds_another_knows(
    model_server: ModelServer, make_bus: MakeBus
) -> None:
    model_server.set_script(Script(models={"*": ModelScript(refuses=REASONING)}))
    bus = await make_bus(models={"big": "remote"})
    kv: KeyValue = await bus.key_value(DIALECT_BUCKET)
    await asked(model_server, "openai", a_task(1), dialects=KvDialects(kv))
    before = model_server.stats.requests
    other = KvDialects(await bus.key_value(DIALECT_BUCKET))
    model = RemoteModel(kind="remote", base_url=model_server.base_url, model="big")
    await other.load([model])
    await asked(model_server, "openai", a_task(2), dialects=other)

    assert model_server.stats.requests == before + 1
    assert other.of(model).renamed == {"max_tokens": "max_completion_tokens"}


async def test_without_the_bucket_s_server_findings_last_as_long_as_the_process(
    model_server: ModelServer, nats: NatsServer
) -> None:
    bus = Bus("test", Nats(url=nats.url))
    await bus.connect(timeout_s=120)
    await provision.apply(bus.js, topology({"big": "remote"}, ["default"]))
    dialects = KvDialects(await bus.key_value(DIALECT_BUCKET))
    await bus.stop()
    model_server.set_script(Script(models={"*": ModelScript(refuses=KIMI)}))
    first, second = await asked(model_server, "openai", a_task(1), a_task(2), dialects=dialects)

    assert (first.error, second.error, model_server.stats.requests) == (None, None, 3)


@pytest.mark.parametrize("mode", ["best-of", "merge", "debate"])
@pytest.mark.parametrize(
    ("judge", "provider"),
    [
        (ModelScript(refuses=REASONING), "openai"),
        (ModelScript(refuses=CLAUDE_5), "anthropic"),
        (ModelScript(refuses=DEEPSEEK), "openai"),
        (ModelScript(refuses=KIMI, thinks="Let me see, which of them is right?" * 40), "openai"),
    ],
    ids=["gpt-5", "claude-5", "deepseek", "thinking"],
)
async def test_any_model_judges_without_degradation(
    make_settings: MakeSettings,
    stack: Running,
    model_server: ModelServer,
    judge: ModelScript,
    provider: str,
    mode: str,
) -> None:
    model_server.set_script(Script(models={"judge": judge}, recording=True))
    address = model_server.base_url_of(provider)
    models = {"j": {"kind": "remote", "provider": provider, "base_url": address, "model": "judge"}}
    async with stack(
        make_settings(models=models, pool={"guard": False, "debate_families": 1})
    ) as client:
        body = {"prompt": "Where is the Louvre?", "mode": mode, "deadline_s": 250}
        outcomes = []
        for number in (1, 2):
            before = len(model_server.stats.recorded)
            outcomes.append(await client.submit({**body, "custom_id": f"q{number}"}, wait_s=250))
        sent = [one for one in model_server.stats.recorded[before:] if one.model == "judge"]

    for outcome in outcomes:
        assert (outcome["is_degraded"], outcome["degraded_reasons"]) == (False, []), outcome
        assert outcome["status"] in ("fused", "selected", "voted")
    # No call of the second fusion held what the first had found to be refused.
    refuses = judge.refuses
    assert not [one.body for one in sent if any(refused.concerns(one.body) for refused in refuses)]
