"""The audit log: it only grows, and analysts read it in `v_event`."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from fusewire.settings import Nats, Settings, Tenant
from fusewire.store.audit import Action, insert_action
from fusewire.store.engine import Store
from fusewire.testing.factories import T0
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest.repository.audit import record_configuration

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

ACTION = Action(
    T0,
    "operator:ada",
    "key.revoked",
    tenant="research",
    target="0abc",
    detail={"reason": "leaked"},
)


async def events(store: Store) -> list[tuple[Any, ...]]:
    query = text("SELECT event, tenant, actor, target, fields FROM v_event ORDER BY at, event")
    async with store.read() as connection:
        return [tuple(row) for row in await connection.execute(query)]


async def test_an_action_is_an_event(store: Store) -> None:
    async with store.write() as connection:
        await connection.execute(insert_action(ACTION))
    assert await events(store) == [
        ("key.revoked", "research", "operator:ada", "0abc", '{"reason": "leaked"}')
    ]


@pytest.mark.parametrize("change", ["DELETE FROM audit_log", "UPDATE audit_log SET actor = 'x'"])
async def test_what_is_recorded_is_neither_changed_nor_deleted(store: Store, change: str) -> None:
    async with store.write() as connection:
        await connection.execute(insert_action(ACTION))
    with pytest.raises(IntegrityError, match="append only"):
        async with store.write() as connection:
            await connection.execute(text(change))
    assert len(await events(store)) == 1


async def test_a_configuration_is_recorded_when_it_is_another(store: Store) -> None:
    assert await record_configuration(store, "one", T0)
    assert not await record_configuration(store, "one", T0)
    assert await record_configuration(store, "two", T0)
    assert [event[3] for event in await events(store)] == ["one", "two"]


async def test_ingest_records_its_configuration(
    make_settings: MakeSettings, running: Running, nats: NatsServer, store: Store, database: Any
) -> None:
    def configured(**sections: Any) -> Settings:
        return make_settings(nats=Nats(url=nats.url), database=database, **sections)

    other = configured(tenants={"research": Tenant(budget_usd=1)})
    for settings in (configured(), configured(), other):
        async with running(settings, "ingest"):
            pass
    recorded = [event[3] for event in await events(store) if event[0] == "configuration.loaded"]
    assert recorded == [configured().rules_hash(), other.rules_hash()]
