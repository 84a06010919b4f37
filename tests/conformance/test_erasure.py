"""What is erased is in no file any more: SQLite's, PostgreSQL's, and NATS's, byte by byte."""

import asyncio
import io
import json
import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import Insert, Table, func, insert, select, text

from fusewire.bus import Bus
from fusewire.contracts import Candidate
from fusewire.erasure import BrokerEraser, MessageOrigin, message_origin
from fusewire.errors import Transient
from fusewire.ids import fusion_id
from fusewire.settings import Database, Nats, Settings
from fusewire.store import file_rewrite, summaries
from fusewire.store.engine import Store
from fusewire.store.file_rewrite import rewrite_files
from fusewire.store.tables import (
    batch_lines,
    batches,
    budgets,
    candidates,
    file_chunks,
    metadata,
    outcomes,
    prompts,
)
from fusewire.store.tables import files as files_table
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import T0, make_candidate
from fusewire.testing.large_parts import picture
from fusewire.testing.model_script import ModelScript, Rule, Script, ScriptedCall
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_accounts import embedded_broker
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import PostgresServer
from fusewire.topology import BLOB_STORE, candidate_subject
from fusewire_cli import erase as erase_module
from fusewire_cli.client import Client
from fusewire_ingest.repository.erasures import TOUCHED, Erasures, ErasureTarget
from fusewire_ingest.repository.line_erasure import erase_lines

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
Http = aiohttp.ClientSession

ACTOR = "operator:ada"
TOOL = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}


@pytest.fixture
def canary() -> str:
    """A text that nothing else holds; of base64's characters, so that an image may hold it."""
    return f"Kanari{secrets.token_hex(8)}"


@pytest.fixture
def settings(
    make_settings: MakeSettings, database: Database, model_server: ModelServer, canary: str
) -> Settings:
    """Members that see images and answer with the canary, in texts and in calls."""
    call = ScriptedCall(name="note", arguments={"text": f"call {canary}"})
    answers = {
        name: ModelScript(answer=f"{name * 3} {canary} for {{prompt}}", calls=(call,))
        for name in "abc"
    }
    winner = json.dumps({"winner": "A", "reason": f"sentence {canary}"})
    judge = ModelScript(rules=(Rule(match="(?s).*", answer=winner),))
    model_server.set_script(Script(models={**answers, "j": judge}))
    hosted = {"kind": "remote", "base_url": model_server.base_url, "images": True}
    return make_settings(
        database=database,
        models={name: {**hosted, "model": name} for name in "abc"},
        tenants={"default": {}},
    )


@dataclass(frozen=True)
class Files:
    """The files of a stack: of its database, its broker, and its logs."""

    folders: tuple[Path, ...]

    def of(self, content: str) -> list[str]:
        """Those that hold a text."""
        return [
            str(path)
            for folder in self.folders
            for path in sorted(folder.rglob("*"))
            # PostgreSQL uses the segments of its write-ahead log again: it is documented.
            if path.is_file() and "pg_wal" not in path.parts and content.encode() in _bytes(path)
        ]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.fixture
def files(tmp_path: Path, settings: Settings, request: pytest.FixtureRequest) -> Files:
    if "sqlite" in settings.database.url:
        return Files((tmp_path,))
    server: PostgresServer = request.getfixturevalue("postgres")
    return Files((tmp_path, server._data))


# -- what is stored -----------------------------------------------------------------------------


def image(canary: str) -> str:
    url = picture(60_000)
    return url[:1000] + canary * 50 + url[1000 + len(canary) * 50 :]


async def chat(http: Http, canary: str, **fields: Any) -> str:
    """A chat completion with an image; returns the fusion's id."""
    parts = [
        {"type": "text", "text": f"What of {canary}?"},
        {"type": "image_url", "image_url": {"url": image(canary)}},
    ]
    body = {
        "model": "openrouter/fusion",
        "messages": [{"role": "user", "content": parts}],
        **fields,
    }
    data = io.BytesIO(json.dumps(body).encode())
    headers = {"content-type": "application/json"}
    async with http.post("/v1/chat/completions", data=data, headers=headers) as reply:
        assert reply.status == 200, await reply.text()
        return reply.headers["x-fusewire-outcome"]


