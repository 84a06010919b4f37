"""API keys in SQL, on both databases: what is stored, and what the audit log tells of it."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, text
from structlog.testing import capture_logs

from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.store.tables import api_keys
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import T0
from fusewire.testing.statements import statements
from fusewire_ingest import key_usage
from fusewire_ingest.key_usage import KeyUsage
from fusewire_ingest.repository.keys import ApiKeys, Change, Key, KeyStateError

HOUR = timedelta(hours=1)
OPERATOR = "operator:ann"
KEY = Key(
    "first000",
    "acme",
    "notebook",
    "0" * 64,
    T0,
    expires_at=T0 + 90 * 24 * HOUR,
    scopes="submit read",
    requests_per_minute=3,
    tokens_per_minute=4_000,
    prompts_in_flight=5,
)
SAME = ("tenant", "name", "scopes", "requests_per_minute", "tokens_per_minute", "prompts_in_flight")


@pytest.fixture
def keys(store: Store) -> ApiKeys:
    return ApiKeys(store)


def by(hours: int = 0) -> Change:
    return Change(OPERATOR, T0 + hours * HOUR)


async def stored(keys: ApiKeys, key_id: str) -> Key:
    key = await keys.get(key_id)
    assert key
    return key


async def audit(store: Store) -> list[tuple[Any, ...]]:
    query = "SELECT actor, action, tenant, target, detail FROM audit_log ORDER BY at, action"
    async with store.read() as connection:
        rows = (await connection.execute(text(query))).all()
    return [(*row[:4], json.loads(row[4]) if row[4] else None) for row in rows]


def new_key(key_id: str, hours: int) -> Key:
    return Key(key_id, "", "", "1" * 64, T0 + hours * HOUR)


async def test_a_rotated_key_works_for_a_while_and_its_account_goes_on(keys: ApiKeys) -> None:
    await keys.add(KEY, by())

    second = await keys.rotate("first000", new_key("second00", 1), T0 + 25 * HOUR, by(1))
    third = await keys.rotate("second00", new_key("third000", 2), T0 + 2 * HOUR, by(2))

    first = await stored(keys, "first000")
    assert first == replace(KEY, expires_at=T0 + 25 * HOUR)
    assert third == await stored(keys, "third000")
    assert [key.replaces for key in (second, third)] == ["first000", "second00"]
    for name in SAME:
        assert {getattr(key, name) for key in (first, second, third)} == {getattr(KEY, name)}
    assert {key.account for key in (first, second, third)} == {"key:first000"}
    assert not (await stored(keys, "second00")).is_valid(T0 + 2 * HOUR)


async def test_a_rotation_never_lengthens_the_life_of_a_key(keys: ApiKeys) -> None:
    await keys.add(replace(KEY, expires_at=T0 + 2 * HOUR), by())
    await keys.rotate("first000", new_key("second00", 1), T0 + 25 * HOUR, by(1))
    assert (await stored(keys, "first000")).expires_at == T0 + 2 * HOUR


async def test_what_cannot_be_rotated_is_named(keys: ApiKeys, store: Store) -> None:
    await keys.add(replace(KEY, expires_at=T0 + HOUR), by())
    await keys.add(replace(KEY, key_id="revoked0", expires_at=None), by())
    await keys.revoke("revoked0", by())
    await keys.add(replace(KEY, key_id="twice000", expires_at=None), by())
    await keys.rotate("twice000", new_key("second00", 1), T0 + 25 * HOUR, by(1))
    n_events = len(await audit(store))

    for key_id, reason in {
        "absent00": "there is no key 'absent00'",
        "first000": "is revoked or expired",
        "revoked0": "is revoked or expired",
        "twice000": "was replaced by 'second00'; rotate that",
    }.items():
        with pytest.raises(KeyStateError, match=reason):
            await keys.rotate(key_id, new_key("another0", 1), T0 + 25 * HOUR, by(1))
    assert await keys.get("another0") is None
    assert len(await audit(store)) == n_events


async def test_of_two_rotations_at_once_one_wins(keys: ApiKeys) -> None:
    await keys.add(KEY, by())
    results = await asyncio.gather(
        *(
            keys.rotate("first000", new_key(f"second0{n}", 1), T0 + 25 * HOUR, by(1))
            for n in range(4)
        ),
        return_exceptions=True,
    )
    assert [type(result) for result in results].count(Key) == 1
    assert [type(result) for result in results].count(KeyStateError) == 3


async def test_each_change_has_a_row_in_the_audit_log(keys: ApiKeys, store: Store) -> None:
    await keys.add(KEY, by())
    await keys.rotate("first000", new_key("second00", 1), T0 + 25 * HOUR, by(1))
    for _ in range(2):
        assert await keys.revoke("second00", by(2))
    assert not await keys.revoke("absent00", by(3))
    assert not await keys.revoke("first000", by(3), tenant="other")

    assert await audit(store) == [
        (
            OPERATOR,
            "key.created",
            "acme",
            "first000",
            {
                "name": "notebook",
                "scopes": "submit read",
                "expires_at": (T0 + 90 * 24 * HOUR).isoformat(),
                "requests_per_minute": 3,
                "tokens_per_minute": 4_000,
                "prompts_in_flight": 5,
            },
        ),
        (
            OPERATOR,
            "key.rotated",
            "acme",
            "first000",
            {"replaced_by": "second00", "expires_at": (T0 + 25 * HOUR).isoformat()},
        ),
        (OPERATOR, "key.revoked", "acme", "second00", None),
    ]
    assert (await stored(keys, "second00")).revoked_at == T0 + 2 * HOUR


async def test_a_change_that_cannot_be_audited_is_not_made(keys: ApiKeys, store: Store) -> None:
    await keys.add(KEY, by())
    async with store.write() as connection:
        await connection.execute(text("ALTER TABLE audit_log RENAME TO audit_log_away"))
    for work in (
        keys.add(replace(KEY, key_id="second00"), by()),
        keys.rotate("first000", new_key("second00", 1), T0, by()),
        keys.revoke("first000", by()),
    ):
        with pytest.raises(Exception, match=r"audit_log|not available"):
            await work
    assert await keys.get("second00") is None
    assert await stored(keys, "first000") == KEY


async def test_a_key_that_older_code_made_has_the_scopes_of_before(
    keys: ApiKeys, store: Store
) -> None:
    row = {"key_id": "older000", "tenant": "acme", "name": "n", "hash": "0", "created_at": T0}
    async with store.write() as connection:
        await connection.execute(insert(api_keys), row)

    key = await stored(keys, "older000")
    assert (key.scopes, key.account) == ("submit read batch", "key:older000")


# -- the last use -----------------------------------------------------------------------------


def clock(times: list[datetime]) -> Callable[[], datetime]:
    return lambda: times[-1]


async def test_uses_of_many_keys_are_one_update(keys: ApiKeys, store: Store) -> None:
    ids = [f"key{n:05}" for n in range(50)]
    for key_id in ids:
        await keys.add(replace(KEY, key_id=key_id), by())
    uses = KeyUsage(keys, clock([T0 + HOUR]))
    for key_id in ids[:40] * 3:
        uses.note(key_id)

    with statements(store) as executed:
        await uses.write()
        await uses.write()

    assert len([statement for statement in executed if "UPDATE" in statement]) == 1
    times = {key.key_id: key.last_used_at for key in await keys.all()}
    assert times == {key_id: T0 + HOUR if key_id in ids[:40] else None for key_id in ids}


async def test_several_replicas_write_a_use_once_a_minute(keys: ApiKeys) -> None:
    await keys.add(KEY, by())
    times = [T0 + HOUR]
    replicas = [KeyUsage(keys, clock(times)) for _ in range(2)]

    async def use(replica: KeyUsage) -> datetime | None:
        replica.note("first000")
        await replica.write()
        return (await stored(keys, "first000")).last_used_at

    assert await use(replicas[0]) == T0 + HOUR
    times.append(T0 + HOUR + timedelta(seconds=30))
    assert await use(replicas[1]) == T0 + HOUR
    times.append(T0 + HOUR + timedelta(seconds=60))
    assert await use(replicas[0]) == times[-1]


async def test_what_was_used_is_written_as_the_process_stops(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keys.add(KEY, by())
    uses = KeyUsage(keys, clock([T0 + HOUR]))
    uses.start()
    uses.note("first000")
    await uses.stop()
    assert (await stored(keys, "first000")).last_used_at == T0 + HOUR

    monkeypatch.setattr(key_usage, "WRITE_EVERY_S", 0.05)
    later = KeyUsage(keys, clock([T0 + 2 * HOUR]))
    later.start()
    later.note("first000")

    async def is_written() -> bool:
        return (await stored(keys, "first000")).last_used_at == T0 + 2 * HOUR

    await eventually(is_written)
    await later.stop()


async def test_a_use_that_cannot_be_written_is_no_fault(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise Transient("the database is not available")

    monkeypatch.setattr(keys, "note_use", fail)
    uses = KeyUsage(keys, clock([T0]))
    uses.note("first000")
    with capture_logs() as logs:
        await uses.write()
    assert [line["event"] for line in logs] == ["ingest.key_usage_not_written"]
