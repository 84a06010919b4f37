"""Breaker, limit of concurrency and retry budget, on a fake provider's socket, in model time."""

import asyncio
import heapq
import itertools
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from fusewire import metrics
from fusewire.contracts import Candidate, Message, Sampling, Task
from fusewire.errors import Transient
from fusewire.settings import RemoteModel, Settings
from fusewire.testing.eventually import eventually
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.model_script import Fault, FaultKind, ModelScript, Script
from fusewire.testing.model_server import ModelServer
from fusewire_cli.client import Client
from fusewire_worker_remote import endpoint
from fusewire_worker_remote.breaker import Breaker, BreakerTerms
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger import LedgerEntry
from fusewire_worker_remote.ledger_kv import KvLedger

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
EPOCH = datetime(2026, 11, 30, 12, tzinfo=UTC)
KEY = "sk-secret-5550123"
HOUR_S = 3600.0
TOGETHER_S = 0.2
numbers = itertools.count()


class ModelTime:
    """A clock that stands still until it is put forward, and the sleeps by it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleeps: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def timer(self) -> float:
        return self.now_s

    def clock(self) -> datetime:
        return EPOCH + timedelta(seconds=self.now_s)

    async def sleep(self, seconds: float) -> None:
        end = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleeps, (self.now_s + seconds, next(self._numbers), end))
        await end

    async def run(self, *calls: "asyncio.Future[Candidate]", seconds: float = 1e9) -> None:
        """Put the clock forward to each end of a sleep, until calls have ended or time is over."""
        until_s = self.now_s + seconds
        while not calls or not all(call.done() for call in calls):
            # Real calls are under way; nothing but their ends, and sleeps, lets time pass.
            for _ in range(20):
                await asyncio.sleep(0.001)
                if calls and all(call.done() for call in calls):
                    return
            if not self._sleeps or self._sleeps[0][0] > until_s:
                if seconds < 1e9:
                    self.now_s = until_s
                    return
                continue
            # Those that end at nearly the same time end together: each turn takes real time.
            together_s = self._sleeps[0][0] + TOGETHER_S
            while self._sleeps and self._sleeps[0][0] <= together_s:
                self.now_s, _, end = heapq.heappop(self._sleeps)
                if not end.done():
                    end.set_result(None)


class Worker:
    """A worker on model time. Its models are at one server, `model` by their own names."""

    def __init__(
        self,
        server_url: str,
        time: ModelTime,
        models: Collection[str] = ("a",),
        *,
        over: Collection[str] = (),
        **settings: Any,
    ) -> None:
        self.time = time
        self.kv = MemoryKeyValue()

        async def lookup(fusion_id: str, round_: int, calls: Collection[str]) -> Collection[str]:
            return calls if fusion_id in over else ()

        self.generate = RemoteGenerate(
            {
                name: RemoteModel.model_validate(
                    {"kind": "remote", "base_url": server_url, "model": name, **settings}
                )
                for name in models
            },
            KvLedger(self.kv),
            lookup=lookup,
            clock=time.clock,
            sleep=time.sleep,
            rng=random.Random(0).random,
            timer=time.timer,
            worker_id="w1",
        )

    def begin(self, model: str = "a", deadline_s: float = 60, **fields: Any) -> asyncio.Future[Any]:
        """Begin a task of its own."""
        number = next(numbers)
        task = Task(
            task_id=f"f{number}-0-a",
            fusion_id=fields.pop("fusion_id", f"f{number}"),
            round=0,
            call="a",
            kind="answer",
            member=model,
            model=model,
            tier="remote",
            tenant="t",
            messages=(Message(role="user", content="Why?"),),
            sampling=Sampling(),
            residency="any",
            priority=fields.pop("priority", "normal"),
            deadline_at=self.time.clock() + timedelta(seconds=deadline_s),
        )
        return asyncio.ensure_future(self.generate.generate(task))

    async def ask(self, model: str = "a", count: int = 1, **fields: Any) -> list[Candidate]:
        """The candidates of tasks that begin together."""
        calls = [self.begin(model, **fields) for _ in range(count)]
        await self.time.run(*calls)
        return [call.result() for call in calls]

    @property
    def entries(self) -> list[LedgerEntry]:
        """What the ledger holds."""
        return [LedgerEntry.decode(entry.value or b"") for entry in self.kv._entries.values()]


@asynccontextmanager
async def working(
    script: Script, models: Collection[str] = ("a",), **settings: Any
) -> AsyncIterator[tuple[Worker, ModelServer]]:
    async with ModelServer(script) as server:
        worker = Worker(server.base_url, ModelTime(), models, **settings)
        try:
            yield worker, server
        finally:
            await worker.generate.aclose()


def script(*faults: FaultKind | Fault, models: str = "a", **fields: Any) -> Script:
    """These models meet the faults over and over; all others answer."""
    fates = tuple(f if isinstance(f, Fault) else Fault(kind=f) for f in faults)
    failing = ModelScript(faults=fates, repeat_faults=True, **fields)
    return Script(models=dict.fromkeys(models, failing))


def code(candidate: Candidate) -> str:
    return candidate.error.code if candidate.error else "ok"


async def test_an_outage_of_one_of_three_costs_few_calls_and_ends_by_one_probe() -> None:
    """It begins at 5 s of model time and lasts for 30; each half second brings two prompts."""
    calls_in_outage, calls_at_recovery = 0, Counter[float]()
    results: dict[float, list[Candidate]] = {}
    async with working(Script(), "abc") as (worker, server):
        for step in range(160):
            worker.time.now_s = now_s = step / 2
            if now_s in {5.0, 35.0}:
                server.set_script(script("unavailable", models="b") if now_s == 5 else Script())
            before = server.stats.by_model["b"]
            calls = [worker.begin(model) for model in "abc" for _ in range(2)]
            await worker.time.run(*calls)
            candidates = [call.result() for call in calls]
            assert all(candidate.ok for candidate in candidates if candidate.model != "b")
            results[now_s] = [c for c in candidates if c.model == "b"]
            if 5 <= now_s < 35:
                calls_in_outage += server.stats.by_model["b"] - before
            elif now_s >= 35:
                calls_at_recovery[now_s] = server.stats.by_model["b"] - before
        entries = worker.entries

    # 60 steps of two prompts with three attempts each would be 360. Ten of the last twenty have to
    # fail, one more was under way, and there are some probes.
    assert 10 <= calls_in_outage <= 15
    in_outage = [c for now_s in results if 6 <= now_s < 35 for c in results[now_s]]
    untried = [c for c in in_outage if c.attempts == 0]
    assert len(untried) >= 110
    assert {c.cost_usd for c in untried} == {0.0}
    message = untried[0].error.message if untried[0].error else ""
    assert message.startswith("not called, as the last calls failed (HTTP 503")
    assert "; the next call is tried at 2026-11-30T12:00:" in message
    assert {code(c) for c in in_outage} == {"server_error"}

    recovered = min(now_s for now_s, calls in calls_at_recovery.items() if calls)
    assert recovered < 35 + BreakerTerms().cap_s
    assert calls_at_recovery[recovered] == 1, "one probe, and nothing beside it"
    assert Counter(map(code, results[recovered])) == {"ok": 1, "server_error": 1}
    later = [c for now_s in results if now_s > recovered for c in results[now_s]]
    assert {code(c) for c in later} == {"ok"}

    # A task that was not called stands nowhere in the ledger, and one that was is sent or paused.
    called = sum(1 for candidates in results.values() for c in candidates if c.attempts)
    assert len(entries) == called + 2 * 2 * len(results)


async def test_what_waits_for_a_slot_when_it_opens_is_told_at_once() -> None:
    slow = script("server_error", latency_ms=200)
    async with working(slow, max_concurrency=5, max_attempts=1) as (worker, server):
        candidates = await worker.ask(count=40)
        # A slot is free again as soon as the first of the five has failed.
        assert 5 <= server.stats.requests <= 9
    assert sum(c.attempts for c in candidates) == server.stats.requests


async def test_a_prompt_with_hours_left_waits_and_is_answered() -> None:
    async with working(script("server_error"), max_attempts=1) as (worker, server):
        await worker.ask(count=5)
        assert server.stats.requests == 5
        batch = [worker.begin(deadline_s=HOUR_S) for _ in range(10)]
        await worker.time.run(seconds=1)
        assert server.stats.requests == 5
        assert (await worker.ask(deadline_s=60))[0].attempts == 0

        server.set_script(Script())
        await worker.time.run(*batch)
        assert {code(call.result()) for call in batch} == {"ok"}
        assert server.stats.requests == 10
        assert {call.result().attempts for call in batch} == {1}


async def test_a_prompt_with_hours_left_ends_when_few_minutes_are_left() -> None:
    async with working(script("server_error"), max_attempts=1) as (worker, _):
        await worker.ask(count=5)
        (candidate,) = await worker.ask(deadline_s=800)
    assert candidate.error is not None
    assert candidate.error.message.startswith("not called") or candidate.attempts == 1


async def test_a_retry_waits_for_the_breaker_too_and_pays_no_call_meanwhile() -> None:
    async with working(script("server_error")) as (worker, server):
        batch = [worker.begin(deadline_s=HOUR_S) for _ in range(6)]
        await worker.time.run(seconds=1)
        assert server.stats.requests == 6
        assert [calls.is_sent for entry in worker.entries for calls in entry.calls.values()] == (
            [False] * 6
        )
        server.set_script(Script())
        await worker.time.run(*batch)
        assert {(code(c.result()), c.result().attempts) for c in batch} == {("ok", 2)}


async def test_who_waits_when_its_worker_stops_is_handed_back() -> None:
    long = Fault(kind="unavailable", headers={"retry-after": "300"})
    async with working(script(long), max_attempts=1) as (worker, server):
        await worker.ask(count=5)
        waiting = worker.begin(deadline_s=HOUR_S)
        await worker.time.run(seconds=1)
        worker.generate.stop()
        await worker.time.run(seconds=6)
        assert waiting.done(), "long before the breaker lets a call pass"
        with pytest.raises(Transient, match="begins no call"):
            await waiting
        assert server.stats.requests == 5


async def test_nobody_calls_for_a_fusion_that_was_decided_while_it_waited() -> None:
    down = script("server_error")
    async with working(down, max_attempts=1, over={"decided"}) as (worker, server):
        await worker.ask(count=5)
        waiting = [worker.begin(deadline_s=HOUR_S, fusion_id=name) for name in ("decided", "open")]
        await worker.time.run(seconds=1)
        server.set_script(Script())
        await worker.time.run(*waiting)
        with pytest.raises(Transient, match="the fusion is over"):
            await waiting[0]
        assert (await waiting[1]).ok
        assert server.stats.requests == 1


@pytest.mark.parametrize(
    "kind",
    [
        "content_policy",
        "content_filter",
        "context_length_exceeded",
        "bad_request",
        "garbage",
        "length",
        "empty",
        "too_large",
    ],
)
async def test_what_a_model_answers_never_opens_it(kind: FaultKind) -> None:
    async with working(script(kind), max_attempts=1) as (worker, server):
        for _ in range(6):
            await worker.ask(count=5)
        assert server.stats.requests == 30


@pytest.mark.parametrize("kind", ["server_error", "bad_gateway", "overloaded", "error_in_200"])
async def test_what_is_no_answer_opens_it(kind: FaultKind) -> None:
    async with working(script(kind), max_attempts=1) as (worker, server):
        for _ in range(20):
            await worker.ask()
        assert server.stats.requests == 5


@pytest.mark.parametrize("kind", ["close", "truncate", "rate_limited"])
async def test_a_broken_connection_and_a_limit_without_a_time_open_it_too(kind: FaultKind) -> None:
    async with working(script(kind), max_attempts=1) as (worker, server):
        for _ in range(20):
            await worker.ask()
        assert server.stats.requests == 5


async def test_no_connection_opens_it() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        worker = Worker(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", ModelTime())
        candidates = [(await worker.ask())[0] for _ in range(4)]
        await worker.generate.aclose()
    assert [c.attempts for c in candidates] == [3, 2, 0, 0]
    assert {code(c) for c in candidates} == {"connect_error"}


@pytest.mark.parametrize(
    ("kind", "result"),
    [("unauthorized", "unauthorized"), ("insufficient_quota", "insufficient_quota")],
)
async def test_a_key_that_is_refused_is_tried_once_for_all_its_models(
    kind: FaultKind, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_KEY", KEY)
    refusing = script(kind, models="ab")
    async with working(refusing, "ab", api_key_env="FAKE_KEY") as (worker, server):
        with capture_logs() as logs:
            candidates = [(await worker.ask(model))[0] for model in "abab"]
        assert dict(server.stats.by_model) == {"a": 1}
        assert {code(c) for c in candidates} == {result}
        assert [c.attempts for c in candidates] == [1, 0, 0, 0]
        (event,) = [line for line in logs if line["event"] == "breaker.opened"]
        assert (event["key"], event["breaker"], event["reason"]) == ("FAKE_KEY", "key", result)
        assert KEY not in repr((logs, candidates))

        # Somebody has mended it.
        server.set_script(Script())
        worker.time.now_s += BreakerTerms().rejected_base_s
        with capture_logs() as logs:
            assert [code((await worker.ask(model))[0]) for model in "ba"] == ["ok", "ok"]
        assert [line["event"] for line in logs] == ["breaker.closed"]

        # A batch does not wait for somebody to mend it.
        server.set_script(refusing)
        assert [code((await worker.ask(deadline_s=HOUR_S))[0]) for _ in range(2)] == [result] * 2
        assert server.stats.requests == 1


@pytest.mark.parametrize("kind", ["model_not_found", "gone", "forbidden"])
async def test_a_model_that_is_gone_is_tried_once_and_no_other_suffers(kind: FaultKind) -> None:
    async with working(script(kind), "ab") as (worker, server):
        candidates = [(await worker.ask(model))[0] for model in "abab"]
        assert dict(server.stats.by_model) == {"a": 1, "b": 2}
    assert [c.ok for c in candidates] == [False, True, False, True]
    assert candidates[2].error is not None
    assert candidates[2].error.message.startswith("not called")


async def test_a_request_that_a_working_model_does_not_take_disables_nothing() -> None:
    """Gateways answer 404 to a request with tools for a model that has none."""
    mixed = Script(models={"a": ModelScript(faults=(Fault(kind="none"), Fault(kind="forbidden")))})
    async with working(mixed) as (worker, server):
        assert [code((await worker.ask())[0]) for _ in range(3)] == ["ok", "unauthorized", "ok"]
        assert server.stats.requests == 3


async def test_a_storm_of_429_lowers_the_limit_and_it_comes_back() -> None:
    """The provider takes 8 calls at once of 32, and says when to come again."""
    full = Fault(kind="rate_limited", headers={"retry-after": "1"})
    async with working(script(full, latency_ms=5), max_concurrency=32) as (worker, server):
        shown = Change()
        storm = [worker.begin(deadline_s=HOUR_S) for _ in range(48)]
        await worker.time.run(seconds=4)
        assert shown.value('fusewire_concurrency_limit{model="a"}') <= 4
        assert shown['fusewire_breaker_opens_total{model="a",reason="rate_limited"}'] == 0

        server.set_script(Script(models={"a": ModelScript(latency_ms=5)}))
        await worker.time.run(*storm)
        server.set_script(Script(models={"a": ModelScript(latency_ms=5)}))
        limits = []
        for _ in range(14):
            assert {code(c) for c in await worker.ask(count=48)} == {"ok"}
            limits.append(shown.value('fusewire_concurrency_limit{model="a"}'))
        assert limits[-1] == 32
        assert server.stats.peak_by_model["a"] > 16


async def test_models_with_the_same_address_name_and_key_share_one_limit() -> None:
    async with ModelServer(Script.of(latency_ms=20)) as server:
        worker = Worker(server.base_url, ModelTime(), ("one", "two"), max_concurrency=3)
        same = {
            name: model.model_copy(update={"model": "same", "max_concurrency": most})
            for (name, model), most in zip(worker.generate._models.items(), (9, 3), strict=True)
        }
        worker.generate._endpoints = endpoint.Endpoints(same, worker.generate._times)
        worker.generate._models = same
        calls = [worker.begin(name) for name in ("one", "two") * 8]
        await worker.time.run(*calls)
        await worker.generate.aclose()
        assert server.stats.peak_by_model["same"] == 3


async def test_in_an_outage_a_tenth_of_the_calls_is_made_again() -> None:
    """Without a breaker: every third call fails, and none is made more than once more."""
    async with working(script("server_error"), breaker=False, max_attempts=3) as (worker, server):
        candidates = [(await worker.ask())[0] for _ in range(100)]
        assert not any(c.ok for c in candidates)
        # Ten to begin with, and ten of the hundred; some time passes between them.
        assert 110 <= server.stats.requests <= 125
        spent = sum(c.attempts - 1 for c in candidates)
        assert server.stats.requests == 100 + spent


async def test_a_retry_that_cannot_end_before_the_deadline_is_not_made() -> None:
    async with working(Script()) as (worker, server):
        limit = worker.generate._endpoints.of("a")._limit
        limit.add_answer(started_at=-30.0, now=0.0, running=1)  # an answer takes 30 s
        server.set_script(script("server_error"))
        (short,) = await worker.ask(deadline_s=29)
        (longer,) = await worker.ask(deadline_s=60)
    assert (short.attempts, longer.attempts) == (1, 3)


async def test_no_call_outlives_its_deadline() -> None:
    async with ModelServer(Script.of("hang")) as server:
        worker = Worker(server.base_url, ModelTime(), timeout_s=100)
        begun = asyncio.get_running_loop().time()
        (candidate,) = await worker.ask(deadline_s=0.3)
        await worker.generate.aclose()
        took_s = asyncio.get_running_loop().time() - begun
        assert code(candidate) == "deadline_exceeded"
        assert took_s < 50, "the timeout of the model is longer"


async def test_who_waits_in_line_again_past_its_deadline_is_not_noted_as_sent() -> None:
    """The slot is taken by a call that hangs while the first one waits to be made again."""
    fates = Script(
        models={"a": ModelScript(faults=(Fault(kind="server_error"), Fault(kind="hang")))}
    )
    async with working(fates, max_concurrency=1) as (worker, server):
        first = worker.begin(deadline_s=2)
        await server.wait_for_requests(1)
        for _ in range(50):
            await asyncio.sleep(0.002)
        hanging = worker.begin(deadline_s=500)
        await server.wait_for_requests(2)
        await worker.time.run(seconds=3)
        candidate = await first
        assert server.stats.requests == 2
        assert (code(candidate), candidate.attempts) == ("server_error", 1)
        (calls,) = worker.entries[0].calls.values()
        assert (calls.is_sent, calls.attempts) == (False, 1)
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


async def test_a_cancelled_probe_leaves_the_next_call_to_be_one() -> None:
    async with working(script("server_error"), max_attempts=1) as (worker, server):
        await worker.ask(count=5)
        worker.time.now_s += 10
        server.set_script(Script.of("hang"))
        probe = worker.begin()
        await server.wait_for_requests(1)
        assert (await worker.ask())[0].attempts == 0
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        assert (await worker.ask())[0].ok
        assert (await worker.ask())[0].ok


class Change:
    """Samples of this process, and how much they have changed since it was made."""

    def __init__(self) -> None:
        self._before = self._samples()

    def value(self, sample: str) -> float:
        return self._samples().get(sample, 0.0)

    def __getitem__(self, sample: str) -> float:
        return self.value(sample) - self._before.get(sample, 0.0)

    @staticmethod
    def _samples() -> dict[str, float]:
        return {
            sample.name
            + "{"
            + ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            + "}": sample.value
            for family in metrics.REGISTRY.collect()
            for sample in family.samples
        }


async def test_the_metrics_tell_state_openings_and_what_was_not_called() -> None:
    state = 'fusewire_breaker_state{model="a"}'
    async with working(script("server_error"), max_attempts=1) as (worker, server):
        shown = Change()
        assert shown.value(state) == 0
        await worker.ask(count=5)
        assert shown.value(state) == 2
        await worker.ask(count=3)
        assert shown['fusewire_breaker_opens_total{model="a",reason="server_error"}'] == 1
        assert shown['fusewire_calls_refused_total{model="a",reason="breaker"}'] == 3
        worker.time.now_s += 10
        server.set_script(Script.of("hang"))
        probe = worker.begin()
        await server.wait_for_requests(1)
        assert shown.value(state) == 1
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        await worker.ask()
        assert shown.value(state) == 0


async def test_a_fusion_goes_on_without_what_is_not_called_and_says_so(
    make_settings: MakeSettings,
    running: Running,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    nats: Any,
) -> None:
    quick = partial(Breaker, BreakerTerms(base_s=1.0, cap_s=2.0))
    monkeypatch.setattr(endpoint, "Breaker", quick)
    settings = make_settings(
        nats={"url": nats.url}, pool={"quorum": 0.6, "mode": "best-of", "deadline_s": 60}
    )
    model_server.set_script(script("unavailable", models="b"))
    shown = Change()
    async with running(settings, *ALL) as client:
        outcomes = [await client.submit({"prompt": f"Why {n}?"}, wait_s=250) for n in range(8)]
        called = model_server.stats.by_model["b"]
        opens = shown['fusewire_breaker_opens_total{model="b",reason="server_error"}']
        assert called == 5 + opens - 1, "five failures, and one call for each further opening"
        assert {(o["status"], o["is_degraded"]) for o in outcomes} == {("selected", True)}
        reasons = [reason for o in outcomes for reason in o["degraded_reasons"]]
        # While its first call is made again the others' quorum closes the panel.
        assert {tuple(reason.split(":")[:2]) for reason in reasons} <= {
            ("failed", "b"),
            ("missing", "b"),
        }
        assert reasons[-1].startswith("failed:b")

        model_server.set_script(Script())

        async def ask_again() -> bool:
            outcome = await client.submit({"prompt": f"Why {next(numbers)}?"}, wait_s=250)
            return not outcome["is_degraded"]

        assert await eventually(ask_again)