async def run_batch(http: Http, *lines: dict[str, Any], until: str = "completed") -> dict[str, Any]:
    """Upload a file, run its batch, and wait for the end."""
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    form.add_field("file", io.BytesIO(data), filename="in.jsonl", content_type="application/jsonl")
    async with http.post("/v1/files", data=form) as reply:
        file = await reply.json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    async with http.post("/v1/batches", json=body) as reply:
        batch = await reply.json()

    async def ended() -> dict[str, Any] | None:
        async with http.get(f"/v1/batches/{batch['id']}") as reply:
            shown: dict[str, Any] = await reply.json()
        return shown if shown["status"] == until else None

    ended_batch = await eventually(ended)
    assert ended_batch is not None
    return dict(ended_batch)


async def fill(client: Client, config: Settings, canary: str) -> None:
    """Leave the canary in every place that may hold content."""
    async with Http(client.url) as http:
        await chat(http, canary)
        await chat(http, canary, tools=[TOOL], tool_choice="required")
        await run_batch(
            http,
            {"custom_id": f"id-{canary}", "prompt": f"Why {canary}?"},
            {"custom_id": "other", "prompt": f"Why not {canary}?"},
        )
    bus = Bus("ops", embedded_broker(config.data_dir))
    await bus.connect(timeout_s=30)
    # No prompt: it becomes a dead letter, whose body is sealed.
    await bus.publish("fw.in.default", f"rubbish {canary}".encode(), msg_id=canary)

    async def is_dead() -> bool:
        return (await bus.js.stream_info("FW_DEAD_EDGE")).state.messages == 1

    await eventually(is_dead)
    await bus.stop()


async def write_out(settings: Settings) -> None:
    """Have PostgreSQL write what it has in memory, and statistics, which quote values."""
    if "postgres" not in settings.database.url:
        return
    store = Store(settings.database)
    async with store.engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text("ANALYZE"))
        await connection.execute(text("CHECKPOINT"))
    await store.close()


@pytest.fixture
async def erase(settings: Settings) -> Callable[..., Any]:
    """Erases as the command does."""

    async def run(tenant: str = "default", *given: str) -> dict[str, Any]:
        target = ErasureTarget(tenant, *given)
        report = await erase_module._run(settings, target, is_sure=True)
        assert report is not None
        return report

    return run


# -- erasing a tenant ---------------------------------------------------------------------------


async def test_a_tenant_is_in_no_file_any_more(
    settings: Settings, stack: Running, files: Files, canary: str, erase: Callable[..., Any]
) -> None:
    async with stack(settings) as client:
        await fill(client, settings, canary)
        await write_out(settings)
        held = files.of(canary)
        assert any("/nats/" in path for path in held)
        assert any("/nats/" not in path for path in held)

        report = await erase()

        assert files.of(canary) == []
        assert report["remains"] == []
        assert report["counts"]["sql.fusions"] == 4
        assert {"nats.FW_OUTCOME", "nats.FW_DEAD", "nats.FW_DEAD_EDGE"} <= report["counts"].keys()
        assert await client.submit({"prompt": "still here?"}, wait_s=100)
    assert files.of(canary)  # in the answers to the new prompt


async def undescribed(bus: Bus) -> None:
    """As a publication that failed leaves the pieces."""
    await bus.js.purge_stream(f"OBJ_{BLOB_STORE}", subject=f"$O.{BLOB_STORE}.M.*")


