"""RemoteGenerate on a fake provider's socket: what each fault comes to, and in how many calls."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from fusewire.contracts import Message, Sampling, Task, Tool, ToolCall
from fusewire.errors import Transient
from fusewire.settings import RemoteModel
from fusewire.testing.factories import known_usage
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.model_script import Fault, FaultKind, ModelScript, Script, ScriptedCall
from fusewire.testing.model_server import ModelServer
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger import EntryBusy
from fusewire_worker_remote.ledger_kv import KvLedger
from fusewire_worker_remote.providers import HttpRequest
from fusewire_worker_remote.transport import Transport

CANARY = "xyzzy-canary-7391"
KEY = "sk-secret-5550123"
LATER = Fault(kind="rate_limited", headers={"retry-after": "3600"})
SOON = Fault(kind="rate_limited", headers={"retry-after": "2"})
SLOW = Fault(kind="drip", seconds=60)
QUICK_DRIP = Fault(kind="drip", seconds=0.02)


def now() -> datetime:
    return datetime.now(UTC)


def a_task(task_id: str = "f1-0-a", *, deadline_s: float = 250, **changes: Any) -> Task:
    given: dict[str, Any] = {
        "task_id": task_id,
        "fusion_id": "f1",
        "round": 0,
        "call": "a",
        "kind": "answer",
        "member": "one",
        "model": "big",
        "tier": "remote",
        "tenant": "t",
        "messages": (Message(role="user", content=f"Say {CANARY}"),),
        "sampling": Sampling(),
        "residency": "any",
        "priority": "normal",
        "deadline_at": now() + timedelta(seconds=deadline_s),
        **changes,
    }
    return Task(**given)


class Waits:
    """A sleep that notes what it was asked for and does not."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@asynccontextmanager
async def generating(
    server_url: str, *, waits: Callable[[float], Awaitable[None]] | None = None, **model: Any
) -> AsyncIterator[tuple[RemoteGenerate, MemoryKeyValue]]:
    settings = {
        "kind": "remote",
        "base_url": server_url,
        "model": "big-1",
        "timeout_s": 20,
        **model,
    }
    kv = MemoryKeyValue()
    generate = RemoteGenerate(
        {"big": RemoteModel.model_validate(settings)},
        KvLedger(kv),
        clock=now,
        sleep=waits or Waits(),
        rng=random.Random(0).random,
        worker_id="w1",
    )
    try:
        yield generate, kv
    finally:
        await generate.aclose()


# fates of the requests, what the candidate says ("ok" or an error code), requests,
# may be paid twice, later worthwhile
FATES: list[tuple[list[FaultKind | Fault], str, int, bool, bool]] = [
    ([], "ok", 1, False, False),
    ([QUICK_DRIP], "ok", 1, False, False),
    (["length"], "ok", 1, False, False),
    # It cost nothing: call again, up to max_attempts.
    ([SOON], "ok", 2, False, False),
    (["rate_limited"] * 3, "rate_limited", 3, False, True),
    (["server_error"] * 2, "ok", 3, False, False),
    (["server_error"] * 3, "server_error", 3, False, True),
    (["bad_gateway", "unavailable"], "ok", 3, False, False),
    (["overloaded"] * 3, "server_error", 3, False, True),
    (["error_in_200"], "ok", 2, False, False),
    (["error_in_200"] * 3, "server_error", 3, False, True),
    # The wait would end after the deadline: stop now.
    ([LATER], "rate_limited", 1, False, True),
    # Nothing would change: stop.
    (["insufficient_quota"], "insufficient_quota", 1, False, False),
    (["context_length_exceeded"], "context_length_exceeded", 1, False, False),
    (["content_policy"], "refused", 1, False, False),
    (["content_filter"], "refused", 1, False, False),
    (["unauthorized"], "unauthorized", 1, False, False),
    (["forbidden"], "unauthorized", 1, False, False),
    (["model_not_found"], "model_not_found", 1, False, False),
    (["gone"], "model_not_found", 1, False, False),
    (["bad_request"], "bad_request", 1, False, False),
    (["empty"], "truncated", 1, False, False),
    (["huge"], "answer_too_large", 1, False, False),
    ([Fault(kind="huge", bytes=1_000_000)], "answer_too_large", 1, False, False),
    # The result is unknowable: call once more, never twice more, and say so.
    (["close"], "ok", 2, True, False),
    (["close"] * 3, "truncated", 2, True, False),
    (["truncate"], "ok", 2, True, False),
    (["truncate"] * 3, "truncated", 2, True, False),
    (["garbage"], "ok", 2, True, False),
    (["garbage"] * 3, "truncated", 2, True, False),
    # What is whole JSON is whole.
    (["no_finish_reason"], "ok", 1, False, False),
    (["gateway_timeout"], "ok", 2, True, False),
    (["gateway_timeout"] * 3, "timeout", 2, True, False),
    # Both kinds in one task.
    (["rate_limited", "truncate"], "ok", 3, True, False),
    (["truncate", "rate_limited"], "ok", 3, True, False),
    (["truncate", "unauthorized"], "unauthorized", 2, False, False),
    (["rate_limited", "close", "close"], "truncated", 3, True, False),
]


