"""What nobody wants any more ends at once, whatever it had come to; on both databases."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import text, update

from fusewire import ids, replies
from fusewire.bus import Bus
from fusewire.cancel import CancelledFusions
from fusewire.contracts import Candidate, Task
from fusewire.settings import Database, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.tables import fusions, prompts
from fusewire.testing.echo_worker import EchoWorker
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import T0, known_usage
from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import cancel_subject, due_subject
from fusewire.worker import Worker
from fusewire_cli.client import Client
from fusewire_dispatcher.service import Dispatcher
from fusewire_worker_edge.generate import EdgeGenerate
from fusewire_worker_edge.pull import pull
from fusewire_worker_edge.service import WorkerEdge

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
WAIT_S = 250
SLOW = ModelScript(latency_ms=1500)
TINY = {"tiny": {"kind": "edge", "path": "/nowhere"}}
ONE = ids.fusion_id("default", None, "one")


@pytest.fixture
def settings(
    make_settings: MakeSettings, nats: NatsServer, database: Database
) -> Callable[..., Settings]:
    """Settings on the test's own broker and either database: `settings(pool={…}, models={…})`."""

    def make(**sections: Any) -> Settings:
        return make_settings(nats=Nats(url=nats.url), database=database, **sections)

    return make


async def mark(config: Settings, fusion_id: str) -> None:
    """What counts."""
    store = Store(config.database)
    async with store.write() as connection:
        marked = (
            update(prompts)
            .where(prompts.c.fusion_id == fusion_id)
            .values(cancelled_at=datetime.now(UTC))
        )
        assert (await connection.execute(marked)).rowcount == 1
    await store.close()


async def tell(ops: Bus, fusion_id: str) -> None:
    """What spares calls."""
    await ops.client.publish(cancel_subject(fusion_id), b"")
    await ops.client.flush()


async def cancel(config: Settings, ops: Bus, fusion_id: str = ONE) -> None:
    """As ingest does."""
    await mark(config, fusion_id)
    await tell(ops, fusion_id)
    await ops.publish(due_subject(fusion_id), b"{}")


async def rows(config: Settings, query: str) -> list[tuple[Any, ...]]:
    store = Store(config.database)
    async with store.read() as connection:
        found = [tuple(row) for row in await connection.execute(text(query))]
    await store.close()
    return found


async def heard(config: Settings, fusion_id: str = ONE) -> dict[str, Candidate]:
    """Every candidate that is stored, by call."""
    found = await rows(config, f"SELECT body FROM candidates WHERE fusion_id = '{fusion_id}'")
    return {one.call: one for one in (Candidate.decode(body) for (body,) in found)}


async def is_drained(ops: Bus, *streams: str) -> bool:
    return not any([(await ops.js.stream_info(stream)).state.messages for stream in streams])


def submission(custom_id: str = "one", **fields: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "custom_id": custom_id, **fields}


def parts(shown: replies.fusions.Fusion) -> dict[str, str]:
    return {answer["member"]: answer["status"] for answer in shown["answers"]}


# -- the outcome ------------------------------------------------------------------------------


async def test_answers_that_came_are_listed_and_those_that_come_later_are_stored(
    settings: Callable[..., Settings], running: Running, ops: Bus, model_server: ModelServer
) -> None:
    config = settings()
    model_server.set_script(Script(models={"b": SLOW, "c": SLOW}))
    async with running(config, *ALL) as client:
        await client.submit(submission())

        async def first() -> bool:
            return "a" in await heard(config)

        await eventually(first)
        await cancel(config, ops)
        shown = await client.get(ONE, wait_s=WAIT_S)

        async def all_ended() -> bool:
            return len(await heard(config)) == 3

        await eventually(all_ended)
        after = await client.get(ONE)

    assert (shown["status"], shown["content"], shown["winner"]) == ("cancelled", None, None)
    assert (shown["is_degraded"], shown["error"]) == (False, "cancelled by the client")
    assert parts(shown)["a"] == "ok"
    # Calls that were under way are paid for: they end, and are kept.
    ended = await heard(config)
    assert all(one.ok for one in ended.values())
    listed = [one for name, one in ended.items() if parts(shown)[name] == "ok"]
    assert shown["usage"] is not None
    assert (
        shown["usage"]["prompt_tokens"] == sum(known_usage(one).prompt_tokens for one in listed) > 0
    )
    assert after == shown
    assert "j" not in model_server.stats.by_model
    assert await rows(config, "SELECT status, n_answered FROM v_outcome") == [
        ("cancelled", list(parts(shown).values()).count("ok"))
    ]


