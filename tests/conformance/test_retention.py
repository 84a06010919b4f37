"""What ended long ago is deleted with all that belongs to it, nothing else; on both databases."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Boolean, DateTime, Float, Integer, LargeBinary, Table, insert, select
from structlog.testing import capture_logs

from fusewire.settings import Settings
from fusewire.store.engine import Store
from fusewire.store.tables import (
    batch_lines,
    batches,
    file_chunks,
    files,
    metadata,
    outcomes,
    reservations,
)
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import T0, FakeClock
from fusewire_cli.client import ApiError, Client
from fusewire_ingest.repository import retention as repository
from fusewire_ingest.repository.retention import OF_A_FUSION, Retention
from fusewire_ingest.retention import Cleaner

DAY = timedelta(days=1)


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
    assert named - set(OF_A_FUSION) == {batch_lines, reservations}, (
        "these keep the fusion until they are gone"
    )


async def test_a_fusion_goes_with_all_that_belongs_to_it(store: Store, kept: Retention) -> None:
    for name, tenant, at in (("old", "t", T0), ("fresh", "t", T0 + 2 * DAY), ("other", "u", T0)):
        await store_fusion(store, name, tenant, at)

    assert await kept.delete_fusions("t", T0 + DAY) == 1

    for table in OF_A_FUSION:
        assert await ids(store, table) == {"fresh", "other"}, table.name
    assert await kept.delete_fusions("t", T0 + DAY) == 0


async def test_what_a_budget_has_not_settled_yet_stays(store: Store, kept: Retention) -> None:
    await store_fusion(store, "old", "t", T0)
    async with store.write() as connection:
        await connection.execute(insert(reservations).values(row(reservations, fusion_id="old")))

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
    cleaner = Cleaner(kept, days.__getitem__, FakeClock(T0 + timedelta(days=4.5)))

    assert await cleaner.clean() == 4 + 3

    assert await kept.tenants() == ["day", "ever", "week"]
    assert await ids(store, outcomes) == {"day4", "week3", "week4", *(f"ever{n}" for n in range(5))}


@pytest.mark.parametrize(
    "rules",
    [
        {"limits": {"keep_days": 1e-6}},
        {"limits": {"keep_days": 9}, "tenants": {"default": {"keep_days": 1e-6}}},
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
    cleaner = Cleaner(kept, keep_days, FakeClock())
    with capture_logs() as told:
        cleaner.start()
        await third.wait()
        assert cleaner.faults() == []
        await cleaner.stop()
    assert cleaner.faults() == ["ingest-retention has ended"]
    assert {line["event"] for line in told} == {"ingest.retention_broken"}
    assert "secret" not in str(told)