@pytest.mark.parametrize(("fates", "result", "requests", "twice", "later"), FATES, ids=repr)
async def test_each_fault_has_its_candidate_and_its_number_of_calls(
    fates: list[FaultKind | Fault], result: str, requests: int, twice: bool, later: bool
) -> None:
    async with (
        ModelServer(Script.of(*fates)) as server,
        generating(server.base_url) as (generate, _),
    ):
        task = a_task()
        with capture_logs() as logs:
            candidate = await generate.generate(task)
        assert (candidate.error.code if candidate.error else "ok") == result
        assert server.stats.requests == requests
        assert candidate.attempts == requests
        assert candidate.maybe_paid_twice is twice
        assert server.stats.by_key == {task.task_id: requests}
        assert candidate.ok is (result == "ok")
        if candidate.error:
            assert candidate.error.retryable is later
            assert CANARY not in candidate.model_dump_json()
        assert CANARY not in repr(logs)

        with pytest.raises(EntryBusy):
            await generate.generate(task)
        assert server.stats.requests == requests, "a task that had its candidate was called again"


@pytest.mark.parametrize(
    ("fates", "requests"), [(["hang"], 2), (["hang", "hang"], 2), ([SLOW], 2)], ids=repr
)
async def test_a_call_that_is_never_answered_is_made_once_more(
    fates: list[FaultKind | Fault], requests: int
) -> None:
    priced: dict[str, Any] = {"model": "gpt-4o-mini", "price_provider": "openai"}
    async with (
        ModelServer(Script.of(*fates)) as server,
        generating(server.base_url, timeout_s=1, **priced) as (generate, _),
    ):
        candidate = await generate.generate(a_task())
        assert server.stats.requests == requests
        assert candidate.maybe_paid_twice
        assert candidate.ok is (len(fates) == 1)
        if candidate.error:
            assert (candidate.error.code, candidate.error.retryable) == ("timeout", False)
            assert candidate.cost_usd is None


async def test_with_one_attempt_nothing_is_ever_called_twice() -> None:
    async with (
        ModelServer(Script.of("truncate")) as server,
        generating(server.base_url, max_attempts=1) as (g, _),
    ):
        candidate = await g.generate(a_task())
        assert candidate.error is not None
        assert server.stats.requests == 1
        assert not candidate.maybe_paid_twice


async def test_the_deadline_ends_a_call() -> None:
    async with (
        ModelServer(Script.of("hang")) as server,
        generating(server.base_url) as (generate, _),
    ):
        candidate = await generate.generate(a_task(deadline_s=1))
        assert candidate.error is not None
        assert candidate.error.code == "deadline_exceeded"
        assert server.stats.requests == 1
        assert not candidate.maybe_paid_twice