async def test_one_that_the_judge_works_on_is_cancelled_too(
    settings: Callable[..., Settings], running: Running, ops: Bus, model_server: ModelServer
) -> None:
    config = settings()
    model_server.set_script(Script(models={"j": SLOW}))
    async with running(config, *ALL) as client:
        await client.submit(submission())
        await model_server.wait_for_requests(4)
        await cancel(config, ops)
        shown = await client.get(ONE, wait_s=WAIT_S)

    assert (shown["status"], shown["rounds"]) == ("cancelled", 1)
    assert parts(shown) == dict.fromkeys("abc", "ok")
    assert await rows(config, "SELECT count(*) FROM outcomes") == [(1,)]


async def test_one_that_was_never_planned_stays_cancelled_whatever_comes_of_it(
    settings: Callable[..., Settings], running: Running, ops: Bus, model_server: ModelServer
) -> None:
    config = settings()
    async with running(config, "judge", "ingest") as client:
        await client.submit(submission())
        await cancel(config, ops)
        shown = await client.get(ONE, wait_s=WAIT_S)
        # These have not heard of it, and do their work.
        async with running(config, "dispatcher", "worker-remote"):

            async def all_ended() -> bool:
                return len(await heard(config)) == 3

            await eventually(all_ended)
        after = await client.get(ONE)

    assert (shown["status"], shown["answers"], shown["cost_usd"]) == ("cancelled", [], 0)
    assert after == shown
    late = await rows(config, "SELECT count(*) FROM candidates WHERE NOT is_late")
    assert (late, "j" in model_server.stats.by_model) == ([(0,)], False)


async def test_the_next_message_finds_the_mark_where_the_nudge_was_lost(
    settings: Callable[..., Settings], running: Running, model_server: ModelServer
) -> None:
    config = settings()
    model_server.set_script(Script(models={"c": ModelScript(latency_ms=300)}))
    async with running(config, "judge", "dispatcher", "ingest") as client:
        await client.submit(submission())
        await mark(config, ONE)
        async with running(config, "worker-remote"):
            shown = await client.get(ONE, wait_s=WAIT_S)

    assert shown["status"] == "cancelled"


async def test_what_is_done_stays_as_it_is(
    settings: Callable[..., Settings], running: Running, ops: Bus, model_server: ModelServer
) -> None:
    config = settings()
    async with running(config, *ALL) as client:
        before = await client.submit(submission(), wait_s=WAIT_S)
        await cancel(config, ops)

        async def is_taken() -> bool:
            return not (
                await ops.js.stream_info("FW_TIMER", subjects_filter="fw.due.*")
            ).state.subjects

        await eventually(is_taken)
        after = await client.get(ONE)

    assert before["status"] == "selected"
    assert {**after, "is_repetition": None} == {**before, "is_repetition": None}
    assert await rows(config, "SELECT status FROM outcomes") == [("selected",)]


async def test_others_go_on(
    settings: Callable[..., Settings], running: Running, ops: Bus, model_server: ModelServer
) -> None:
    config = settings()
    model_server.set_script(Script(models={"*": ModelScript(latency_ms=300)}))
    names = ["one", "two", "three"]
    async with running(config, *ALL) as client:
        for name in names:
            await client.submit(submission(name))
        await cancel(config, ops)
        shown = [
            await client.get(ids.fusion_id("default", None, name), wait_s=WAIT_S) for name in names
        ]

    assert [one["status"] for one in shown] == ["cancelled", "selected", "selected"]


# -- nothing more is asked --------------------------------------------------------------------


async def test_a_round_that_was_not_published_never_is(
    settings: Callable[..., Settings], running: Running, ops: Bus, model_server: ModelServer
) -> None:
    """A judge that died before it published a round leaves that to the sweep, unless cancelled."""
    config = settings()
    async with running(config, "judge", "ingest", "dispatcher", "worker-remote") as client:
        await client.submit(submission())
        await client.get(ONE, wait_s=WAIT_S)
    store = Store(config.database)
    async with store.write() as connection:  # as if it had died then
        for table in ("outcomes", "answers", "verdicts"):
            await connection.execute(text(f"DELETE FROM {table}"))
        await connection.execute(text("DELETE FROM candidates WHERE round > 0"))
        await connection.execute(fusions.update().values(is_done=False, unpublished_since=T0))
    await store.close()
    await mark(config, ONE)
    for stream in ("FW_ROUND", "FW_TASK_REMOTE"):  # with what they remember of message ids
        await ops.js.delete_stream(stream)
    await ops.js.purge_stream("FW_CANDIDATE", subject=f"fw.candidate.{ONE}.1.*")
    await ops.js.delete_consumer("FW_CANDIDATE", "judge")

    async with running(config, "judge", "ingest") as client:
        shown = await client.get(ONE, wait_s=WAIT_S)

        async def all_again() -> bool:
            info = await ops.js.consumer_info("FW_CANDIDATE", "judge")
            return (info.num_pending, info.num_ack_pending) == (0, 0)

        await eventually(all_again)
        marked = (
            "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM fusions WHERE unpublished_since IS NOT NULL)"
        )
        await eventually(lambda: rows(config, marked))

    assert (shown["status"], shown["rounds"]) == ("cancelled", 1)
    assert await is_drained(ops, "FW_ROUND")


