"""What ended long ago is deleted with all that belongs to it, nothing else; on both databases."""

import asyncio
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any

import aiohttp
import pytest
from sqlalchemy import (
    Boolean,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    Table,
    delete,
    insert,
    select,
    text,
    update,
)
from structlog.testing import capture_logs

from fusewire.errors import TextsDeletedError
from fusewire.settings import Nats, Settings
from fusewire.store import summaries
from fusewire.store.engine import Store
from fusewire.store.history import history
from fusewire.store.tables import (
    audit_log,
    batch_lines,
    batches,
    budget_holds,
    candidates,
    file_chunks,
    files,
    image_uses,
    images,
    metadata,
    outcomes,
    prompts,
    reservations,
)
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import T0, FakeClock
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import ApiError, Client
from fusewire_ingest.repository import retention as repository
from fusewire_ingest.repository.lines import BatchLines
from fusewire_ingest.repository.retention import OF_A_FUSION, Retention
from fusewire_ingest.retention import Cleaner

DAY = timedelta(days=1)
FEW_SECONDS = 5 / 86_400
"""In days: time enough for whoever waits for an answer to read it."""


@pytest.fixture
def kept(store: Store) -> Retention:
    return Retention(store)


def row(table: Table, **given: Any) -> dict[str, Any]:
    """A row in which whatever must have a value has one."""

    def filled(kind: Any) -> Any:
        if isinstance(kind, LargeBinary):
            return b""
        if isinstance(kind, Boolean):
            return False
        if isinstance(kind, Integer | Float):
            return 0
        return T0 if isinstance(getattr(kind, "impl", kind), DateTime) else "x"

    return {
        c.name: given.get(c.name, filled(c.type))
        for c in table.columns
        if c.name in given or not c.nullable
    }


async def store_fusion(
    store: Store, fusion_id: str, tenant: str, at: datetime, **given: Any
) -> None:
    async with store.write() as connection:
        for table in OF_A_FUSION:
            times = {"finished_at": at, "submitted_at": at}
            values = {"fusion_id": fusion_id, "tenant": tenant, **times, **given}
            known = {name: value for name, value in values.items() if name in table.c}
            await connection.execute(insert(table).values(row(table, **known)))


async def store_batch(store: Store, batch_id: str, tenant: str, **given: Any) -> None:
    """With a line, an input file of its own, and an output file."""
    async with store.write() as connection:
        values = {
            "batch_id": batch_id,
            "tenant": tenant,
            "input_file_id": f"in-{batch_id}",
            **given,
        }
        await connection.execute(insert(batches).values(row(batches, **values)))
        await connection.execute(insert(batch_lines).values(row(batch_lines, batch_id=batch_id)))
        for file, of in ((f"in-{batch_id}", None), (f"out-{batch_id}", batch_id)):
            await connection.execute(
                insert(files).values(row(files, file_id=file, tenant=tenant, batch_id=of))
            )
            await connection.execute(insert(file_chunks).values(row(file_chunks, file_id=file)))


async def ids(store: Store, table: Table, column: str = "fusion_id") -> set[str]:
    async with store.read() as connection:
        return set((await connection.execute(select(table.c[column]))).scalars())


def test_every_table_that_names_a_fusion_is_seen_to() -> None:
    named = {table for table in metadata.tables.values() if "fusion_id" in table.c}
    assert named - set(OF_A_FUSION) - {audit_log} == {batch_lines, reservations, budget_holds}, (
        "these keep the fusion until they are gone"
    )


async def test_a_fusion_goes_with_all_that_belongs_to_it(store: Store, kept: Retention) -> None:
    for name, tenant, at in (("old", "t", T0), ("fresh", "t", T0 + 2 * DAY), ("other", "u", T0)):
        await store_fusion(store, name, tenant, at)

    assert await kept.delete_fusions("t", T0 + DAY) == 1

    for table in OF_A_FUSION:
        assert await ids(store, table) == {"fresh", "other"}, table.name
    assert await kept.delete_fusions("t", T0 + DAY) == 0


