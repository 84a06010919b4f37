"""The whole pipeline in this process, on real parts, against the fake model server."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest
from nats.aio.msg import Msg
from prometheus_client import generate_latest
from sqlalchemy import text
from structlog.testing import capture_logs

from fusewire import bus as bus_module
from fusewire import ids, metrics, provision, replies
from fusewire.bus import Bus
from fusewire.contracts import Plan
from fusewire.settings import Database, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import PATIENCE_S, eventually
from fusewire.testing.factories import make_candidate, make_prompt
from fusewire.testing.model_script import Fault, ModelScript, Rule, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import PostgresServer
from fusewire.topology import CARRIERS, candidate_subject, prompt_subject, topology
from fusewire_cli.client import Client
from fusewire_cli.local.runner import upgrade_database
from fusewire_ingest import outbox, waiting
from fusewire_judge import service as judge_service
from fusewire_judge.handlers import Handlers
from fusewire_judge.turn import TurnResult

MANY = 400
"""Fusions: enough for two judges to meet over and over."""

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
WAIT_S = 250
PLANNED = "SELECT count(*) FROM fusions WHERE plan IS NOT NULL"
SLOW = Script(models={"*": ModelScript(latency_ms=300)})


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer) -> Settings:
    """The broker is the test's own, so that it can be killed and wiped."""
    return make_settings(nats=Nats(url=nats.url))


async def ask(client: Client, prompt: str, **fields: Any) -> replies.fusions.Fusion:
    """Submit, and wait for the outcome."""
    shown = await client.submit({"prompt": prompt, **fields}, wait_s=WAIT_S)
    assert shown["status"] != "running", shown
    return shown


def parts(shown: replies.fusions.Fusion) -> dict[str, str]:
    return {answer["member"]: answer["status"] for answer in shown["answers"]}


async def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    store = Store(settings.database)
    async with store.read() as connection:
        found = [tuple(row) for row in await connection.execute(text(query))]
    await store.close()
    return found


async def subjects(bus: Bus, stream: str) -> set[str]:
    """The subjects of what a stream holds now."""
    info = await bus.js.stream_info(stream, subjects_filter=">")
    return set(info.state.subjects or {})


WHY = "Why is the sky blue, and why is it not so at dusk?"  # its echo is too long for a label
MERGED = "A text that sorts first, so that the scripted judge prefers it."
ABSENT = [f"missing:{member}:0.33:deadline" for member in "abc"]

# -- modes ------------------------------------------------------------------------------------


async def test_the_three_modes_on_the_local_stack(
    make_settings: MakeSettings, stack: Running, model_server: ModelServer
) -> None:
    other = ModelScript(
        answer="Nothing of the kind is to be seen where this model happens to live."
    )
    writer = ModelScript(rules=(Rule(match="Now write", answer=MERGED),))
    model_server.set_script(Script(models={"c": other, "j": writer}))
    async with stack(make_settings()) as client:
        best = await ask(client, WHY, mode="best-of")
        merged = await ask(client, WHY, mode="merge")
        debated = await ask(client, WHY, mode="debate")
        seen = await client.get(best["id"])

    assert (best["status"], best["is_degraded"], best["judge_rung"], best["rounds"]) == (
        "selected",
        False,
        "strict",
        1,
    )
    assert best["swap_consistent"] is True
    assert best["content"] == next(
        a["content"] for a in best["answers"] if a["member"] == best["winner"]
    )
    assert parts(best) == dict.fromkeys("abc", "ok")
    # Analysis and verdicts, the writing, and the guard.
    assert (merged["status"], merged["guard"], merged["rounds"]) == ("fused", "passed", 3)
    assert (merged["content"], merged["winner"]) == (MERGED, None)
    assert merged["analysis"] == {
        "consensus": [], "contradictions": [], "partial_coverage": [], "unique_insights": [],
        "blind_spots": [],
    }  # fmt: skip
    assert (debated["status"], debated["is_degraded"]) == ("selected", False)
    assert debated["rounds"] == 2  # nobody named an error in its answer
    assert model_server.stats.by_model["j"] == 2 + 6 + 2
    assert {k: seen[k] for k in ("content", "status", "winner")} == {
        k: best[k] for k in ("content", "status", "winner")
    }