async def test_a_task_past_its_deadline_is_not_called() -> None:
    async with ModelServer() as server, generating(server.base_url) as (generate, _):
        candidate = await generate.generate(a_task(deadline_s=-1))
        assert candidate.error is not None
        assert candidate.error.code == "deadline_exceeded"
        assert server.stats.requests == 0


async def test_the_deadline_ends_the_wait_for_a_free_slot() -> None:
    async with (
        ModelServer(Script.of("hang")) as server,
        generating(server.base_url, max_concurrency=1) as (generate, _),
    ):
        holding = asyncio.create_task(generate.generate(a_task("f1-0-a")))
        await server.wait_for_requests(1)
        candidate = await generate.generate(a_task("f1-0-b", deadline_s=0.2))
        assert candidate.error is not None
        assert candidate.error.code == "deadline_exceeded"
        assert server.stats.requests == 1
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


async def test_the_wait_that_a_provider_asks_for_is_kept() -> None:
    waits = Waits()
    async with (
        ModelServer(Script.of(SOON)) as server,
        generating(server.base_url, waits=waits) as (generate, _),
    ):
        assert (await generate.generate(a_task())).ok
        assert len(waits.seconds) == 1
        assert waits.seconds[0] >= 2


async def test_no_server_is_a_connect_error_and_costs_nothing() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        async with generating(f"http://127.0.0.1:{port}/v1") as (generate, _):
            candidate = await generate.generate(a_task())
    assert candidate.error is not None
    assert (candidate.error.code, candidate.error.retryable) == ("connect_error", True)
    assert (candidate.attempts, candidate.cost_usd, candidate.maybe_paid_twice) == (3, 0.0, False)


async def test_an_edge_only_task_is_refused_without_a_byte_sent_or_a_word_stored() -> None:
    async with (
        ModelServer(Script(recording=True)) as server,
        generating(server.base_url) as (generate, kv),
    ):
        with capture_logs() as logs:
            candidate = await generate.generate(a_task(residency="edge-only"))
        assert candidate.error is not None
        assert candidate.error.code == "bad_request"
        assert server.received_bytes == b""
        assert server.stats.connections == 0
        assert kv._entries == {}
        assert [line["event"] for line in logs] == ["remote.edge_only_refused"]
        assert CANARY not in repr(logs) + candidate.model_dump_json()


async def test_a_model_that_is_not_configured_is_said_so() -> None:
    async with ModelServer() as server, generating(server.base_url) as (generate, _):
        candidate = await generate.generate(a_task(model="other"))
        assert candidate.error is not None
        assert candidate.error.code == "model_not_found"
        assert server.stats.requests == 0


async def test_a_missing_key_is_named_and_nothing_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FAKE_KEY", raising=False)
    async with (
        ModelServer() as server,
        generating(server.base_url, api_key_env="FAKE_KEY") as (generate, _),
    ):
        candidate = await generate.generate(a_task())
        assert candidate.error is not None
        assert candidate.error.code == "unauthorized"
        assert "FAKE_KEY" in candidate.error.message
        assert server.stats.requests == 0


async def test_the_key_goes_to_the_provider_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    script = Script.of("server_error", recording=True)
    async with (
        ModelServer(script) as server,
        generating(server.base_url, api_key_env="FAKE_KEY") as (generate, kv),
    ):
        with capture_logs() as logs:
            candidate = await generate.generate(a_task())
        assert f"Authorization: Bearer {KEY}" in server.stats.recorded[0].head
        assert KEY.encode() in server.received_bytes
        stored = [entry.value for entry in kv._entries.values()]
        assert KEY not in repr((logs, candidate, stored))


async def test_a_redirect_is_not_followed() -> None:
    async with ModelServer(Script(recording=True)) as elsewhere:
        moved = Fault(
            kind="redirect", headers={"location": f"{elsewhere.base_url}/chat/completions"}
        )
        async with (
            ModelServer(Script.of(moved)) as server,
            generating(server.base_url) as (generate, _),
        ):
            candidate = await generate.generate(a_task())
        assert candidate.error is not None
        assert candidate.error.code == "bad_request"
        assert elsewhere.stats.connections == 0