@pytest.mark.parametrize("table", [reservations, budget_holds], ids=str)
async def test_what_a_budget_has_not_settled_yet_stays(
    store: Store, kept: Retention, table: Table
) -> None:
    await store_fusion(store, "old", "t", T0)
    async with store.write() as connection:
        await connection.execute(insert(table).values(row(table, fusion_id="old")))

    assert await kept.delete_fusions("t", T0 + DAY) == 0
    assert await ids(store, outcomes) == {"old"}


async def test_a_batch_goes_with_its_files_and_before_its_fusions(
    store: Store, kept: Retention
) -> None:
    ends = {
        "done": "completed_at",
        "failed": "failed_at",
        "expired": "expired_at",
        "stopped": "cancelled_at",
    }
    for name, column in ends.items():
        await store_batch(store, name, "t", **{column: T0})
    await store_batch(store, "running", "t")
    await store_batch(store, "late", "t", completed_at=T0 + 2 * DAY)
    await store_batch(store, "other", "u", completed_at=T0)
    await store_batch(store, "shares", "t", input_file_id="in-done")
    await store_fusion(store, "of-done", "t", T0, batch_id="done")
    assert await kept.delete_fusions("t", T0 + DAY) == 0, "its batch has yet to be read"

    assert await kept.delete_batches("t", T0 + DAY) == 4

    left = {"running", "late", "other", "shares"}
    assert await ids(store, batches, "batch_id") == left
    assert await ids(store, batch_lines, "batch_id") == left
    both = {f"{way}-{name}" for name in left for way in ("in", "out")} | {"in-done"}
    assert await ids(store, files, "file_id") == both
    assert await ids(store, file_chunks, "file_id") == both
    assert await kept.delete_fusions("t", T0 + DAY) == 1


async def test_each_tenant_s_are_kept_as_long_as_its_rule_says(
    store: Store, kept: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "AT_ONCE", 2)
    monkeypatch.setattr("fusewire_ingest.retention.PAUSE_S", 0)
    for number in range(5):
        for tenant in ("day", "week", "ever"):
            await store_fusion(store, f"{tenant}{number}", tenant, T0 + number * DAY)
    days: dict[str, float | None] = {"day": 1, "week": 2, "ever": None}
    cleaner = Cleaner(kept, days.__getitem__, lambda _: None, FakeClock(T0 + timedelta(days=4.5)))

    assert await cleaner.clean() == 4 + 3

    assert await kept.tenants() == ["day", "ever", "week"]
    assert await ids(store, outcomes) == {"day4", "week3", "week4", *(f"ever{n}" for n in range(5))}


@pytest.mark.parametrize(
    "rules",
    [
        {"limits": {"keep_days": FEW_SECONDS}},
        {"limits": {"keep_days": 9}, "tenants": {"default": {"keep_days": FEW_SECONDS}}},
    ],
    ids=["for all", "for this tenant"],
)
async def test_ingest_deletes_what_the_configuration_does_not_keep(
    make_settings: Callable[..., Settings],
    stack: Callable[..., AbstractAsyncContextManager[Client]],
    monkeypatch: pytest.MonkeyPatch,
    rules: dict[str, Any],
) -> None:
    monkeypatch.setattr("fusewire_ingest.retention.EVERY_S", 0.2)
    async with stack(make_settings(**rules)) as client:
        shown = await client.submit({"prompt": "Why?"}, wait_s=200)
        assert shown["content"]

        async def is_gone() -> bool:
            try:
                await client.get(shown["id"])
            except ApiError as exc:
                return exc.status == 404
            return False

        await eventually(is_gone)


