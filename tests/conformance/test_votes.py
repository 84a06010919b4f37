"""People's votes: stored once for each voter, counted, and seen by analysts; on both databases."""

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
import structlog
from sqlalchemy import delete, insert, select, text
from structlog.testing import capture_logs

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.summary_tables import model_days, pool_days
from fusewire.store.tables import answers, outcomes, prompts, vote_changes, votes
from fusewire.testing.factories import T0, make_prompt
from fusewire.testing.http_api import post, rows
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest.admission import keys
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.api.run import OUTCOME_HEADER
from fusewire_ingest.api.votes import BODY_BYTES
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key
from fusewire_ingest.repository.retention import Retention
from fusewire_ingest.repository.submissions import Submissions
from fusewire_ingest.repository.votes import StoredVote, Vote, Votes

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
Web = aiohttp.ClientSession

DAY = timedelta(days=1)
EXAMPLE = "f" + "0" * 26


async def add_outcome(
    store: Store, fusion_id: str, winner: str | None, tenant: str = "default", **fields: Any
) -> None:
    """An outcome of `a`, `b` and `c`, which answered, and of `d`, which did not."""
    row = {
        "fusion_id": fusion_id,
        "is_degraded": False,
        "degraded_reasons": "[]",
        "status": "selected" if winner else "fused",
        "tenant": tenant,
        "custom_id": fusion_id,
        "pool": "default",
        "mode": "best-of",
        "prompt_hash": "",
        "winner": winner,
        "n_asked": 4,
        "n_answered": 3,
        "latency_ms": 1.0,
        "submitted_at": T0,
        "finished_at": T0,
        "body": "{}",
    }
    members = [
        {
            "fusion_id": fusion_id,
            "member": name,
            "model": f"m-{name}",
            "tier": "remote",
            "status": "error" if name == "d" else "ok",
            "is_winner": name == winner,
        }
        for name in "abcd"
    ]
    async with store.write() as connection:
        await connection.execute(insert(outcomes).values(row | fields))
        await connection.execute(insert(answers), members)


def vote_of(
    voter: str, choice: str, fusion_id: str = EXAMPLE, at: datetime = T0, key: str | None = None
) -> Vote:
    return Vote(fusion_id, voter, choice, key, at)


async def read(store: Store, query: str) -> list[dict[str, Any]]:
    async with store.read() as connection:
        return [dict(row) for row in (await connection.execute(text(query))).mappings()]


async def changes(store: Store) -> list[tuple[int, str]]:
    query = select(vote_changes.c.number, vote_changes.c.choice).order_by(vote_changes.c.number)
    async with store.read() as connection:
        return [(row.number, row.choice) for row in await connection.execute(query)]


@pytest.fixture
async def kept(store: Store) -> Votes:
    """The votes of a database with one outcome."""
    await add_outcome(store, EXAMPLE, "a")
    return Votes(store)


# -- one vote for each voter --------------------------------------------------------------------


async def test_a_vote_is_changed_and_every_change_is_kept(store: Store, kept: Votes) -> None:
    later, last = T0 + timedelta(minutes=1), T0 + timedelta(minutes=2)

    assert await kept.store("default", vote_of("v", "a", key="k1")) == StoredVote(
        "a", T0, T0, is_new=True
    )
    assert await kept.store("default", vote_of("v", "a", at=later)) == StoredVote("a", T0, T0)
    assert await kept.store("default", vote_of("v", "tie", at=later)) == StoredVote(
        "tie", T0, later, is_changed=True
    )
    assert await kept.store("default", vote_of("v", "a", at=last)) == StoredVote(
        "a", T0, last, is_changed=True
    )

    async with store.read() as connection:
        stored = (await connection.execute(select(vote_changes))).all()
        standing = (await connection.execute(select(votes))).all()
    assert [tuple(row) for row in stored] == [
        (EXAMPLE, "v", 1, "a", "k1", T0),
        (EXAMPLE, "v", 2, "tie", None, later),
        (EXAMPLE, "v", 3, "a", None, last),
    ]
    assert [tuple(row) for row in standing] == [(EXAMPLE, "v", "a", T0, last)]