async def test_who_listens_is_known_to_the_server_at_once(ops: Bus) -> None:
    await CancelledFusions().listen(ops)

    assert ops.client.pending_data_size == 0, "the subscription is still to be sent"


async def test_dispatcher_drops_what_is_cancelled(
    settings: Callable[..., Settings], running: Running, ops: Bus, model_server: ModelServer
) -> None:
    config = settings()
    dispatcher = Dispatcher(config)
    async with running(config, "judge", "ingest", dispatcher) as client:
        await tell(ops, ONE)
        await eventually(lambda: ONE in dispatcher._cancelled)
        await client.submit(submission())
        other = await client.submit(submission("two"))

        async def planned() -> bool:
            return await rows(config, "SELECT fusion_id FROM fusions WHERE plan IS NOT NULL") == [
                (other["id"],)
            ]

        await eventually(planned)
        await eventually(lambda: is_drained(ops, "FW_PROMPT"))
        tasks = await ops.js.stream_info("FW_TASK_REMOTE")

    assert await rows(config, "SELECT plan FROM fusions ORDER BY plan IS NULL DESC LIMIT 1") == [
        (None,)
    ]
    assert tasks.state.messages == 1


async def test_a_task_that_waits_is_not_tried_and_one_under_way_ends(
    settings: Callable[..., Settings], running: Running, ops: Bus
) -> None:
    """The edge worker's wiring has two hands a model: the third task waits."""
    go = asyncio.Event()

    async def answer(task: Task) -> str:
        await go.wait()
        return f"4, says {task.fusion_id}"

    config = settings(models=TINY, pool={"members": ["tiny"], "judge": None})
    worker = EchoWorker(config, answer)
    names = ["under way", "another", "one"]
    async with running(config, "judge", "ingest", "dispatcher", worker) as client:
        for number, name in enumerate(names, 1):
            await client.submit(submission(name))

            async def taken(number: int = number) -> bool:
                info = await ops.js.stream_info("FW_TASK_EDGE")
                return (info.state.messages, len(worker.engine.tasks)) == (number, min(number, 2))

            await eventually(taken)
        under_way = ids.fusion_id("default", None, "under way")
        await cancel(config, ops)
        await cancel(config, ops, under_way)
        await eventually(lambda: all(one in worker.worker._cancelled for one in (ONE, under_way)))
        go.set()
        shown = [
            await client.get(ids.fusion_id("default", None, name), wait_s=WAIT_S) for name in names
        ]

        async def all_ended() -> bool:
            return await is_drained(ops, "FW_TASK_EDGE") and len(await heard(config)) == 1

        await eventually(all_ended)
        await eventually(lambda: heard(config, under_way))

    assert [one["status"] for one in shown] == ["cancelled", "single", "cancelled"]
    assert {task.fusion_id for task in worker.engine.tasks} == {under_way, shown[1]["id"]}
    (waited,) = (await heard(config)).values()
    assert waited.error is not None
    assert (waited.error.code, waited.attempts, waited.cost_usd) == ("cancelled", 0, 0)
    (ended,) = (await heard(config, under_way)).values()
    assert ended.ok
    assert await rows(
        config, "SELECT DISTINCT is_late FROM candidates WHERE error_code = 'cancelled'"
    ) == [(True,)]


async def test_what_a_local_model_writes_is_broken_off(
    settings: Callable[..., Settings], running: Running, ops: Bus
) -> None:
    """On the real SmolLM2-135M, which would write for minutes."""
    root = os.environ.get("FUSEWIRE_MODELS")
    model = {"kind": "edge", "path": str(pull("smollm2-135m", Path(root) if root else None))}
    config = settings(
        models={"tiny": model}, pool={"members": ["tiny"], "judge": None, "deadline_s": 900}
    )
    worker = WorkerEdge(config)
    endless = {"type": "string", "minLength": 100_000}

    def is_generating() -> bool:
        (loop,) = worker.loops
        assert isinstance(loop, Worker)
        return ONE in cast("EdgeGenerate", loop._generate)._running

    async with running(config, "judge", "ingest", "dispatcher", worker) as client:
        await client.submit(submission(max_tokens=4000, response_schema=endless))
        await eventually(is_generating)
        await cancel(config, ops)
        shown = await client.get(ONE, wait_s=WAIT_S)
        await eventually(lambda: heard(config))
        after = await client.submit(submission("two", max_tokens=4), wait_s=WAIT_S)

    (candidate,) = (await heard(config)).values()
    assert candidate.error is not None
    assert (candidate.error.code, candidate.attempts, candidate.cost_usd) == ("cancelled", 1, 0)
    assert (shown["status"], after["status"]) == ("cancelled", "single")