async def test_no_series_is_added_by_a_fusion(settings: Settings, running: Running) -> None:
    """A label with an id in it would make the registry grow for ever."""

    def series() -> set[bytes]:
        lines = generate_latest(metrics.REGISTRY).splitlines()
        return {line.rpartition(b" ")[0] for line in lines if not line.startswith(b"#")}

    async with running(settings, *ALL) as client:
        for number in range(3):
            await ask(client, f"{WHY} {number}")
        before = series()
        for number in range(10):
            await ask(client, f"{WHY} again {number}")

    assert len(before) > 50
    assert series() == before


async def test_what_is_urgent_is_planned_before_what_came_earlier(
    settings: Settings, running: Running, ops: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire_dispatcher.service.CONCURRENCY", 1)
    names = ["low", "low", "normal", "low", "high", "normal", "high"]
    async with running(settings, "ingest") as client:
        for number, priority in enumerate(names):
            await client.submit(
                {"prompt": "Why?", "priority": priority, "custom_id": f"{priority}{number}"}
            )

        async def are_there(stream: str) -> bool:
            return (await ops.js.stream_info(stream)).state.messages == len(names)

        await eventually(lambda: are_there("FW_PROMPT"))
        async with running(settings, "dispatcher"):
            await eventually(lambda: are_there("FW_CANDIDATE"))
    plans = [
        Plan.decode((await ops.js.get_msg("FW_CANDIDATE", seq)).data or b"")
        for seq in range(1, 1 + len(names))
    ]
    assert [plan.priority for plan in plans] == sorted(names, key=["high", "normal", "low"].index)


async def test_closed_answers_are_voted_without_a_judge_call(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(
        Script(
            models={n: ModelScript(answer=a) for n, a in {"a": "4", "b": "5", "c": "4."}.items()}
        )
    )
    async with running(settings, *ALL) as client:
        shown = await ask(client, "2+2?")

    assert (shown["status"], shown["content"], shown["winner"]) == ("voted", "4", "a")
    assert shown["agreement"] == pytest.approx(2 / 3)
    assert "j" not in model_server.stats.by_model


async def test_a_member_that_fails_is_told_first(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    failing = Script.of("bad_request").models["*"]
    model_server.set_script(Script(models={"b": failing}))
    async with running(settings, *ALL) as client:
        shown = await ask(client, "Why?")

    assert list(shown)[:3] == ["is_degraded", "degraded_reasons", "status"]
    assert (shown["is_degraded"], shown["degraded_reasons"]) == (True, ["failed:b:bad_request"])
    assert parts(shown) == {"a": "ok", "b": "error", "c": "ok"}
    assert shown["status"] == "selected"


async def test_a_broken_verdict_is_asked_for_again(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(
        Script(models={"j": ModelScript(rules=(Rule(match="Which is best", answer="The first."),))})
    )
    async with running(settings, *ALL) as client:
        shown = await ask(client, "Why?")

    assert model_server.stats.by_model["j"] == 4
    assert (shown["status"], shown["judge_rung"], shown["degraded_reasons"]) == (
        "voted",
        "fallback",
        ["judge_failed:not_json"],
    )


async def test_the_same_submission_is_fused_once(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    async with running(settings, *ALL) as client:
        first = await ask(client, "Why?", custom_id="one")
        again = await ask(client, "Why?", custom_id="one")

    assert (first["is_repetition"], again["is_repetition"]) == (False, True)
    assert first["content"] == again["content"]
    assert model_server.stats.requests == 5


# -- what comes twice, late, or from nowhere --------------------------------------------------


@pytest.mark.parametrize("mode", ["best-of", "merge", "debate"])
async def test_everything_delivered_again_changes_nothing(
    settings: Settings, running: Running, model_server: ModelServer, ops: Bus, mode: str
) -> None:
    async with running(settings, *ALL) as client:
        first = [await ask(client, f"Why {i}?", custom_id=str(i), mode=mode) for i in range(3)]
        calls = model_server.stats.requests
        # The consumer begins anew: every plan and candidate that ever was comes again.
        await ops.js.delete_consumer("FW_CANDIDATE", "judge")
        await provision.apply(ops.js, topology(dict.fromkeys("abcj", "remote"), ["default"]))

        async def all_again() -> bool:
            info = await ops.js.consumer_info("FW_CANDIDATE", "judge")
            return (info.num_pending, info.num_ack_pending) == (0, 0)

        await eventually(all_again)
        again = [await client.get(shown["id"]) for shown in first]

    for before, after in zip(first, again, strict=True):
        assert {**before, "is_repetition": None} == {**after, "is_repetition": None}
    assert model_server.stats.requests == calls
    assert await rows(settings, "SELECT count(*) FROM outcomes") == [(3,)]


async def test_a_prompt_published_again_is_not_asked_again(
    settings: Settings, running: Running, model_server: ModelServer, ops: Bus
) -> None:
    async with running(settings, *ALL) as client:
        shown = await ask(client, "Why?", custom_id="one")
        (body,) = (await rows(settings, "SELECT body FROM prompts"))[0]
        await ops.publish(prompt_subject("normal", "default"), body.encode())

        async def taken() -> bool:
            return (await ops.js.stream_info("FW_PROMPT")).state.messages == 0

        await eventually(taken)
        again = await client.get(shown["id"])

    assert again["content"] == shown["content"]
    assert model_server.stats.requests == 5


async def test_a_forged_candidate_is_ignored(
    settings: Settings, running: Running, ops: Bus, model_server: ModelServer
) -> None:
    fusion_id = ids.fusion_id("default", None, "one")
    prompt = make_prompt(custom_id="one")
    unknown = make_prompt(custom_id="nobody submitted this")
    forged = [
        make_candidate("FORGED", "x", prompt=prompt),
        make_candidate("FORGED", "a", prompt=prompt, round=7),
        make_candidate("FORGED", "a", prompt=unknown),
    ]
    model_server.set_script(SLOW)
    async with running(settings, *ALL) as client:
        await client.submit({"prompt": "Why?", "custom_id": "one"})
        for candidate in forged:
            await ops.publish(
                candidate_subject(candidate.fusion_id, candidate.round, candidate.call), candidate
            )
        # One that says another task than its subject: laid where operators find it.
        await ops.publish(
            candidate_subject(fusion_id, 0, "y"), make_candidate("FORGED", "a", prompt=prompt)
        )
        shown = await client.get(fusion_id, wait_s=WAIT_S)

        async def dead() -> bool:
            return "fw.dead.judge.FW_CANDIDATE" in await subjects(ops, "FW_DEAD")

        await eventually(dead)

    assert shown["status"] == "selected"
    assert shown["degraded_reasons"] == []
    assert "FORGED" not in json.dumps(shown)
    assert await rows(settings, "SELECT count(*) FROM outcomes") == [(1,)]


# -- deadlines --------------------------------------------------------------------------------


async def test_a_deadline_ends_it_by_its_timer(
    settings: Settings, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_service, "SWEEP_EVERY_S", 3600)
    async with running(settings, "judge", "dispatcher", "ingest") as client:  # nobody answers
        shown = await ask(client, "Why?", deadline_s=2)

    assert (shown["status"], shown["is_degraded"]) == ("expired", True)
    assert shown["degraded_reasons"] == ABSENT


async def test_a_deadline_ends_it_by_the_sweep_when_timers_are_lost(
    settings: Settings, running: Running, ops: Bus
) -> None:
    async with running(settings, "judge", "dispatcher", "ingest") as client:
        shown = await client.submit({"prompt": "Why?", "deadline_s": 2})

        async def timer() -> bool:
            return bool(await subjects(ops, "FW_TIMER"))

        await eventually(timer)
        await ops.js.purge_stream("FW_TIMER")
        shown = await client.get(shown["id"], wait_s=WAIT_S)

    assert (shown["status"], shown["degraded_reasons"]) == ("expired", ABSENT)


async def test_without_a_dispatcher_it_still_ends(settings: Settings, running: Running) -> None:
    async with running(settings, "judge", "ingest") as client:
        shown = await ask(client, "Why?", deadline_s=1)

    assert (shown["status"], shown["degraded_reasons"]) == ("expired", ["never_planned"])


# -- what goes down ---------------------------------------------------------------------------


async def finish(client: Client, count: int) -> list[replies.fusions.Fusion]:
    """Wait for the outcomes of the prompts 0 to count."""
    wanted = [ids.fusion_id("default", "b", str(i)) for i in range(count)]
    return [await client.get(fusion_id, wait_s=WAIT_S) for fusion_id in wanted]


async def submit(client: Client, first: int, last: int) -> None:
    lines = [json.dumps({"prompt": f"Why {i}?", "custom_id": str(i)}) for i in range(first, last)]
    for line in await client.submit_lines(lines, "b"):
        assert "error" not in line


async def test_what_is_accepted_while_nats_is_down_is_done_when_it_is_back(
    settings: Settings, running: Running, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(settings, *ALL) as client:
        await nats.kill()
        with monkeypatch.context() as outage, capture_logs() as told:
            outage.setattr(bus_module, "PUBLISH_TIMEOUT_S", 0.2)
            await submit(client, 0, 5)
            # Not before every publication was given up: from here on only the sweep can help.
            await eventually(
                lambda: [line["event"] for line in told].count("ingest.publish_failed") >= 5
            )
        assert (await client.get(ids.fusion_id("default", "b", "0")))["status"] == "running"
        await nats.start()

        done = await finish(client, 5)

    assert [shown["status"] for shown in done] == ["selected"] * 5
    assert await rows(settings, "SELECT count(*) FROM outcomes") == [(5,)]


async def test_what_was_committed_and_never_published_is_found_by_the_next_ingest(
    settings: Settings, running: Running, nats: NatsServer
) -> None:
    async with running(settings, "ingest") as client:
        await nats.kill()
        await submit(client, 0, 5)  # and it dies with what it had in memory
    await nats.start()

    async with running(settings, *ALL) as client:
        done = await finish(client, 5)

    assert [shown["status"] for shown in done] == ["selected"] * 5
    assert await rows(settings, "SELECT count(*) FROM outcomes") == [(5,)]


async def test_a_broker_whose_store_is_lost_loses_no_prompt(
    settings: Settings, running: Running, nats: NatsServer, ops: Bus
) -> None:
    async with running(settings, "judge", "dispatcher", "ingest") as client:
        await submit(client, 0, 10)

        async def planned() -> bool:
            tasks = await ops.js.stream_info("FW_TASK_REMOTE")
            return tasks.state.messages == 10 and await rows(settings, PLANNED) == [(10,)]

        await eventually(planned)
        await nats.kill()
        nats.wipe()  # with every task in it
        await submit(client, 10, 15)
        await nats.start()
        # The worker's start applies the topology, as the local runner does, or an operator who lost
        # a cluster.
        async with running(settings, "worker-remote"):
            done = await finish(client, 15)

    assert Counter(shown["status"] for shown in done) == {"selected": 15}
    assert await rows(settings, "SELECT count(*) FROM outcomes") == [(15,)]


async def test_after_a_lost_store_only_what_is_not_stored_is_asked_again_and_marked(
    settings: Settings, running: Running, nats: NatsServer, model_server: ModelServer
) -> None:
    """The ledger is lost with the store: nobody knows whether what was under way was paid for."""
    model_server.set_script(
        Script(models={name: ModelScript(faults=(Fault(kind="hang"),) * 5) for name in "bc"})
    )
    answered = "SELECT count(*) FROM candidates"
    async with running(settings, "judge", "dispatcher", "ingest") as client:
        async with running(settings, "worker-remote"):
            await submit(client, 0, 5)

            async def is_half_way() -> bool:
                return (
                    await rows(settings, answered) == [(5,)] and model_server.stats.requests == 15
                )

            await eventually(is_half_way)
            # The worker's time to drain is up before its calls come to an end.
        await nats.kill()
        nats.wipe()
        await nats.start()
        async with running(settings, "worker-remote"):
            done = await finish(client, 5)

    assert Counter(shown["status"] for shown in done) == {"selected": 5}
    calls = model_server.stats.by_model
    assert {name: calls[name] for name in "abc"} == {"a": 5, "b": 10, "c": 10}
    bodies = [json.loads(body) for (body,) in await rows(settings, "SELECT body FROM candidates")]
    marked = {(body["member"], body["maybe_paid_twice"]) for body in bodies if body["round"] == 0}
    assert marked == {("a", False), ("b", True), ("c", True)}


@pytest.mark.parametrize("stream", ["FW_PROMPT", "FW_TASK_REMOTE", "FW_CANDIDATE"])
async def test_what_a_stream_has_lost_is_noticed_and_made_anew(
    settings: Settings,
    running: Running,
    ops: Bus,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    stream: str,
) -> None:
    """The stream is there, and so the store: only that nothing moves tells."""
    before = {
        "FW_PROMPT": (),
        "FW_TASK_REMOTE": ("dispatcher",),
        "FW_CANDIDATE": ("dispatcher", "worker-remote"),
    }
    monkeypatch.setattr(outbox, "STALLED_S", 0.0)
    monkeypatch.setattr(outbox, "LOST_EVERY_S", 0.0)
    async with running(settings, "ingest") as client:
        async with (
            running(settings, *before[stream]) if before[stream] else contextlib.nullcontext()
        ):
            await submit(client, 0, 3)

            async def is_there() -> bool:
                return (await ops.js.stream_info(stream)).state.messages >= 3

            await eventually(is_there)
        for name in CARRIERS:
            await ops.js.purge_stream(name)
            # It forgets message ids, as where its files are removed.
            config = (await ops.js.stream_info(name)).config
            await ops.js.update_stream(config.evolve(duplicate_window=0.1))
        await asyncio.sleep(0.3)
        calls = model_server.stats.requests
        async with running(settings, "judge", "worker-remote", "dispatcher"):
            done = await finish(client, 3)

    assert Counter(shown["status"] for shown in done) == {"selected": 3}
    assert calls in (0, 9)


@pytest.mark.parametrize("when", ["a round", "an outcome"])
async def test_a_broker_that_ends_while_it_is_published_loses_no_message(
    settings: Settings,
    running: Running,
    nats: NatsServer,
    ops: Bus,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """The broker forgets how often it delivered what had led to it: only a mark in SQL can tell."""
    seen, announced = asyncio.Event(), asyncio.Event()
    publish = Handlers._publish

    async def ended(self: Handlers, turn: TurnResult, traces: Mapping[str, str]) -> None:
        if (turn.rounds if when == "a round" else turn.outcomes) and not seen.is_set():
            seen.set()
            await nats.kill()
            await nats.start()
            # The answers are taken as handled, as by a judge that died before it could publish.
            return
        await publish(self, turn, traces)

    async def listen(_message: Msg) -> None:
        announced.set()

    monkeypatch.setattr(Handlers, "_publish", ended)
    await ops.client.subscribe("fw.outcome.>", cb=listen)
    async with running(settings, *ALL) as client:
        await ask(client, "Why?")
        await asyncio.wait_for(announced.wait(), PATIENCE_S)
        none_marked = (
            "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM fusions WHERE unpublished_since IS NOT NULL)"
        )
        await eventually(lambda: rows(settings, none_marked))

    assert seen.is_set()


async def test_services_that_restart_in_the_middle_lose_nothing(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(SLOW)
    async with running(settings, *ALL) as client:
        await submit(client, 0, 20)
        await model_server.wait_for_requests(10)
    async with running(settings, *ALL) as client:
        done = await finish(client, 20)

    assert Counter(shown["status"] for shown in done) == {"selected": 20}
    assert await rows(settings, "SELECT count(*) FROM outcomes") == [(20,)]


async def readiness(client: Client, status: int) -> str | None:
    """What /readyz says, if it says it with this status."""
    async with aiohttp.ClientSession() as session, session.get(f"{client.url}/readyz") as response:
        return await response.text() if response.status == status else None


async def test_a_worker_that_is_told_to_stop_lets_its_calls_end_and_begins_none(
    make_settings: MakeSettings, nats: NatsServer, running: Running, model_server: ModelServer
) -> None:
    """A call that is cut is paid for and made once more."""
    model_server.set_script(Script(models={"*": ModelScript(latency_ms=3_000)}))
    narrow = {"kind": "remote", "base_url": model_server.base_url, "max_concurrency": 2}
    settings = make_settings(
        nats=Nats(url=nats.url),
        limits={"drain_s": 1, "call_drain_s": 200},
        models={name: {**narrow, "model": name} for name in "abcj"},
    )
    async with running(settings, "judge", "dispatcher", "ingest") as client:
        async with running(settings, "worker-remote"):
            await submit(client, 0, 5)
            await model_server.wait_for_requests(6)
        assert model_server.stats.requests == 6, "as many as there were places"

        model_server.set_script(Script(models={"*": ModelScript()}))
        async with running(settings, "worker-remote"):
            done = await finish(client, 5)

    assert Counter(shown["status"] for shown in done) == {"selected": 5}
    assert model_server.stats.requests == 5 * 5 - 6, "five calls a fusion, and six were made before"
    twice = "SELECT count(*) FROM candidates WHERE body LIKE '%paid_twice\"_true%'"
    assert await rows(settings, twice) == [(0,)]


async def test_a_database_that_goes_down_in_the_middle_loses_nothing(
    make_settings: MakeSettings, nats: NatsServer, running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(SLOW)
    with PostgresServer() as server:
        settings = make_settings(nats=Nats(url=nats.url), database=Database(url=server.url()))
        await upgrade_database(settings)
        async with running(settings, *ALL) as client:
            await submit(client, 0, 10)
            await model_server.wait_for_requests(5)
            server.kill()
            refused = asyncio.create_task(
                client.submit({"prompt": "Why 10?", "custom_id": "10", "batch_id": "b"})
            )
            await asyncio.sleep(1)  # candidates come meanwhile, and cannot be stored
            assert not refused.done()  # it is told 503, and tries again
            told = await eventually(lambda: readiness(client, 503))
            assert "the database does not answer" in told
            await asyncio.to_thread(server.start)
            assert (await refused)["is_repetition"] is False
            await eventually(lambda: readiness(client, 200))

            done = await finish(client, 11)

        assert Counter(shown["status"] for shown in done) == {"selected": 11}
        assert await rows(settings, "SELECT count(*) FROM outcomes") == [(11,)]


async def test_who_waits_for_what_was_accepted_is_never_told_that_it_was_not(
    make_settings: MakeSettings,
    nats: NatsServer,
    running: Running,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever believes it buys everything again."""
    monkeypatch.setattr(waiting, "POLL_S", 0.2)  # so that they look while it is away
    model_server.set_script(SLOW)
    chat = {"model": "fusion", "messages": [{"role": "user", "content": "Why not?"}]}
    with PostgresServer() as server:
        settings = make_settings(nats=Nats(url=nats.url), database=Database(url=server.url()))
        await upgrade_database(settings)
        async with running(settings, *ALL) as client, aiohttp.ClientSession(client.url) as http:
            waits = [
                asyncio.create_task(told(http, "/v1/fusions?wait_s=2", {"prompt": "Why?"})),
                asyncio.create_task(
                    told(http, f"/v1/fusions?wait_s={WAIT_S}", {"prompt": "Why then?"})
                ),
                asyncio.create_task(told(http, "/v1/chat/completions", chat)),
            ]
            await model_server.wait_for_requests(9)
            server.kill()
            assert await waits[0] == 202  # its time is over before the database is back
            await asyncio.to_thread(server.start)
            assert await asyncio.gather(*waits[1:]) == [200, 200]


async def told(http: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> int:
    async with http.post(path, json=body) as response:
        return response.status


# -- replicas ---------------------------------------------------------------------------------


async def test_two_judges_on_postgresql_finish_each_of_many_fusions_once(
    make_settings: MakeSettings,
    nats: NatsServer,
    postgres_database: Database,
    running: Running,
    model_server: ModelServer,
    ops: Bus,
) -> None:
    settings = make_settings(nats=Nats(url=nats.url), database=postgres_database)
    told: Counter[str] = Counter()

    async def count(msg: Msg) -> None:
        told[msg.subject] += 1

    await ops.client.subscribe("fw.outcome.>", cb=count)
    async with running(
        settings, "judge", "judge", "worker-remote", "dispatcher", "ingest"
    ) as client:
        for first in range(0, MANY, 200):
            await submit(client, first, first + 200)

        async def all_done() -> bool:
            return await rows(settings, "SELECT count(*) FROM outcomes") == [(MANY,)]

        await eventually(all_done)
        await eventually(lambda: len(told) == MANY)

    assert await rows(
        settings, "SELECT status, is_degraded, count(*) FROM v_outcome GROUP BY 1, 2"
    ) == [("selected", False, MANY)]
    assert set(told.values()) == {1}
    assert model_server.stats.by_model == {"a": MANY, "b": MANY, "c": MANY, "j": 2 * MANY}
    assert await rows(settings, "SELECT count(*), count(DISTINCT fusion_id) FROM answers") == [
        (3 * MANY, MANY)
    ]
    query = "SELECT deadlocks, conflicts FROM pg_stat_database WHERE datname = current_database()"
    assert await rows(settings, query) == [(0, 0)]
    assert await subjects(ops, "FW_DEAD") == set()