@pytest.mark.parametrize("is_voted", [False, True], ids=["the first", "a change"])
async def test_votes_of_a_voter_at_once_come_one_after_the_other(
    database: Database, store: Store, kept: Votes, is_voted: bool
) -> None:
    """As two ingests would store them: none is lost, and none has the number of another."""
    other_store = Store(database)
    others = Votes(other_store)
    if is_voted:
        await kept.store("default", vote_of("v", "none"))
    given = ["a", "b", "c", "tie", "fused"] * 4

    stored = await asyncio.gather(
        *(
            target.store("default", vote_of("v", choice))
            for choice in given
            for target in (kept, others)
        )
    )

    told = [vote for vote in stored if vote is not None]
    assert len(told) == len(given) * 2
    assert sum(vote.is_new for vote in told) == (0 if is_voted else 1)
    numbered = await changes(store)
    n_stored = sum(vote.is_new or vote.is_changed for vote in told)
    assert [number for number, _ in numbered] == list(range(1, n_stored + 1 + is_voted))
    choices = [choice for _, choice in numbered]
    assert all(before != after for before, after in itertools.pairwise(choices))
    assert [row["choice"] for row in await read(store, "SELECT choice FROM votes")] == choices[-1:]
    await other_store.close()


async def test_equal_votes_at_once_are_stored_once(store: Store, kept: Votes) -> None:
    stored = await asyncio.gather(
        *(kept.store("default", vote_of(f"v{n % 3}", "b")) for n in range(30))
    )

    assert sum(vote is not None and vote.is_new for vote in stored) == 3
    assert await kept.counts("default", EXAMPLE) == {
        "a": 0, "b": 3, "c": 0, "fused": 0, "tie": 0, "none": 0
    }  # fmt: skip
    assert await changes(store) == [(1, "b")] * 3


# -- what is deleted ----------------------------------------------------------------------------


async def test_votes_go_with_their_fusion(store: Store, kept: Votes) -> None:
    other = "f" + "1" * 26
    await add_outcome(store, other, "a", finished_at=T0 + 2 * DAY)
    for fusion_id in (EXAMPLE, other):
        await kept.store("default", vote_of("v", "a", fusion_id))

    assert await Retention(store).delete_fusions("default", T0 + DAY) == 1

    for table in (votes, vote_changes):
        assert await read(store, f"SELECT fusion_id FROM {table.name}") == [{"fusion_id": other}]


async def test_a_vote_that_is_being_stored_goes_with_its_fusion(store: Store, kept: Votes) -> None:
    async with store.write() as connection:
        await connection.run_sync(kept.store_in, "default", vote_of("v", "a"))
        deletion = asyncio.create_task(Retention(store).delete_fusions("default", T0 + DAY))
        await asyncio.sleep(0.3)
        assert not deletion.done()

    assert await deletion == 1
    assert await read(store, "SELECT * FROM votes") == []
    assert await read(store, "SELECT * FROM vote_changes") == []


async def test_there_is_no_vote_for_what_is_being_deleted(store: Store, kept: Votes) -> None:
    async with store.write() as connection:
        await connection.execute(delete(outcomes))
        voting = asyncio.create_task(kept.store("default", vote_of("v", "a")))
        await asyncio.sleep(0.3)
        assert not voting.done()

    assert await voting is None
    assert await read(store, "SELECT * FROM votes") == []


# -- what analysts see --------------------------------------------------------------------------


async def test_views_show_votes_and_their_changes(store: Store, kept: Votes) -> None:
    merge = "f" + "2" * 26
    await add_outcome(store, merge, None, judge_model="j")
    given = [("v1", "fused"), ("v2", "a"), ("v3", "b"), ("v4", "tie"), ("v5", "none")]
    for voter, choice in given:
        await kept.store("default", vote_of(voter, choice))
    await kept.store("default", vote_of("v3", "c", at=T0 + DAY))
    await kept.store("default", vote_of("v1", "a", merge))

    shown = await read(store, f"SELECT * FROM v_vote WHERE outcome_id = '{EXAMPLE}'")
    agreeing = {row["voter_hash"]: row["agrees"] for row in shown}
    assert {row["voter_hash"]: row["choice"] for row in shown} == {**dict(given), "v3": "c"}
    assert agreeing == {"v1": True, "v2": True, "v3": False, "v4": None, "v5": False}
    assert {(row["tenant"], row["pool"], row["winner"]) for row in shown} == {
        ("default", "default", "a")
    }
    moved = [row["voter_hash"] for row in shown if row["created_at"] != row["changed_at"]]
    assert moved == ["v3"]
    (of_merge,) = await read(store, f"SELECT * FROM v_vote WHERE outcome_id = '{merge}'")
    assert (of_merge["winner"], of_merge["agrees"], of_merge["judge_model"]) == (None, False, "j")

    events = await read(
        store,
        f"SELECT at, detail FROM v_event WHERE outcome_id = '{EXAMPLE}' AND event = 'voted'",
    )
    assert sorted(row["detail"] for row in events) == ["a", "b", "c", "fused", "none", "tie"]
    last = max(events, key=lambda row: str(row["at"]))
    assert (last["detail"], str(last["at"])[:10]) == ("c", "2026-01-03")