async def put_by_an_earlier_release(bus: Bus) -> None:
    """The pieces have the subject that nats-py gives them."""
    store = await bus.js.object_store(BLOB_STORE)
    (described,) = await store.list()
    stored = await store.get(described.name)
    await store.put(described.name, stored.data or b"")


@pytest.mark.parametrize("leave", [undescribed, put_by_an_earlier_release])
async def test_pieces_of_an_image_are_erased_however_they_were_left(
    settings: Settings,
    stack: Running,
    files: Files,
    canary: str,
    erase: Callable[..., Any],
    leave: Callable[[Bus], Awaitable[None]],
) -> None:
    async with stack(settings) as client:
        async with Http(client.url) as http:
            await chat(http, canary)
        bus = Bus("ops", embedded_broker(settings.data_dir))
        await bus.connect(timeout_s=30)
        await leave(bus)
        info = await bus.js.stream_info(f"OBJ_{BLOB_STORE}", subjects_filter="$O.*.C.>")
        assert info.state.subjects
        await bus.stop()

        report = await erase()

        assert files.of(canary) == []
        assert report["remains"] == []


async def test_it_works_where_nothing_runs(
    settings: Settings, stack: Running, files: Files, canary: str, erase: Callable[..., Any]
) -> None:
    async with stack(settings) as client:
        await fill(client, settings, canary)
    await write_out(settings)
    assert files.of(canary)

    await erase()

    assert files.of(canary) == []