async def test_proxy_variables_are_not_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ModelServer() as proxy, ModelServer() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with generating(server.base_url) as (generate, _):
            assert (await generate.generate(a_task())).ok
        assert (proxy.stats.connections, server.stats.requests) == (0, 1)


async def test_no_more_calls_are_in_flight_than_the_model_allows() -> None:
    script = Script.of(latency_ms=20)
    async with (
        ModelServer(script) as server,
        generating(server.base_url, max_concurrency=4) as (generate, _),
    ):
        candidates = await asyncio.gather(
            *(generate.generate(a_task(f"f{i}-0-a")) for i in range(20))
        )
        assert all(c.ok for c in candidates)
        assert server.stats.peak_by_model["big-1"] == 4
        assert server.stats.connections <= 4


async def test_the_same_task_delivered_while_it_runs_is_busy() -> None:
    async with (
        ModelServer(Script.of("hang")) as server,
        generating(server.base_url) as (generate, _),
    ):
        first = asyncio.create_task(generate.generate(a_task()))
        await server.wait_for_requests(1)
        with pytest.raises(EntryBusy):
            await generate.generate(a_task())
        assert server.stats.requests == 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_response_above_the_limit_is_not_read_on() -> None:
    async with ModelServer(Script.of(Fault(kind="huge", bytes=100_000))) as server:
        transport = Transport(max_body_bytes=50_000)
        request = HttpRequest(f"{server.base_url}/chat/completions", {}, {"model": "m"})
        failure = await transport.post(request, 20)
        await transport.aclose()
    assert isinstance(failure, Failure)
    assert (failure.code, failure.retryable, failure.billed) == ("answer_too_large", False, True)


async def test_a_cancelled_call_frees_its_slot() -> None:
    script = Script.of("hang")
    async with (
        ModelServer(script) as server,
        generating(server.base_url, max_concurrency=1) as (generate, _),
    ):
        hanging = asyncio.create_task(generate.generate(a_task("f1-0-a")))
        await server.wait_for_requests(1)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert (await generate.generate(a_task("f1-0-b"))).ok


async def test_who_waits_to_call_again_leaves_its_place_to_others() -> None:
    is_waiting, may_go_on = asyncio.Event(), asyncio.Event()

    async def wait(_: float) -> None:
        is_waiting.set()
        await may_go_on.wait()

    script = Script(models={"*": ModelScript(faults=(Fault(kind="server_error"),))})
    async with (
        ModelServer(script) as server,
        generating(server.base_url, waits=wait, max_concurrency=1) as (both, _),
    ):
        first = asyncio.create_task(both.generate(a_task("f1-0-a")))
        await is_waiting.wait()
        assert (await both.generate(a_task("f1-0-b"))).ok
        may_go_on.set()
        assert (await first).attempts == 2


async def test_who_waits_to_call_again_when_its_worker_is_told_to_stop_does_not() -> None:
    """It is another worker's then: this one would end in the middle of a call that is paid for."""
    is_waiting, may_go_on = asyncio.Event(), asyncio.Event()

    async def wait(_: float) -> None:
        is_waiting.set()
        await may_go_on.wait()

    script = Script(models={"*": ModelScript(faults=(Fault(kind="server_error"),))})
    async with (
        ModelServer(script) as server,
        generating(server.base_url, waits=wait) as (generate, _),
    ):
        call = asyncio.create_task(generate.generate(a_task()))
        await is_waiting.wait()
        generate.stop()
        may_go_on.set()
        with pytest.raises(Transient, match="begins no call"):
            await call
        assert server.stats.requests == 1


async def test_what_nobody_counted_is_unknown_and_so_is_the_sum() -> None:
    async with (
        ModelServer(Script.of("close")) as server,
        generating(server.base_url) as (generate, _),
    ):
        candidate = await generate.generate(a_task())
    assert candidate.ok
    assert (candidate.usage, candidate.cost_usd, candidate.maybe_paid_twice) == (None, None, True)