LIFT = [
    # By winner (None: a merge), the votes; then what counts: who was chosen.
    ("a", ["fused", "a", "b"]),  # the winner, by two of three
    ("a", ["b", "b", "fused"]),  # b
    ("b", ["a", "a", "b"]),  # a
    ("c", ["c"]),  # the winner
    (None, ["fused", "fused", "a"]),  # the merge, which is no model's
    ("a", ["none", "none", "tie"]),  # nobody
    ("a", ["tie", "tie", "a"]),  # left out: as good as each other
    ("a", ["a", "b", "fused", "b"]),  # left out: two for each
]


async def test_lift_by_votes_is_what_is_computed_by_hand(store: Store, kept: Votes) -> None:
    for number, (winner, choices) in enumerate(LIFT):
        fusion_id = f"f{number + 10:026}"
        await add_outcome(store, fusion_id, winner, pool="lift")
        for voter, choice in enumerate(choices):
            await kept.store("default", vote_of(str(voter), choice, fusion_id))
    replay = "f" + "3" * 26
    await add_outcome(store, replay, "b", pool="lift", is_replay=True)
    await kept.store("default", vote_of("v", "b", replay))

    (row,) = await read(store, "SELECT * FROM v_lift WHERE pool = 'lift'")

    # Six count: three for the outcome, two for m-a, five for any answer.
    assert (row["audit_source"], row["n"], row["best_fixed_single"]) == ("votes", 6, "m-a")
    expected = {
        "fused_score": 3 / 6,
        "best_single_score": 2 / 6,
        "oracle_score": 5 / 6,
        "lift": 1 / 6,
        "gap_to_oracle": 2 / 6,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert {type(row[name]) for name in expected} == {float}


async def test_lift_by_labels_stands_beside_it(store: Store, kept: Votes) -> None:
    key = {"tenant": "t", "day": T0.date(), "pool": "default", "slot": 0}
    pool = {"mode": "best-of", "config_hash": "", "labelled": 4, "accepted": 3, "oracle_right": 4}
    async with store.write() as connection:
        for table, given in (
            (pool_days, pool),
            (model_days, {"model": "m-a", "tier": "remote", "asked": 4, "rights": 2}),
            (model_days, {"model": "m-b", "tier": "remote", "asked": 4, "rights": 1}),
        ):
            row = {column.name: 0 for column in table.columns} | key | given
            await connection.execute(insert(table).values(row))
    await kept.store("default", vote_of("v", "b"))

    lines = await read(store, "SELECT * FROM v_lift ORDER BY audit_source")

    assert [tuple(row.values()) for row in lines] == [
        ("default", "gold", 4, 0.75, "m-a", 0.5, 1.0, 0.25, 0.25),
        ("default", "votes", 1, 0.0, "m-b", 1.0, 1.0, -1.0, 1.0),
    ]
    assert {type(value) for row in lines for value in list(row.values())[5:]} == {float}


# -- over HTTP ----------------------------------------------------------------------------------


@pytest.fixture
def guarded(make_settings: MakeSettings, nats: NatsServer, database: Database) -> Settings:
    return make_settings(
        nats=Nats(url=nats.url),
        database=database,
        http=Http(port=0, keys="required"),
        tenants={"hasty": {"requests_per_minute": 2}},
    )


@pytest.fixture
async def web(guarded: Settings, store: Store, kept: Votes, running: Running) -> AsyncIterator[Web]:
    """Ingest alone, with an outcome of the tenant `acme`."""
    async with store.write() as connection:
        await connection.execute(outcomes.update().values(tenant="acme"))
    async with running(guarded, "ingest") as client, Web(client.url) as session:
        yield session


async def key_of(guarded: Settings, store: Store, tenant: str) -> str:
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    digest = keys.digest(key, pepper(guarded))
    row = Key(keys.key_id(key) or "", tenant, "test", digest, datetime.now(UTC))
    await ApiKeys(store).add(row, Change("operator:test", row.created_at))
    return key


@pytest.fixture
async def key(guarded: Settings, store: Store) -> str:
    return await key_of(guarded, store, "acme")


async def ask(
    web: Web, key: str, method: str = "POST", outcome: str = EXAMPLE, **given: Any
) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}", **given.pop("headers", {})}
    path = f"/v1/outcomes/{outcome}/votes"
    async with web.request(method, path, headers=headers, **given) as response:
        return response.status, await response.json()


