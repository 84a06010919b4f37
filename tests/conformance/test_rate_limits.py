"""Rate limits of tenants and keys, and what replies tell of them: over HTTP, on the real parts."""

import json
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from fusewire.settings import Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

TENANTS = {
    "hasty": {"requests_per_minute": 3},
    # Of "Why?", one token, and an answer of at most 99: ten fit.
    "wordy": {"tokens_per_minute": 1000, "requests_per_minute": 500},
    "busy": {"prompts_in_flight": 2},
    "free": {},
}
CHAT = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 99}
PROMPT = {"prompt": "Why?", "max_tokens": 99}
KINDS = ("requests", "tokens")


@dataclass(frozen=True)
class Reply:
    """What a caller is told."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def code(self) -> str | None:
        """Of an error."""
        return self.body["error"]["code"] if "error" in self.body else None

    def rate(self, kind: str) -> tuple[str | None, str | None]:
        """The limit and what is left of it."""
        names = (f"x-ratelimit-limit-{kind}", f"x-ratelimit-remaining-{kind}")
        limit, remaining = (self.headers.get(name) for name in names)
        return limit, remaining


class Caller:
    """A tenant's client with a key of its own."""

    def __init__(self, web: aiohttp.ClientSession, key: str) -> None:
        self._web = web
        self._headers = {"authorization": f"Bearer {key}"}

    async def ask(self, path: str, body: Any = None, **headers: str) -> Reply:
        method = "GET" if body is None else "POST"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {**self._headers, "content-type": "application/json", **headers}
        async with self._web.request(method, f"/v1{path}", data=data, headers=sent) as response:
            told = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, await response.json(), told)


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer) -> Settings:
    http = Http(port=0, keys="required")
    return make_settings(nats=Nats(url=nats.url), http=http, tenants=TENANTS)


async def make_key(settings: Settings, tenant: str, **limits: Any) -> str:
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    public = keys.key_id(key)
    assert public
    store = Store(settings.database)
    digest, now = keys.digest(key, pepper(settings)), datetime.now(UTC)
    made = Key(public, tenant, "test", digest, now, **limits)
    await ApiKeys(store).add(made, Change("operator:test", now))
    await store.close()
    return key


async def test_each_reply_tells_how_many_requests_are_left(
    settings: Settings, running: Running
) -> None:
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as web:
        hasty = Caller(web, await make_key(settings, "hasty"))
        replies = [await hasty.ask(path) for path in ("/models", "/files", "/fusions/f", "/key")]
        assert [reply.status for reply in replies] == [200, 200, 404, 429]
        assert [reply.rate("requests") for reply in replies] == [
            ("3", "2"),
            ("3", "1"),
            ("3", "0"),
            ("3", "0"),
        ]
        refused = replies[-1]
        assert refused.code == "rate_limited"
        assert "tenant 'hasty' may send 3 requests a minute" in refused.body["error"]["message"]
        assert 0 < int(refused.headers["retry-after"]) <= 20
        assert refused.headers["x-ratelimit-reset-requests"].endswith("s")
        assert refused.rate("tokens") == (None, None)

        free = await Caller(web, await make_key(settings, "free")).ask("/models")
        assert [free.rate(kind) for kind in KINDS] == [(None, None)] * 2


async def test_a_key_has_limits_of_its_own_within_its_tenant_s(
    settings: Settings, running: Running
) -> None:
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as web:
        narrow = Caller(web, await make_key(settings, "wordy", requests_per_minute=1))
        wide = Caller(web, await make_key(settings, "wordy"))
        assert (await narrow.ask("/models")).rate("requests") == ("1", "0")
        refused = await narrow.ask("/models")
        assert (refused.status, refused.code) == (429, "rate_limited")
        assert "key '" in refused.body["error"]["message"]
        assert (await wide.ask("/models")).rate("requests") == ("500", "498")