async def test_what_fails_is_tried_again_and_an_end_is_told(
    kept: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire_ingest.retention.EVERY_S", 0)
    tries = 0
    third = asyncio.Event()

    def keep_days(_: str) -> float:
        nonlocal tries
        tries += 1
        if tries == 3:
            third.set()
        raise ValueError("secret")

    async def tenants() -> list[str]:
        return ["t"]

    monkeypatch.setattr(kept, "tenants", tenants)
    cleaner = Cleaner(kept, keep_days, lambda _: None, FakeClock())
    with capture_logs() as told:
        cleaner.start()
        await third.wait()
        assert cleaner.faults() == []
        await cleaner.stop()
    assert cleaner.faults() == ["ingest-retention has ended"]
    assert {line["event"] for line in told} == {"ingest.retention_broken"}
    assert "secret" not in str(told)


# -- texts ------------------------------------------------------------------------------------

SECRET = "the-text-of-somebody"


async def store_texts(store: Store, fusion_id: str, at: datetime, **given: Any) -> None:
    """A fusion with the same text in each column that may hold one, and costs."""
    body = json.dumps({"content": SECRET, "cost_usd": 0.5})
    texts = dict.fromkeys(
        ("content", "tool_calls", "reason", "error", "plan", "traceparent"), SECRET
    )
    await store_fusion(store, fusion_id, "t", at, body=body, image=fusion_id, **texts, **given)


async def all_text(store: Store, *tables: Table) -> str:
    rows = []
    async with store.read() as connection:
        for table in tables:
            rows += [tuple(row) for row in await connection.execute(select(table))]
    return str(rows)


async def test_texts_are_deleted_and_figures_stay(store: Store, kept: Retention) -> None:
    await store_texts(store, "old", T0, latency_ms=7.0, cost_usd=0.25)
    await store_texts(store, "fresh", T0 + 2 * DAY)
    async with store.write() as connection:
        await connection.execute(update(prompts).values(traceparent=None))

    assert await kept.delete_texts("t", T0 + DAY, T0 + 9 * DAY) == 1

    assert SECRET in await all_text(store, *OF_A_FUSION)
    async with store.write() as connection:
        for table in OF_A_FUSION:
            await connection.execute(delete(table).where(table.c.fusion_id == "fresh"))
    assert SECRET not in await all_text(store, *OF_A_FUSION)
    async with store.read() as connection:
        outcome = (await connection.execute(select(outcomes))).one()
        candidate = (await connection.execute(select(candidates.c.body))).scalar_one()
    assert (outcome.latency_ms, outcome.cost_usd) == (7.0, 0.25)
    assert outcome.texts_deleted_at == T0 + 9 * DAY
    assert json.loads(candidate) == {"cost_usd": 0.5}
    assert await kept.delete_texts("t", T0 + DAY, T0 + 9 * DAY) == 0, "each once"


async def test_what_a_running_batch_still_needs_keeps_its_texts(
    store: Store, kept: Retention
) -> None:
    await store_batch(store, "runs", "t")
    await store_batch(store, "over", "t", completed_at=T0)
    for batch in ("runs", "over"):
        await store_texts(store, batch, T0, batch_id=batch)

    assert await kept.delete_texts("t", T0 + DAY, T0 + DAY) == 1
    assert await kept.delete_inputs("t", T0 + DAY) == 1

    async with store.read() as connection:
        deleted_at = outcomes.c.texts_deleted_at.is_not(None)
        query = select(outcomes.c.fusion_id).where(deleted_at)
        assert (await connection.execute(query)).scalars().all() == ["over"]
    left = {"in-runs", "out-runs", "out-over"}
    assert await ids(store, files, "file_id") == left
    assert await ids(store, file_chunks, "file_id") == left
    assert await kept.delete_inputs("t", T0 + DAY) == 0


async def test_an_input_that_a_running_batch_shares_stays(store: Store, kept: Retention) -> None:
    await store_batch(store, "over", "t", completed_at=T0)
    await store_batch(store, "again", "t", input_file_id="in-over")

    assert await kept.delete_inputs("t", T0 + DAY) == 0
    assert "in-over" in await ids(store, file_chunks, "file_id")


async def test_an_image_goes_with_the_last_fusion_that_uses_it(
    store: Store, kept: Retention
) -> None:
    for name, at in (("old", T0), ("fresh", T0 + 2 * DAY)):
        await store_texts(store, name, at)
    stored = {"shared": None, "old": None, "fresh": None, "on-broker": T0}
    uses = (("shared", "old"), ("shared", "fresh"), ("on-broker", "old"))
    async with store.write() as connection:
        for name, published_at in stored.items():
            given = {"name": name, "used_at": T0, "published_at": published_at}
            await connection.execute(insert(images).values(row(images, **given)))
        for image, fusion in uses:
            await connection.execute(insert(image_uses).values(image=image, fusion_id=fusion))

    await kept.delete_texts("t", T0 + DAY, T0 + DAY)

    assert await ids(store, images, "name") == {"shared", "fresh", "on-broker"}


async def test_the_sums_are_those_of_the_rows_that_are_left(store: Store, kept: Retention) -> None:
    for name, at in (("old", T0), ("fresh", T0 + 2 * DAY)):
        await store_fusion(store, name, "t", at, shown="[]", status="ok")
    async with store.write() as connection:
        await connection.run_sync(summaries.rebuild)

    await kept.delete_fusions("t", T0 + DAY)

    async with store.read() as connection:
        days = {
            (day, n)
            for day, n in await connection.execute(text("SELECT day, outcomes FROM v_pool_day"))
        }
    assert {(str(day), n) for day, n in days} == {(str((T0 + 2 * DAY).date()), 1)}


async def test_readers_say_that_the_texts_were_deleted(
    make_settings: Callable[..., Settings],
    stack: Callable[..., AbstractAsyncContextManager[Client]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusewire_ingest.retention.EVERY_S", 0.2)
    settings = make_settings(limits={"keep_bodies_days": 1e-6})
    async with stack(settings) as client, aiohttp.ClientSession(client.url) as http:
        body = {"model": "fusewire/default", "messages": [{"role": "user", "content": SECRET}]}
        key = {"idempotency-key": "k1"}
        async with http.post("/v1/chat/completions", json=body, headers=key) as first:
            fusion = first.headers["x-fusewire-outcome"]

        async def is_deleted() -> bool:
            async with http.get(f"/v1/fusions/{fusion}") as reply:
                return reply.status == 410 and (await reply.json())["error"]["code"] == (
                    "texts_deleted"
                )

        await eventually(is_deleted)
        async with http.post("/v1/chat/completions", json=body, headers=key) as again:
            assert again.status == 410
            assert "Idempotency-Key" in (await again.json())["error"]["message"]
        async with http.post(
            "/v1/chat/completions", json={**body, "stream": True}, headers=key
        ) as stream:
            assert "texts_deleted" in await stream.text()
        async with http.get("/v1/fusions", params={"id": fusion}) as several:
            assert [one["status"] for one in (await several.json())["data"]] == ["texts_deleted"]
        async with http.delete(f"/v1/fusions/{fusion}/images") as images_reply:
            assert images_reply.status == 410
        store = Store(settings.database)
        try:
            with pytest.raises(TextsDeletedError, match="keep_bodies_days"):
                await history(store, [fusion])
        finally:
            await store.close()


async def test_a_batch_s_results_say_that_the_texts_were_deleted(store: Store) -> None:
    await store_batch(store, "b", "t", completed_at=T0)
    await store_texts(store, "f", T0, batch_id="b")
    async with store.write() as connection:
        await connection.execute(
            update(batch_lines).values(fusion_id="f", settled=1, state="ok", warnings=None)
        )
    await Retention(store).delete_texts("t", T0 + DAY, T0 + DAY)

    (line,) = await BatchLines(store).page("b", after=-1, limit=9, kind="output")

    assert line.outcome is None
    assert line.error is not None
    assert line.error["code"] == "texts_deleted"


async def test_a_stopped_batch_without_its_input_is_not_resumed(
    make_settings: Callable[..., Settings],
    running: Callable[..., AbstractAsyncContextManager[Client]],
    nats: NatsServer,
) -> None:
    settings = make_settings(nats=Nats(url=nats.url))
    store = Store(settings.database)
    given: dict[str, Any] = {"tenant": "default", "cancelled_at": T0, "status": "cancelled"}
    await store_batch(store, "b", input_file_id="gone", **given)
    await store.close()
    async with (
        running(settings, "ingest") as client,
        aiohttp.ClientSession(client.url) as http,
        http.post("/v1/batches/b/resume", json={}) as reply,
    ):
        assert (reply.status, (await reply.json())["error"]["code"]) == (404, "unknown_file")


def test_texts_cannot_outlive_their_fusions(make_settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match=r"limits.keep_bodies_days is 9, and keep_days 8"):
        make_settings(limits={"keep_days": 8, "keep_bodies_days": 9})
    with pytest.raises(ValueError, match=r"tenant 't': keep_bodies_days is 9"):
        make_settings(limits={"keep_days": 8}, tenants={"t": {"keep_bodies_days": 9}})
    make_settings(limits={"keep_bodies_days": 9}, tenants={"t": {"keep_days": 8}})