async def test_a_vote_is_made_repeated_changed_and_counted(web: Web, key: str) -> None:
    status, first = await ask(web, key, json={"choice": "b"})
    assert (status, list(first)) == (
        201,
        ["object", "outcome_id", "choice", "created_at", "changed_at", "is_new", "is_changed"],
    )
    assert (first["object"], first["outcome_id"], first["choice"]) == ("vote", EXAMPLE, "b")
    assert first["created_at"] == first["changed_at"]
    assert datetime.fromisoformat(first["created_at"]).utcoffset() == timedelta(0)
    assert (first["is_new"], first["is_changed"]) == (True, False)

    again = await ask(web, key, json={"choice": "b", "voter": None})
    assert again == (200, {**first, "is_new": False})
    status, changed = await ask(web, key, json={"choice": "fused"})
    assert (status, changed["is_changed"], changed["choice"]) == (200, True, "fused")
    assert changed["created_at"] == first["created_at"] < changed["changed_at"]
    assert (await ask(web, key, json={"choice": "a", "voter": "Ann"}))[0] == 201

    status, counted = await ask(web, key, "GET")
    assert (status, counted) == (
        200,
        {
            "object": "vote_counts",
            "outcome_id": EXAMPLE,
            "n": 2,
            "counts": {"a": 1, "b": 0, "c": 0, "fused": 1, "tie": 0, "none": 0},
        },
    )


async def test_a_voter_is_a_name_or_else_a_key(
    web: Web, key: str, guarded: Settings, store: Store
) -> None:
    other_key = await key_of(guarded, store, "acme")

    for sender, voter, status in (
        (key, None, 201),
        (other_key, None, 201),
        (key, "Ann", 201),
        (other_key, "Ann", 200),
    ):
        body = {"choice": "a", "voter": voter}
        assert (await ask(web, sender, json=body))[0] == status, (sender, voter)

    recorded = await read(store, "SELECT key_id FROM vote_changes")
    key_ids = {keys.key_id(key), keys.key_id(other_key)}
    assert {row["key_id"] for row in recorded} == key_ids


async def test_a_key_made_in_place_of_another_is_the_same_voter(
    web: Web, key: str, guarded: Settings, store: Store
) -> None:
    assert (await ask(web, key, json={"choice": "a"}))[0] == 201
    new_key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    now = datetime.now(UTC)
    row = Key(keys.key_id(new_key) or "", "", "", keys.digest(new_key, pepper(guarded)), now)
    change = Change("operator:test", now)
    await ApiKeys(store).rotate(keys.key_id(key) or "", row, now + timedelta(hours=1), change)

    status, vote = await ask(web, new_key, json={"choice": "b"})
    assert (status, vote["is_new"], vote["is_changed"]) == (200, False, True)


async def test_who_voted_is_neither_stored_nor_logged(web: Web, key: str, store: Store) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    with capture_logs() as logged:
        await ask(web, key, json={"choice": "a", "voter": "Ann Other"})
        await ask(web, key, json={"choice": "a", "voter": "Ann Other"})
        await ask(web, key, json={"choice": "tie", "voter": "Ann Other"})
        await ask(web, key, json={"choice": "x", "voter": "Ann Other"})
        await ask(web, key, json={"choice": "a", "voter": "Ann Other" * 30})

    told = [line for line in logged if line["event"] == "ingest.vote_stored"]
    assert [(line["fusion_id"], line["choice"], line["is_changed"]) for line in told] == [
        (EXAMPLE, "a", False),
        (EXAMPLE, "tie", True),
    ]
    (row,) = await read(store, "SELECT voter_hash FROM v_vote")
    assert len(row["voter_hash"]) == 64
    assert row["voter_hash"] not in json.dumps(logged, default=str)
    stored = [await read(store, f"SELECT * FROM {name}") for name in ("votes", "vote_changes")]
    assert "Ann" not in json.dumps([logged, stored], default=str)


REFUSED: Sequence[tuple[Any, dict[str, str], int, str, str | None]] = [
    # body, headers, status, code, param
    ({"choice": "d"}, {}, 400, "unknown_choice", "choice"),
    ({"choice": "x" * 5000}, {}, 400, "unknown_choice", "choice"),
    ({}, {}, 400, "invalid_request", "choice"),
    ({"choice": "a", "voter": "v" * 257}, {}, 400, "invalid_request", "voter"),
    ({"choice": "a", "voter": "\x00"}, {}, 400, "invalid_request", None),
    ({"choice": "a", "comment": "Good"}, {}, 400, "invalid_request", "comment"),
    (["a"], {}, 400, "invalid_request", None),
    ({"choice": "a", "voter": "v" * BODY_BYTES}, {}, 413, "vote_too_large", None),
    ({"choice": "a"}, {"content-type": "text/plain"}, 415, "unsupported_media_type", None),
]