async def test_a_message_that_comes_in_between_is_erased_too(
    settings: Settings,
    stack: Running,
    files: Files,
    canary: str,
    erase: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = Erasures.erase_tenant
    async with stack(settings) as client:
        await client.submit({"prompt": f"Why {canary}?"}, wait_s=100)

        async def erase_tenant(self: Erasures, erasure_id: str, tenant: str) -> None:
            bus = Bus("ops", embedded_broker(settings.data_dir))
            await bus.connect(timeout_s=30)
            body = f"late {canary}".encode()
            await bus.publish("fw.outcome.default.flate", body, msg_id="late")
            await bus.stop()
            await whole(self, erasure_id, tenant)

        monkeypatch.setattr(Erasures, "erase_tenant", erase_tenant)
        await erase()
        assert files.of(canary) == []


async def test_a_message_of_a_fusion_whose_rows_an_interrupted_run_has_erased_is_erased_too(
    settings: Settings,
    stack: Running,
    files: Files,
    canary: str,
    erase: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names its fusion alone, and no row says any more whose that was."""

    async def end(self: Erasures, erasure_id: str, tenant: str) -> None:
        raise Transient("killed")

    async with stack(settings) as client:
        key = (await client.submit({"prompt": f"Why {canary}?"}, wait_s=100))["id"]
        with monkeypatch.context() as patch:
            patch.setattr(Erasures, "erase_tenant", end)
            with pytest.raises(Transient, match="killed"):
                await erase()
        bus = Bus("ops", embedded_broker(settings.data_dir))
        await bus.connect(timeout_s=30)
        headers = {"Fw-Subject": candidate_subject(key, 0, "a")}
        await bus.publish("fw.dead.judge.FW_CANDIDATE", canary.encode(), headers=headers)
        await bus.stop()

        await erase()

        assert files.of(canary) == []


STEPS = (
    (BrokerEraser, "_delete", 2),
    (BrokerEraser, "tidy", 1),
    (Erasures, "large_parts", 1),
    (Erasures, "_erase_some", 2),
    (Erasures, "erase_tenant", 1),
    (Erasures, "complete", 1),
    (erase_module, "rewrite_files", 1),
)


@pytest.mark.parametrize(("owner", "name", "call"), STEPS, ids=[step[1] for step in STEPS])
async def test_one_that_was_interrupted_is_gone_on_with(
    owner: Any,
    name: str,
    call: int,
    settings: Settings,
    stack: Running,
    files: Files,
    canary: str,
    erase: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run ends when a step is called for the first or second time."""
    monkeypatch.setattr("fusewire_ingest.repository.erasures.AT_ONCE", 1)
    async with stack(settings) as client:
        await fill(client, settings, canary)
    whole = getattr(owner, name)
    calls = 0

    async def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Transient("killed")
        return await whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        with pytest.raises(Transient, match="killed"):
            await erase()
    store = Store(settings.database)
    (begun,) = await Erasures(store).all()
    assert begun.completed_at is None

    report = await erase()

    (ended,) = await Erasures(store).all()
    await store.close()
    assert files.of(canary) == []
    assert (ended.erasure_id, report["erasure_id"]) == (begun.erasure_id, begun.erasure_id)
    assert ended.completed_at is not None
    assert ended.counts["sql.fusions"] == 4


# -- erasing one custom_id ----------------------------------------------------------------------


async def test_one_custom_id_is_erased_and_all_else_stays(
    settings: Settings, stack: Running, files: Files, canary: str, erase: Callable[..., Any]
) -> None:
    lines = [
        {"custom_id": "first", "prompt": "one"},
        {"custom_id": f"id-{canary}", "prompt": f"two {canary}"},
        {"custom_id": "last", "prompt": "three"},
    ]
    async with stack(settings) as client, Http(client.url) as http:
        other = await client.submit({"prompt": "stays", "custom_id": "other"}, wait_s=100)
        mine = {"prompt": f"goes {canary}", "custom_id": f"id-{canary}"}
        await client.submit(mine, wait_s=100)
        batch = await run_batch(http, *lines)

        report = await erase("default", f"id-{canary}")

        # The members still say it of the prompts that stay.
        assert files.of(f"id-{canary}") == []
        assert files.of(f"two {canary}") == files.of(f"goes {canary}") == []
        assert (report["counts"]["sql.fusions"], report["counts"]["sql.file_lines"]) == (2, 1)
        assert canary not in json.dumps(report)
        assert (await client.get(other["id"]))["content"] == other["content"]
        async with http.get(f"/v1/files/{batch['input_file_id']}/content") as reply:
            content = (await reply.read()).split(b"\n")
        assert [json.loads(line) for line in content[:-1]] == [lines[0], {}, lines[2]]
        assert [len(line) for line in content[:-1]] == [len(json.dumps(line)) for line in lines]
        async with http.get(f"/v1/files/{batch['output_file_id']}/content") as reply:
            output = [json.loads(line) for line in (await reply.text()).splitlines()]
        assert [line["index"] for line in output] == [1, 2, 3]
        assert [line["error"] and line["error"]["code"] for line in output] == [
            None,
            "erased",
            None,
        ]
        await expect_right_sums(settings)


async def test_it_is_in_no_error_of_a_refused_batch(
    settings: Settings, stack: Running, files: Files, canary: str, erase: Callable[..., Any]
) -> None:
    line = {"custom_id": f"id-{canary}", "prompt": "twice"}
    async with stack(settings) as client, Http(client.url) as http:
        batch = await run_batch(http, line, line, until="failed")
        assert canary in json.dumps(batch["errors"])

        report = await erase("default", f"id-{canary}")

        async with http.get(f"/v1/batches/{batch['id']}") as reply:
            assert (await reply.json())["errors"]["data"][0]["message"] == "erased on request"
    assert files.of(canary) == []
    assert report["counts"]["sql.file_lines"] == 2


async def expect_right_sums(settings: Settings) -> None:
    """The sums are those that the stored outcomes give."""
    query = text("SELECT day, outcomes FROM v_pool_day ORDER BY day")
    store = Store(settings.database)
    async with store.write() as connection:
        before = (await connection.execute(query)).all()
        await connection.run_sync(summaries.rebuild)
        assert (await connection.execute(query)).all() == before
    await store.close()


async def test_the_batch_says_which_custom_id_is_meant(
    settings: Settings, stack: Running, canary: str, erase: Callable[..., Any]
) -> None:
    line = {"custom_id": "same", "prompt": "why"}
    async with stack(settings) as client, Http(client.url) as http:
        first, second = [await run_batch(http, line) for _ in range(2)]
        await client.submit({"prompt": "alone", "custom_id": "same"}, wait_s=100)

        report = await erase("default", "same", first["id"])

        assert (report["counts"]["sql.fusions"], report["counts"]["sql.file_lines"]) == (1, 1)
        async with http.get(f"/v1/files/{second['input_file_id']}/content") as reply:
            assert json.loads(await reply.read()) == line
    store = Store(settings.database)
    async with store.read() as connection:
        left = set((await connection.execute(select(prompts.c.batch_id))).scalars())
    await store.close()
    assert left == {None, second["id"]}


async def test_a_running_fusion_is_cancelled_first(
    settings: Settings,
    stack: Running,
    files: Files,
    model_server: ModelServer,
    canary: str,
    erase: Callable[..., Any],
) -> None:
    slow = ModelScript(answer=canary, latency_ms=60_000)
    model_server.set_script(Script(models=dict.fromkeys("abcj", slow)))
    async with stack(settings) as client:
        await client.submit({"prompt": f"Wait, {canary}", "custom_id": "slow"})
        await model_server.wait_for_requests(3)

        await erase("default", "slow")

        async def is_gone() -> bool:
            return files.of(canary) == []

        await eventually(is_gone)


async def test_tasks_that_wait_are_erased_where_nothing_runs(
    settings: Settings,
    stack: Running,
    files: Files,
    model_server: ModelServer,
    canary: str,
    erase: Callable[..., Any],
) -> None:
    hanging = ModelScript(answer=canary, latency_ms=600_000)
    model_server.set_script(Script(models=dict.fromkeys("abcj", hanging)))
    async with stack(settings) as client:
        await client.submit({"prompt": f"Wait, {canary}", "custom_id": "slow"})
        await model_server.wait_for_requests(3)
    await write_out(settings)
    assert any("FW_TASK_REMOTE" in path for path in files.of(canary))

    report = await erase("default", "slow")

    assert report["counts"]["nats.FW_TASK_REMOTE"] == 1
    assert files.of(canary) == []


async def test_fusions_that_do_not_end_are_not_erased(
    make_settings: MakeSettings,
    running: Running,
    nats: NatsServer,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ingest runs alone, and nobody ends what it accepts."""
    monkeypatch.setattr(erase_module, "WAIT_S", 0.5)
    settings = make_settings(nats=Nats(url=nats.url), database=database)
    async with running(settings, "ingest") as client:
        await client.submit({"prompt": "Why?", "custom_id": "open"})
        with pytest.raises(Transient, match="1 fusions were cancelled, and have not ended"):
            await erase_module._run(settings, ErasureTarget("default", "open"), is_sure=True)
    store = Store(database)
    async with store.read() as connection:
        row = (await connection.execute(select(prompts))).one()
    await store.close()
    assert row.cancelled_at is not None


async def test_a_running_batch_is_not_torn(
    make_settings: MakeSettings,
    running: Running,
    nats: NatsServer,
    database: Database,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = make_settings(nats=Nats(url=nats.url), database=database)
    store = Store(database)
    async with store.write() as connection:
        await connection.execute(
            text(
                "INSERT INTO batches (batch_id, tenant, status, endpoint, input_file_id, options,"
                " priority, completion_window, total, completed, failed, degraded, tokens_in,"
                " tokens_out, cost_usd, n_unpriced, created_at, touched_at, expires_at) VALUES"
                " ('b1', 't', 'in_progress', '/', 'f', '{}', 'low', '24h', 1, 0, 0, 0, 0, 0, 0, 0,"
                f" '{T0}', '{T0}', '{T0}')"
            )
        )
    async with running(settings, "judge"):
        with pytest.raises(SystemExit) as ended:
            await erase_module._run(settings, ErasureTarget("t"), is_sure=True)
    assert ended.value.code == 2
    assert "batch 'b1' still runs" in capsys.readouterr().err
    assert await Erasures(store).all() == []
    await store.close()


# -- what comes late ----------------------------------------------------------------------------


async def test_what_comes_late_is_not_stored_again(
    make_settings: MakeSettings, running: Running, nats: NatsServer, database: Database
) -> None:
    settings = make_settings(nats=Nats(url=nats.url), database=database)
    candidate: Candidate = make_candidate()
    store = Store(database)
    async with running(settings, "judge"):
        bus = Bus("ops", Nats(url=nats.url))
        await bus.connect(timeout_s=30)
        subject = candidate_subject(candidate.fusion_id, candidate.round, candidate.call)
        await bus.publish(subject, candidate, msg_id="late")

        async def is_handled() -> bool:
            return (await bus.js.stream_info("FW_CANDIDATE")).state.messages == 0

        await eventually(is_handled)
        await bus.stop()
    async with store.read() as connection:
        for table in (candidates, outcomes, prompts):
            count = select(func.count()).select_from(table)
            assert (await connection.execute(count)).scalar_one() == 0
    await store.close()


# -- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "body", "origin"),
    [
        (
            "fw.prompt.high.t",
            {"custom_id": "c", "batch_id": "b"},
            MessageOrigin("t", fusion_id("t", "b", "c"), "c", "b"),
        ),
        ("fw.in.t", {"custom_id": "c"}, MessageOrigin("t", None, "c")),
        ("fw.outcome.t.f1", None, MessageOrigin("t", "f1")),
        ("fw.candidate.f1.0.a", None, MessageOrigin(None, "f1")),
        ("fw.plan.f1", {"tenant": "t"}, MessageOrigin("t", "f1")),
        ("fw.round.f1", {"tenant": "t"}, MessageOrigin("t", "f1")),
        ("fw.sched.f1", None, MessageOrigin(None, "f1")),
        (
            "fw.task.remote.default.high",
            {"tenant": "t", "fusion_id": "f1"},
            MessageOrigin("t", "f1"),
        ),
        (f"$KV.fw_calls.{'f' * 27}-0-default", None, MessageOrigin(None, "f" * 27)),
        ("fw.sealed.FW_IN.7", {"custom_id": "c", "tenant": "t"}, MessageOrigin("t", None, "c")),
        ("fw.sealed.FW_IN.7", ["no", "object"], MessageOrigin()),
        ("fw.in.t", {"custom_id": 5}, MessageOrigin("t")),
    ],
)
def test_messages_say_where_they_are_from(
    subject: str, body: object, origin: MessageOrigin
) -> None:
    data = b"" if body is None else json.dumps(body).encode()
    assert message_origin(subject, data) == origin


async def test_a_deleted_message_is_overwritten_and_a_missing_one_is_no_fault(
    bus: Bus, tmp_path: Path
) -> None:
    files = Files((tmp_path,))

    async def is_target(origin: MessageOrigin) -> bool:
        return origin.tenant == "goes"

    async def count(stream: str, erased: int) -> None:
        counts[stream] = erased

    counts: dict[str, int] = {}
    for tenant in ("goes", "stays", "goes"):
        await bus.publish(f"fw.outcome.{tenant}.f1", f"text of {tenant}".encode(), msg_id=None)
    eraser = BrokerEraser(bus.js, "goes", is_target, count)
    assert await eraser.count() == {"FW_OUTCOME": 2}

    await eraser.erase([])
    await eraser._delete("FW_OUTCOME", [1])

    assert files.of("text of goes") == []
    assert files.of("text of stays")
    assert counts["FW_OUTCOME"] == 1


async def test_streams_in_use_are_named(bus: Bus, tmp_path: Path) -> None:
    async def nothing(*_: Any) -> bool:
        return False

    eraser = BrokerEraser(bus.js, "t", nothing, nothing)  # type: ignore[arg-type]
    blobs = bus.blobs("fw_blobs")
    await blobs.put("gone", b"somebody" * 1000)
    await blobs.delete("gone")
    assert Files((tmp_path,)).of("somebody")

    assert await eraser.tidy() == []

    assert Files((tmp_path,)).of("somebody") == []
    await blobs.put("here", b"x")
    await bus.publish("fw.in.t", b"waits", msg_id="1")
    assert await eraser.tidy() == ["FW_IN", "OBJ_fw_blobs"]


async def test_free_pages_of_sqlite_are_dropped(sqlite_database: Database, tmp_path: Path) -> None:
    """Some builds of SQLite leave deleted bytes where they were."""
    store = Store(sqlite_database)
    plain = sqlite3.connect(str(store.url.database), isolation_level=None)
    plain.execute("PRAGMA secure_delete = OFF")
    plain.execute("CREATE TABLE t (x text)")
    plain.executemany("INSERT INTO t VALUES (?)", [("somebody" * 100,)] * 100)
    plain.execute("DELETE FROM t")
    plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    plain.close()
    assert Files((tmp_path,)).of("somebody")

    assert await rewrite_files(store, TOUCHED) == []

    assert Files((tmp_path,)).of("somebody") == []
    await store.close()


async def test_a_reader_in_between_is_waited_for(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_rewrite, "BUSY_S", 0.3)
    store = Store(sqlite_database)
    async with store.read() as connection:
        await connection.execute(select(func.count()).select_from(prompts))
        async with store.write() as other:
            await other.execute(text("CREATE TABLE t (x text)"))
        with pytest.raises(Transient, match="others have read the database"):
            await rewrite_files(store, TOUCHED)
    assert await rewrite_files(store, TOUCHED) == []
    await store.close()


async def test_what_a_user_of_postgresql_may_not_do_is_said(
    postgres_database: Database, postgres: PostgresServer
) -> None:
    owner = Store(postgres_database)
    name = str(owner.url.database)
    async with owner.write() as connection:
        await connection.execute(text(f"CREATE ROLE plain_{name} LOGIN"))
        await connection.execute(
            text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain_{name}")
        )
    superuser = postgres.url(name).partition("//")[2].partition("@")[0]
    url = postgres.url(name).replace(superuser, f"plain_{name}", 1)
    plain = Store(Database(url=url))

    undone = await rewrite_files(plain, TOUCHED)

    assert undone[0].startswith("tables answers, api_keys, batch_lines,")
    assert ["a superuser of PostgreSQL can" in line for line in undone] == [
        False,
        True,
        True,
        True,
    ]
    assert await rewrite_files(owner, TOUCHED) == []
    await plain.close()
    await owner.close()


async def test_reservations_are_given_back(store: Store) -> None:
    async with store.write() as connection:
        for statement in (
            (
                "INSERT INTO budgets (tenant, period, reserved_usd, spent_usd) VALUES"
                " ('t', '2026-01', 5, 1), ('pool:p', 'total', 3, 0)"
            ),
            "INSERT INTO reservations VALUES ('f1', 't', '2026-01', 2)",
            "INSERT INTO budget_holds VALUES ('f1', 'pool:p', 'total', 2)",
            (
                "INSERT INTO prompts (fusion_id, tenant, custom_id, pool, mode, residency,"
                " priority, body, body_hash, prompt_hash, submitted_at, deadline_at) VALUES"
                f" ('f1', 't', 'c', 'p', 'm', 'any', 'low', '', '', '', '{T0}', '{T0}')"
            ),
        ):
            await connection.execute(text(statement))
    erasures = Erasures(store)
    erasure = await erasures.begin("t", "hash", T0, ACTOR)

    await erasures.erase_fusions(erasure.erasure_id, ErasureTarget("t", "c"))

    async with store.read() as connection:
        rows = (await connection.execute(select(budgets).order_by(budgets.c.account))).all()
        n_left = await connection.execute(text("SELECT count(*) FROM budget_holds"))
    figures = [(row.account, row.reserved_usd, row.spent_usd) for row in rows]
    assert figures == [("pool:p", 1, 2), ("t", 3, 3)]
    assert n_left.scalar() == 0


def test_each_table_with_content_is_rewritten() -> None:
    kept = {
        "published_to",
        "processes",
        "budgets",
        "budget_limits",
        "audit_log",
        "erasures",
        "schema_compatibility",
    }
    sums = {table for table in metadata.tables if table.endswith("_days")}
    assert {table.name for table in TOUCHED} == set(metadata.tables) - kept - sums


def bare_row(table: Table, **values: Any) -> Insert:
    """A row with these values, and with something in all other columns that need it."""
    kinds = {str: "", int: 0, float: 0.0, bytes: b"", bool: True}
    needed = [c for c in table.columns if not c.nullable and c.server_default is None]
    defaults = {c.name: kinds.get(c.type.python_type, T0) for c in needed}
    return insert(table).values(defaults | values)


async def test_lines_of_one_file_that_are_erased_at_the_same_time_are_all_gone(
    store: Store,
) -> None:
    names = [f"line-{number}" for number in range(10)]
    lines = [json.dumps({"custom_id": name, "prompt": "Why?"}).encode() for name in names]
    errors = json.dumps([{"message": name} for name in names])
    async with store.write() as connection:
        await connection.execute(bare_row(files_table, file_id="f", tenant="t"))
        await connection.execute(
            bare_row(file_chunks, file_id="f", number=0, data=b"\n".join(lines))
        )
        await connection.execute(
            bare_row(batches, batch_id="b", tenant="t", input_file_id="f", errors=errors)
        )
        for number, name in enumerate(names):
            row = bare_row(batch_lines, batch_id="b", line=number, custom_id=name, state="held")
            await connection.execute(row)
    erasure = await Erasures(store).begin("t", "hash", T0, ACTOR)

    await asyncio.gather(
        *(erase_lines(store, erasure.erasure_id, ErasureTarget("t", name)) for name in names)
    )

    async with store.read() as connection:
        data = (await connection.execute(select(file_chunks.c.data))).scalar_one()
        batch = (await connection.execute(select(batches))).one()
        settled = (await connection.execute(select(batch_lines.c.settled))).scalars().all()
    assert [json.loads(line) for line in data.split(b"\n")] == [{}] * len(names)
    assert "line-" not in batch.errors
    assert (batch.failed, sorted(settled)) == (len(names), list(range(1, len(names) + 1)))
    (report,) = await Erasures(store).all()
    assert report.counts == {"sql.batch_lines": len(names), "sql.file_lines": len(names)}


async def test_two_erasures_of_the_same_are_two_reports(store: Store) -> None:
    erasures = Erasures(store)
    first = await erasures.begin("t", None, T0, ACTOR)
    assert (await erasures.begin("t", None, T0, ACTOR)).erasure_id == first.erasure_id
    assert (await erasures.begin("t", "hash", T0, ACTOR)).erasure_id != first.erasure_id
    await asyncio.gather(*(erasures.add(first.erasure_id, {"a": count}) for count in range(10)))
    assert (await erasures.complete(first.erasure_id, T0, ACTOR)).counts == {"a": sum(range(10))}
    query = text("SELECT action, actor, tenant FROM audit_log WHERE target = :id ORDER BY action")
    async with store.read() as connection:
        actions = [tuple(r) for r in await connection.execute(query, {"id": first.erasure_id})]
    assert actions == [("erasure.completed", ACTOR, "t"), ("erasure.requested", ACTOR, "t")]
    assert (await erasures.begin("t", None, T0, ACTOR)).erasure_id != first.erasure_id