async def test_tokens_are_those_of_the_prompt_and_of_its_longest_answer(
    settings: Settings, running: Running
) -> None:
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as web:
        wordy = Caller(web, await make_key(settings, "wordy"))
        for number in range(1, 9):
            reply = await wordy.ask("/fusions", PROMPT)
            limit, remaining = reply.rate("tokens")
            assert (reply.status, limit) == (202, "1000")
            assert 1000 - 100 * number <= int(remaining or 0) <= 1000 - 100 * number + 10

        # Lines count like prompts alone; those that do not fit are refused by themselves.
        body = b"".join(json.dumps(PROMPT).encode() + b"\n" for _ in range(4))
        lines = await wordy.ask("/fusions", body, **{"content-type": "application/x-ndjson"})
        assert (lines.status, lines.body["accepted"], lines.body["refused"]) == (202, 2, 2)
        codes = [line["error"]["code"] for line in lines.body["lines"] if "error" in line]
        assert codes == ["rate_limited"] * 2

        for path, asked in (("/fusions", PROMPT), ("/chat/completions", CHAT)):
            reply = await wordy.ask(path, asked)
            assert (reply.status, reply.code) == (429, "rate_limited"), path
            assert "use 1000 tokens a minute, and this needs 100" in reply.body["error"]["message"]
            assert 0 < int(reply.headers["retry-after"]) <= 6
        large = await wordy.ask("/fusions", PROMPT | {"max_tokens": 2000})
        assert (large.status, large.code) == (413, "prompt_too_large")
        assert large.headers["x-should-retry"] == "false"


async def test_prompts_in_flight_count_until_their_outcomes(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    model_server.script = Script(models={"*": ModelScript(latency_ms=3_600_000)})
    async with (
        running(settings, "judge", "worker-remote", "dispatcher", "ingest") as client,
        aiohttp.ClientSession(client.url) as web,
    ):
        busy = Caller(web, await make_key(settings, "busy"))
        first = await busy.ask("/fusions", PROMPT)
        again = PROMPT | {"custom_id": "again"}
        second = await busy.ask("/fusions", again)
        assert (first.status, second.status) == (202, 202)
        for path, body in (("/fusions", PROMPT), ("/chat/completions", CHAT)):
            refused = await busy.ask(path, body)
            assert (refused.status, refused.code) == (429, "rate_limited"), path
            assert "have 2 prompts in flight" in refused.body["error"]["message"]
            assert refused.headers["retry-after"] == "1"
        repeated = await busy.ask("/fusions", again)
        assert (repeated.status, repeated.body["is_repetition"]) == (202, True), "it is no third"
        assert (await busy.ask("/fusions", PROMPT)).status == 429

        # What is refused is not in flight, and an end makes room for one.
        await busy.ask(f"/fusions/{first.body['id']}/cancel", {})

        async def has_room() -> bool:
            return (await busy.ask("/fusions", PROMPT)).status == 202

        await eventually(has_room)
        assert (await busy.ask("/fusions", PROMPT)).status == 429
        # Another body under its id begins nothing.
        free = Caller(web, await make_key(settings, "free"))
        assert (await free.ask("/fusions", PROMPT)).status == 202


async def test_what_begins_no_fusion_is_not_in_flight(settings: Settings, running: Running) -> None:
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as web:
        busy = Caller(web, await make_key(settings, "busy"))
        first = PROMPT | {"custom_id": "one"}
        assert (await busy.ask("/fusions", first)).status == 202
        for _ in range(3):
            assert (await busy.ask("/fusions", {**first, "prompt": "Else?"})).status == 409
            assert (await busy.ask("/fusions", PROMPT | {"pool": "none"})).status == 404
        lines = b"".join(json.dumps(first).encode() + b"\n" for _ in range(1))
        told = await busy.ask(
            "/fusions?batch_id=b", lines, **{"content-type": "application/x-ndjson"}
        )
        assert told.body["accepted"] == 1
        assert (await busy.ask("/fusions", PROMPT)).status == 429, "two are"