async def test_usage_is_counted_over_the_calls_that_were_paid_for() -> None:
    async with (
        ModelServer(Script.of("interrupted")) as server,
        generating(server.base_url) as (twice, _),
    ):
        both = await twice.generate(a_task())
        assert server.stats.requests == 2
    async with ModelServer() as server, generating(server.base_url) as (once, _):
        one = await once.generate(a_task())
    assert known_usage(both).completion_tokens == 2 * known_usage(one).completion_tokens
    assert known_usage(both).prompt_tokens == 2 * known_usage(one).prompt_tokens


async def test_cost_comes_from_the_price_list_and_is_unknown_on_loopback() -> None:
    async with ModelServer() as server:
        async with generating(server.base_url, model="gpt-4o-mini", price_provider="openai") as (
            generate,
            _,
        ):
            priced = await generate.generate(a_task())
        async with generating(server.base_url, model="gpt-4o-mini") as (generate, _):
            unpriced = await generate.generate(a_task())
    assert priced.cost_usd is not None
    assert priced.cost_usd > 0
    assert priced.price_version is not None
    assert (unpriced.cost_usd, unpriced.price_version) == (None, None)


async def test_tool_calls_are_the_answer() -> None:
    tools = (Tool(name="weather", description="Now.", parameters={"type": "object"}),)
    asked = ToolCall(id="abc123XYZ", name="weather", arguments='{"city":"Köln"}')
    turns = (
        Message(role="user", content="Weather?"),
        Message(role="assistant", content="", tool_calls=(asked,)),
        Message(role="tool", content="21 °C", tool_call_id=asked.id),
        Message(role="user", content="And in Rome?"),
    )
    task = a_task(tools=tools, tool_choice="weather", messages=turns)
    script = Script.of(
        calls=(ScriptedCall(name="weather", arguments={"city": "Rome"}),), recording=True
    )
    async with ModelServer(script) as server, generating(server.base_url) as (generate, _):
        candidate = await generate.generate(task)
        (sent,) = server.stats.recorded
    assert candidate.ok
    assert (candidate.content, candidate.finish_reason) == (None, "tool_calls")
    assert candidate.tool_calls == (
        ToolCall(id="call_0", name="weather", arguments='{"city": "Rome"}'),
    )
    assert known_usage(candidate).completion_tokens > 1
    assert sent.body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert [tool["function"]["name"] for tool in sent.body["tools"]] == ["weather"]
    assert [turn["role"] for turn in sent.body["messages"]] == ["user", "assistant", "tool", "user"]
    assert (
        sent.body["messages"][1]["tool_calls"][0]["id"]
        == sent.body["messages"][2]["tool_call_id"]
        == asked.id
    )


@pytest.mark.parametrize(
    ("calls", "result"),
    [
        ([ScriptedCall(name="")], "truncated"),
        ([ScriptedCall(name="big", arguments="x" * 1_000_000)], "answer_too_large"),
        ([ScriptedCall(name="many")] * 15_000, "answer_too_large"),
    ],
    ids=["no name", "long arguments", "many"],
)
async def test_calls_that_are_no_answer_are_paid_for_once(
    calls: list[ScriptedCall], result: str
) -> None:
    task = a_task(tools=(Tool(name="weather"),))
    async with (
        ModelServer(Script.of(calls=calls)) as server,
        generating(server.base_url) as (generate, _),
    ):
        candidate = await generate.generate(task)
        assert server.stats.requests == 1
    assert not candidate.ok
    assert candidate.error is not None
    assert candidate.error.code == result


async def test_a_key_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_KEY", raising=False)
    async with (
        ModelServer() as server,
        generating(server.base_url, api_key_env="FAKE_KEY") as (generate, _),
    ):
        with capture_logs() as logs:
            candidate = await generate.generate(a_task())
        assert server.stats.requests == 0
    assert candidate.error is not None
    assert (candidate.error.code, candidate.error.param, candidate.attempts) == (
        "unauthorized",
        "FAKE_KEY",
        0,
    )
    assert [(one["event"], one["variable"]) for one in logs] == [("remote.key_not_set", "FAKE_KEY")]