async def test_a_bad_vote_is_refused_with_what_to_do(web: Web, key: str, store: Store) -> None:
    for body, headers, status, code, param in REFUSED:
        told, reply = await ask(
            web,
            key,
            data=json.dumps(body),
            headers={"content-type": "application/json", **headers},
        )
        error = reply["error"]
        assert (told, error["code"], error["param"]) == (status, code, param), body
        assert set(error) == {"message", "type", "param", "code"}

    _, reply = await ask(web, key, json={"choice": "d"})
    assert reply["error"]["message"] == ("there is no choice 'd'; known: a, b, c, fused, none, tie")
    assert await read(store, "SELECT * FROM votes") == []


async def test_votes_are_for_outcomes_of_one_s_own_that_have_an_answer(
    web: Web, key: str, guarded: Settings, store: Store
) -> None:
    running = make_prompt(tenant="acme")
    await Submissions(store).add([running], [None])
    failed = "f" + "4" * 26
    await add_outcome(store, failed, None, tenant="acme", status="failed")
    stranger = await key_of(guarded, store, "other")
    vote = {"choice": "none"}

    for sender, outcome, status, code in (
        (key, "f" + "9" * 26, 404, "not_found"),
        (key, "none", 404, "not_found"),
        (key, "%00", 404, "not_found"),
        (key, running.fusion_id, 409, "outcome_pending"),
        (stranger, EXAMPLE, 404, "not_found"),
        (stranger, running.fusion_id, 404, "not_found"),
    ):
        for method, given in (("POST", {"json": vote}), ("GET", {})):
            told, reply = await ask(web, sender, method, outcome, **given)
            assert (told, reply["error"]["code"]) == (status, code), (outcome, method)
    told, reply = await ask(web, key, outcome=failed, json=vote)
    assert (told, reply["error"]["code"]) == (409, "no_answer")
    assert "the outcome is 'failed'" in reply["error"]["message"]
    _, counted = await ask(web, key, "GET", failed)
    assert (counted["n"], counted["counts"]) == (0, {})
    assert await read(store, "SELECT * FROM votes") == []


async def test_votes_need_a_key_and_count_as_requests(
    web: Web, guarded: Settings, store: Store
) -> None:
    hasty = await key_of(guarded, store, "hasty")
    for method in ("POST", "GET"):
        assert (await ask(web, "", method))[1]["error"]["code"] == "missing_api_key"

    statuses = [(await ask(web, hasty, json={"choice": "a"}))[0] for _ in range(3)]

    assert statuses == [404, 404, 429]


async def test_on_the_machine_itself_all_without_a_name_are_one_voter(
    guarded: Settings, store: Store, kept: Votes, running: Running
) -> None:
    local = guarded.model_copy(update={"http": Http(port=0)})
    async with running(local, "ingest") as client:
        first = await client.vote(EXAMPLE, "a", None)
        second = await client.vote(EXAMPLE, "b", None)
        named = await client.vote(EXAMPLE, "c", "local")

    assert (first["is_new"], second["is_changed"], named["is_new"]) == (True, True, True)
    stored = await rows(local, "SELECT choice FROM votes ORDER BY choice")
    assert [row["choice"] for row in stored] == ["b", "c"]
    async with store.read() as connection:
        changed = (await connection.execute(select(vote_changes.c.key_id))).scalars().all()
    assert changed == [None] * 3


async def test_a_fusion_s_id_is_its_outcome_s(http: Web) -> None:
    """What any front door names is what is voted for."""
    _, _, headers = await post(http)
    outcome = headers[OUTCOME_HEADER]
    for prefix, voter in (("/v1", "Ann"), ("/api/v1", "Bob")):
        body = {"choice": "fused", "voter": voter}
        async with http.post(f"{prefix}/outcomes/{outcome}/votes", json=body) as response:
            assert (response.status, (await response.json())["outcome_id"]) == (201, outcome)


async def test_a_running_fusion_is_told_apart_from_none(store: Store) -> None:
    running = make_prompt()
    await Submissions(store).add([running], [None])

    with pytest.raises(RefusedError, match="wait_s=60"):
        await Votes(store).store("default", vote_of("v", "a", running.fusion_id))
    assert await Votes(store).store("other", vote_of("v", "a", running.fusion_id)) is None
    async with store.read() as connection:
        assert (await connection.execute(select(prompts.c.fusion_id))).scalar()
