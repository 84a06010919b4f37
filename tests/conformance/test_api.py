"""OpenAI's and OpenRouter's routes on the real parts: what is answered, what is refused, what is streamed."""

import asyncio
import contextlib
import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from fusewire import ids
from fusewire.bus import Bus
from fusewire.contracts import Candidate, Prompt, Token
from fusewire.settings import Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import used
from fusewire.testing.model_script import Fault, ModelScript, Script, ScriptedCall
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.served import code_of
from fusewire.topology import token_subject
from fusewire_cli.client import Client
from fusewire_ingest import service
from fusewire_ingest.api.fusions import JSONL_LINES
from fusewire_ingest.api.run import OUTCOME_HEADER
from fusewire_ingest.door import Door

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Why?"}]
ASKED: dict[str, Any] = {"model": "openrouter/fusion", "messages": MESSAGES}
AGAIN = {"x-stainless-retry-count": "1"}
ANSWER = "Hello world, said the answer."


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
async def http(settings: Settings, stack: Running) -> AsyncIterator[aiohttp.ClientSession]:
    """The whole of Fusewire, and a plain client: nothing is tried again, and the answer is seen as it is."""
    async with stack(settings) as client, aiohttp.ClientSession(client.url) as session:
        yield session


@pytest.fixture
async def door(make_settings: MakeSettings, running: Running, nats: NatsServer) -> AsyncIterator[aiohttp.ClientSession]:
    """Ingest alone: what is accepted stays undecided."""
    settings = make_settings(nats=Nats(url=nats.url), limits={"drain_s": 2, "prompt_bytes": 20_000})
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as session:
        yield session


async def post(http: aiohttp.ClientSession, path: str = CHAT, **given: Any) -> tuple[int, dict[str, Any], Any]:
    """Status, body and headers."""
    async with http.post(path, **{"json": ASKED, **given}) as response:
        return response.status, await response.json(), response.headers


async def rows(settings: Settings, query: str) -> list[dict[str, Any]]:
    store = Store(settings.database)
    async with store.read() as connection:
        found = [dict(row) for row in (await connection.execute(text(query))).mappings()]
    await store.close()
    return found


# -- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
async def test_a_conversation_is_answered(
    http: aiohttp.ClientSession, settings: Settings, model_server: ModelServer, prefix: str
) -> None:
    status, reply, headers = await post(http, f"{prefix}/chat/completions")

    assert status == 200
    assert (reply["object"], reply["model"], reply["system_fingerprint"]) == (
        "chat.completion",
        ASKED["model"],
        "fusewire",
    )
    assert reply["fusion"]["outcome_id"] == headers[OUTCOME_HEADER]
    assert headers["x-request-id"].startswith("req-")
    async with http.get(f"{prefix}/fusions/{headers[OUTCOME_HEADER]}") as response:
        stored = await response.json()
    assert reply["choices"][0]["message"]["content"] == stored["content"]
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert stored["status"] == "fused"
    assert dict(model_server.stats.by_model) == {"a": 1, "b": 1, "c": 1, "j": 2}


async def test_usage_is_that_of_all_calls(http: aiohttp.ClientSession, settings: Settings) -> None:
    _, reply, _ = await post(http)

    calls = [Candidate.decode(row["body"]) for row in await rows(settings, "SELECT body FROM candidates")]
    assert len(calls) == 5
    assert reply["usage"]["prompt_tokens"] == sum(used(c).prompt_tokens for c in calls)
    assert reply["usage"]["completion_tokens"] == sum(used(c).completion_tokens for c in calls)
    of_panel = sum(m["prompt_tokens"] for m in reply["fusion"]["members"])
    assert 0 < of_panel < reply["usage"]["prompt_tokens"], "the judge's calls are in the sum"
    assert reply["usage"]["cost"] is None, "of models without a price"


async def test_one_model_alone_answers_by_its_name(http: aiohttp.ClientSession, model_server: ModelServer) -> None:
    status, reply, _ = await post(http, json={**ASKED, "model": "b"})

    assert (status, reply["model"]) == (200, "b")
    assert dict(model_server.stats.by_model) == {"b": 1}


async def test_tools_of_the_client(http: aiohttp.ClientSession, model_server: ModelServer) -> None:
    model_server.set_script(Script.of(calls=(ScriptedCall(name="weather", arguments={"city": "Oslo"}),)))
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

    _, reply, _ = await post(http, json={**ASKED, "tools": [tool, {"type": "openrouter:fusion"}]})

    (choice,) = reply["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}


async def test_an_answer_in_a_schema(http: aiohttp.ClientSession) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}

    _, reply, _ = await post(http, json={**ASKED, "response_format": form})

    assert json.loads(reply["choices"][0]["message"]["content"]) == {"city": "Oslo"}


async def test_what_is_asked_and_not_done_is_told(http: aiohttp.ClientSession) -> None:
    _, reply, _ = await post(http, json={**ASKED, "reasoning_effort": "low"})

    (warning,) = reply["fusion"]["warnings"]
    assert "reasoning_effort" in warning


# -- refusals ---------------------------------------------------------------------------------

JSON = {"content-type": "application/json"}
ZIPPED = {**JSON, "content-encoding": "gzip"}
BODY = json.dumps(ASKED).encode()


def asking(**fields: Any) -> bytes:
    return json.dumps({**ASKED, **fields}).encode()


REFUSED = [
    # what, headers, body, status, code, param
    ("no JSON", {}, b"Why?", 400, "invalid_json", None),
    ("nothing", {}, b"", 400, "invalid_json", None),
    ("no messages", {}, b'{"model":"fusion"}', 400, "invalid_request", "messages"),
    ("a byte order mark", {}, b"\xef\xbb\xbf" + BODY, 400, "invalid_json", None),
    ("NaN", {}, asking()[:-1] + b',"temperature":NaN}', 400, "invalid_json", None),
    ("a key twice", {}, BODY[:-1] + b',"model":"a"}', 400, "invalid_json", None),
    ("half a surrogate pair", {}, BODY.replace(b"Why?", b"\\ud800"), 400, "invalid_json", None),
    ("invalid UTF-8", {}, BODY.replace(b"Why?", b"\xff"), 400, "invalid_json", None),
    ("a NUL", {}, BODY.replace(b"Why?", b"\\u0000"), 400, "invalid_request", None),
    ("too deep", {}, BODY[:-1] + b',"metadata":' + b"[" * 70 + b"]" * 70 + b"}", 400, "invalid_request", None),
    ("too much", {}, asking(user="x" * 20_000), 413, "prompt_too_large", None),
    ("too much by far", {}, asking(user="x" * 1_000_000), 413, "prompt_too_large", None),
    ("an unknown pool", {}, asking(model="fusewire/none"), 404, "unknown_pool", "model"),
    ("an unknown model", {}, asking(model="gtp"), 404, "model_not_found", "model"),
    ("what is not done", {}, asking(n=2), 400, "unsupported_parameter", "n"),
    ("a tool of the server", {}, asking(fusewire={"strict": True}, tools=[{"type": "openrouter:web_search"}]),
     400, "unsupported_tool", "tools.0"),
    ("a form", {"content-type": "application/x-www-form-urlencoded"}, BODY, 415, "unsupported_media_type", None),
    ("a text", {"content-type": "text/plain"}, BODY, 415, "unsupported_media_type", None),
    ("parts", {"content-type": "multipart/form-data; boundary=x"}, BODY, 415, "unsupported_media_type", None),
    ("brotli", {**JSON, "content-encoding": "br"}, BODY, 415, "unsupported_encoding", None),
    ("gzip in gzip", {**JSON, "content-encoding": "gzip, gzip"}, BODY, 415, "unsupported_encoding", None),
    ("no gzip", ZIPPED, BODY, 400, "invalid_encoding", None),
    ("half a gzip", ZIPPED, gzip.compress(BODY)[:-9], 400, "invalid_encoding", None),
    ("more than a gzip", ZIPPED, gzip.compress(BODY) + b"more", 400, "invalid_encoding", None),
    ("deeper than one fusion", {"x-fusewire-depth": "2"}, BODY, 400, "recursion", "x-fusewire-depth"),
    ("the same, by OpenRouter's name", {"x-openrouter-fusion-depth": "2"}, BODY, 400, "recursion", "x-fusewire-depth"),
    ("without end", {"x-fusewire-depth": "9" * 5000}, BODY, 400, "recursion", "x-fusewire-depth"),
    ("no depth", {"x-fusewire-depth": "-1"}, BODY, 400, "invalid_request", "x-fusewire-depth"),
    ("a long key", {"idempotency-key": "k" * 300}, BODY, 400, "invalid_request", "custom_id"),
]  # fmt: skip


async def test_a_bad_request_is_refused_in_openai_s_shape(door: aiohttp.ClientSession) -> None:
    for prefix in ("/v1", "/api/v1"):
        for what, headers, body, status, code, param in REFUSED:
            # aiohttp would say what it is.
            given = {"content-type": "application/json", **headers}
            async with door.post(f"{prefix}/chat/completions", data=body, headers=given) as response:
                answer = await response.json()
            error, number = answer["error"], {"metadata"} if prefix == "/api/v1" else set()
            assert set(error) == {"message", "type", "param", "code", *number}, what
            assert not number or error["code"] == status, what
            told = (response.status, code_of(error), error["param"])
            assert told == (status, code, param), what
            assert answer["error"]["type"] == "invalid_request_error", what
            assert response.headers["x-should-retry"] == "false", what
            assert response.headers["x-request-id"].startswith("req-"), what


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1", ""])
async def test_a_bad_address_is_refused_in_openai_s_shape(door: aiohttp.ClientSession, prefix: str) -> None:
    for method, path, status, code in [
        ("GET", "/none", 404, "not_found"),
        ("GET", "/chat/completions", 405 if prefix else 404, "method_not_allowed" if prefix else "not_found"),
        ("DELETE", "/models", 405 if prefix else 404, "method_not_allowed" if prefix else "not_found"),
        ("POST", "/fusions/fnone/cancel", 404, "not_found"),
    ]:
        async with door.request(method, prefix + path) as response:
            answer = await response.json()
        assert (response.status, code_of(answer["error"])) == (status, code), path
        assert response.headers["x-request-id"].startswith("req-")


async def test_an_address_is_the_same_with_a_slash_and_without_a_body(door: aiohttp.ClientSession) -> None:
    async with door.get("/v1/models") as response:
        whole = await response.read()
    async with door.get("/v1/models/", allow_redirects=False) as response:
        assert (response.status, await response.read()) == (200, whole)
    async with door.head("/v1/models") as response:
        assert (response.status, response.headers["content-length"]) == (200, str(len(whole)))
        assert await response.read() == b""
    async with door.post(f"{CHAT}/", json={"messages": []}, allow_redirects=False) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize(
    ("path", "instead"),
    [("completions", CHAT), ("embeddings", "/v1/fusions"), ("assistants/a1", "/v1/responses"), ("messages", CHAT)],
)
async def test_what_others_have_and_we_have_not_names_what_there_is(
    door: aiohttp.ClientSession, path: str, instead: str
) -> None:
    for prefix in ("/v1", "/api/v1"):
        async with door.post(f"{prefix}/{path}", json={}) as response:
            answer = await response.json()
        assert (response.status, code_of(answer["error"])) == (404, "not_found")
        assert instead in answer["error"]["message"]


async def test_pages_elsewhere_may_call_where_they_are_named(
    make_settings: MakeSettings, running: Running, nats: NatsServer
) -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    for origins, allowed in (((), None), (("https://app.example",), "https://app.example")):
        settings = make_settings(nats=Nats(url=nats.url), http={"port": 0, "origins": origins})
        async with (
            running(settings, "ingest") as client,
            aiohttp.ClientSession(client.url) as http,
            http.options(CHAT, headers=asked) as response,
        ):
            assert response.headers.get("access-control-allow-origin") == allowed


async def test_what_nobody_foresaw_is_told_and_logged_without_its_text(
    door: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("Why? is what was asked")

    monkeypatch.setattr(Door, "admit", broken)
    with capture_logs() as logged:
        status, answer, headers = await post(door)

    assert (status, answer["error"]["code"], answer["error"]["type"]) == (500, "internal_error", "server_error")
    (entry,) = [e for e in logged if e["event"] == "api.broken"]
    assert entry["fault"].startswith("ValueError at broken:")
    assert headers["x-request-id"] in answer["error"]["message"]
    assert "Why?" not in json.dumps([answer, logged], default=str)


async def test_a_zipped_body_is_read(http: aiohttp.ClientSession) -> None:
    status, _, _ = await post(http, json=None, data=gzip.compress(BODY), headers=ZIPPED)

    assert status == 200


def _peak_kib() -> int:
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


async def _endless(piece: bytes, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield piece


def _zipped(piece: bytes, count: int) -> bytes:
    """A gzip of so many pieces, made without holding them."""
    import io

    held = io.BytesIO()
    with gzip.GzipFile(fileobj=held, mode="wb") as file:
        for _ in range(count):
            file.write(piece)
    return held.getvalue()


async def test_bombs_fill_no_memory(door: aiohttp.ClientSession) -> None:
    mib = 1024 * 1024
    jsonl = {"content-type": "application/x-ndjson"}
    fusions = "/v1/fusions"
    bombs: list[tuple[str, str, dict[str, str], Any, int]] = [
        ("zeros, zipped", CHAT, ZIPPED, _zipped(b"0" * mib, 128), 413),
        ("spaces, zipped", fusions, ZIPPED, _zipped(b" " * mib, 128), 413),
        ("one long line, zipped", fusions, {**jsonl, "content-encoding": "gzip"}, _zipped(b"x" * mib, 128), 202),
        ("blank lines, zipped", fusions, {**jsonl, "content-encoding": "gzip"}, _zipped(b"\n" * mib, 128), 400),
        ("bad lines", fusions, jsonl, b"{}\n" * (JSONL_LINES + 2), 400),
        ("nesting", CHAT, JSON, b"[" * 20_000, 400),
        ("nesting of objects", CHAT, JSON, b'{"a":' * 4_000, 400),
        ("a number", CHAT, JSON, b'{"seed":' + b"9" * 19_000 + b"}", 400),
        ("many keys", CHAT, JSON, json.dumps({f"k{n}": n for n in range(1_200)}).encode(), 400),
        ("no end", CHAT, JSON, _endless(b"x" * mib, 7), 413),
        ("one line without end", fusions, jsonl, _endless(b"x" * mib, 128), 202),
        ("zipped twice", CHAT, ZIPPED, gzip.compress(_zipped(b"0" * mib, 128)), 413),
    ]  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kib()

    for what, path, headers, body, status in bombs:
        async with door.post(path, data=body, headers=headers) as response:
            await response.read()
        assert response.status == status, what

    grown_mib = (_peak_kib() - before) / 1024
    # Half of what any of them holds; the rest is what the process takes and gives back anyway.
    assert grown_mib < 64, f"the peak grew by {grown_mib:.0f} MiB"


# -- again ------------------------------------------------------------------------------------


async def test_a_retry_is_answered_by_the_run_in_flight(http: aiohttp.ClientSession, model_server: ModelServer) -> None:
    model_server.set_script(Script.of(latency_ms=300))
    leaving = asyncio.create_task(post(http))
    await model_server.arrived(1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)

    answers = [await post(http, headers=h) for h in ({}, AGAIN, {"x-fusewire-attach": "true"})]

    assert [status for status, _, _ in answers] == [200, 200, 200]
    assert len({headers[OUTCOME_HEADER] for _, _, headers in answers}) == 1
    assert dict(model_server.stats.by_model) == {"a": 1, "b": 1, "c": 1, "j": 2}
    # A reply that travels in another way is the same request; a stream attaches to it too.
    async with http.post(CHAT, json={**ASKED, "stream": True}, headers=AGAIN) as response:
        assert response.headers[OUTCOME_HEADER] == answers[0][2][OUTCOME_HEADER]
        assert b"[DONE]" in await response.read()
    assert model_server.stats.requests == 5


LEFT = "SELECT fusion_id FROM prompts WHERE left_at IS NOT NULL"


async def ask_and_leave(http: aiohttp.ClientSession, settings: Settings) -> str:
    """Ask, leave before the answer, and wait until that is known; returns the fusion's id."""
    asked = asyncio.create_task(post(http))
    # It is known to have come in when whoever left before it has been forgotten.
    await eventually(lambda: rows(settings, "SELECT 1 FROM prompts WHERE left_at IS NULL"))
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    (row,) = await eventually(lambda: rows(settings, LEFT))
    return str(row["fusion_id"])


@pytest.mark.parametrize("is_ended", [False, True], ids=["runs", "ended"])
async def test_a_client_that_left_and_asks_again_without_a_word_buys_nothing(
    http: aiohttp.ClientSession, settings: Settings, model_server: ModelServer, is_ended: bool
) -> None:
    """As OpenRouter's SDK does for an hour. What is asked after it was answered is another fusion."""
    model_server.set_script(Script.of(latency_ms=300))
    fusion_id = await ask_and_leave(http, settings)
    if is_ended:
        assert await ended(http, fusion_id) == "fused"
    else:
        assert await ask_and_leave(http, settings) == fusion_id

    status, _, headers = await post(http)
    assert (status, headers[OUTCOME_HEADER]) == (200, fusion_id)
    assert dict(model_server.stats.by_model) == {"a": 1, "b": 1, "c": 1, "j": 2}
    assert (await post(http))[2][OUTCOME_HEADER] != fusion_id


async def test_requests_on_open_connections_are_fusions_of_their_own(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(latency_ms=300))
    found = await asyncio.gather(*(post(http) for _ in range(4)))
    assert len({headers[OUTCOME_HEADER] for _, _, headers in found}) == 4


async def test_a_request_is_found_again_when_its_ingest_is_gone(
    make_settings: MakeSettings, running: Running, nats: NatsServer
) -> None:
    """And not while it waits at another ingest that lives."""
    settings = make_settings(nats=Nats(url=nats.url))
    fusions = "SELECT fusion_id, held_by FROM prompts ORDER BY submitted_at"
    waiting: list[asyncio.Task[Any]] = []

    async def ask(http: aiohttp.ClientSession) -> None:
        waiting.append(asyncio.create_task(post(http)))

    async with (
        running(settings, "ingest") as here,
        running(settings, "ingest") as there,
        aiohttp.ClientSession(here.url) as http,
        aiohttp.ClientSession(there.url) as elsewhere,
    ):
        await ask(elsewhere)
        await eventually(lambda: rows(settings, fusions))
        await ask(http)
        first, second = await eventually(lambda: two(rows(settings, fusions)))
        assert first["held_by"] != second["held_by"]

        store = Store(settings.database)
        async with store.write() as connection:
            await connection.execute(text("UPDATE prompts SET held_by = 'gone'"))
        await store.close()
        await ask(http)
        again = f"SELECT 1 FROM prompts WHERE fusion_id = '{second['fusion_id']}' AND held_by != 'gone'"
        await eventually(lambda: rows(settings, again))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert len(await rows(settings, fusions)) == 2


async def two(found: Awaitable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows, once there are two."""
    listed = await found
    return listed if len(listed) == 2 else []


async def test_attaching_can_be_switched_off(
    make_settings: MakeSettings, stack: Running, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(latency_ms=200))
    settings = make_settings(http={"port": 0, "attach": False})
    async with stack(settings) as client, aiohttp.ClientSession(client.url) as http:
        asked = asyncio.create_task(post(http))
        await model_server.arrived(3)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        status, _, _ = await post(http, headers=AGAIN)
        assert (status, model_server.stats.by_model["a"]) == (200, 2)


async def test_what_is_no_retry_is_a_run_of_its_own(http: aiohttp.ClientSession, model_server: ModelServer) -> None:
    given: list[dict[str, Any]] = [
        {},
        {},
        {"headers": {"x-stainless-retry-count": "0"}},
        {"headers": AGAIN, "json": {**ASKED, "temperature": 0.5}},
    ]
    found = {(await post(http, **one))[2][OUTCOME_HEADER] for one in given}

    assert len(found) == len(given)
    assert model_server.stats.by_model["a"] == len(given)


async def test_a_key_makes_the_same_run_of_the_same_request(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    key = {"Idempotency-Key": "k1"}

    first, again = await post(http, headers=key), await post(http, headers=key)
    status, answer, headers = await post(http, headers=key, json={**ASKED, "temperature": 0.5})

    assert first[1] == {**again[1], "created": first[1]["created"]}
    assert first[2][OUTCOME_HEADER] == ids.fusion_id("default", None, "key-k1")
    assert model_server.stats.by_model["a"] == 1
    assert (status, answer["error"]["code"], headers["x-should-retry"]) == (409, "custom_id_conflict", "false")


async def test_a_fusion_may_ask_a_fusion_and_says_so(door: aiohttp.ClientSession, settings: Settings) -> None:
    """Ingest notes how deep a prompt is."""
    asking = asyncio.create_task(post(door, headers={"x-fusewire-depth": "1"}))
    (row,) = await eventually(lambda: rows(settings, "SELECT body FROM prompts"))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    assert Prompt.decode(row["body"]).depth == 1


# -- failures ---------------------------------------------------------------------------------

WAITS = {"a": "50", "b": "40", "c": "3600"}
FAILURES: list[tuple[Any, int, str]] = [
    ("bad_request", 400, "bad_request"),
    ("server_error", 424, "all_panels_failed"),
    (Fault(kind="rate_limited", headers={"retry-after": "3600"}), 429, "rate_limited"),
]


@pytest.mark.parametrize(("fault", "status", "code"), FAILURES, ids=[row[2] for row in FAILURES])
async def test_what_all_members_fail_at_says_whose_fault_it_is(
    http: aiohttp.ClientSession, model_server: ModelServer, fault: Any, status: int, code: str
) -> None:
    """And never in a way that makes a client buy it again by itself."""
    model_server.set_script(Script.of(*[fault] * 99))
    found, answer, headers = await post(http)

    error = answer["error"]
    assert (found, error["code"]) == (status, code)
    told = error["fusion"]
    assert told["outcome_id"] == headers[OUTCOME_HEADER]
    assert [one["model"] for one in told["failed_models"]] == ["a", "b", "c"]
    assert headers["x-should-retry"] == "false"
    assert headers.get("retry-after") == ("3600" if status == 429 else None)
    async with http.get(f"/v1/fusions/{headers[OUTCOME_HEADER]}") as response:
        assert (await response.json())["status"] == "failed"


async def test_a_short_wait_is_the_clients_own(http: aiohttp.ClientSession, model_server: ModelServer) -> None:
    limited = {name: Fault(kind="rate_limited", headers={"retry-after": wait}) for name, wait in WAITS.items()}
    model_server.set_script(Script(models={name: ModelScript(faults=(one,) * 9) for name, one in limited.items()}))
    status, _, headers = await post(http, json={**ASKED, "fusewire": {"deadline_s": 5}})

    assert (status, headers["retry-after"], "x-should-retry" in headers) == (429, "40", False)


@pytest.mark.parametrize(("fault", "status", "code"), FAILURES, ids=[row[2] for row in FAILURES])
async def test_within_a_stream_a_failure_travels_as_data(
    http: aiohttp.ClientSession, model_server: ModelServer, fault: Any, status: int, code: str
) -> None:
    model_server.set_script(Script.of(*[fault] * 99))
    async with streaming(http) as heard:
        pass

    assert heard.status == 200
    (error,) = [chunk["error"] for chunk in heard.chunks]
    assert (error["code"], len(error["fusion"]["failed_models"])) == (code, 3)
    assert not heard.is_done


async def test_what_all_members_decline_is_a_refusal(http: aiohttp.ClientSession, model_server: ModelServer) -> None:
    model_server.set_script(Script.of(*[Fault(kind="content_filter")] * 99))
    status, reply, _ = await post(http)
    async with streaming(http) as heard:
        pass

    (choice,) = reply["choices"]
    assert (status, choice["finish_reason"], choice["message"]["content"]) == (200, "content_filter", None)
    assert choice["message"]["refusal"]
    deltas = [c["choices"][0] for c in heard.chunks]
    assert [d["delta"]["refusal"] for d in deltas if "refusal" in d["delta"]] == [choice["message"]["refusal"]]
    assert deltas[-1]["finish_reason"] == "content_filter"


async def test_who_waits_when_it_stops_is_told_to_come_back(
    make_settings: MakeSettings, running: Running, nats: NatsServer
) -> None:
    """Nothing is lost: the next one that runs is asked again, and has it."""
    async with contextlib.AsyncExitStack() as end:
        client = await end.enter_async_context(running(make_settings(nats=Nats(url=nats.url)), "ingest"))
        async with aiohttp.ClientSession(client.url) as http:
            waiting = asyncio.create_task(post(http))
            async with streaming(http, headers=KEY) as heard:
                await heard.until(lambda: bool(heard.comments))
                await end.aclose()
            status, answer, headers = await waiting

    assert (status, answer["error"]["code"]) == (503, "draining")
    assert headers[OUTCOME_HEADER] in answer["error"]["message"]
    assert int(headers["retry-after"]) >= 1
    assert heard.chunks[-1]["error"]["code"] == "draining"


async def test_a_wait_without_an_outcome_names_the_fusion(
    door: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire_ingest.api.run.PATIENCE_S", 0.1)

    status, answer, headers = await post(door, json={**ASKED, "fusewire": {"deadline_s": 0.1}})

    assert (status, answer["error"]["code"]) == (504, "timeout")
    assert f"GET /v1/fusions/{headers[OUTCOME_HEADER]}" in answer["error"]["message"]
    assert "x-should-retry" not in headers, "a retry waits on"


# -- clients that leave -----------------------------------------------------------------------


async def leave(http: aiohttp.ClientSession, model_server: ModelServer, key: str, **given: Any) -> str:
    """Ask, and leave when the members have been asked; returns the fusion's id."""
    asking_ = asyncio.create_task(
        post(http, **{**given, "headers": {"Idempotency-Key": key, **given.get("headers", {})}})
    )
    await asyncio.wait_for(model_server.arrived(3), 250)
    asking_.cancel()
    await asyncio.gather(asking_, return_exceptions=True)
    return ids.fusion_id("default", None, f"key-{key}")


async def ended(http: aiohttp.ClientSession, fusion_id: str) -> str:
    """The status, once it is not `running`; asked without waiting, since a fusion that is waited for goes on."""

    async def status() -> str | None:
        async with http.get(f"/v1/fusions/{fusion_id}") as response:
            found: str = (await response.json())["status"]
        return found if found != "running" else None

    return str(await eventually(status))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fusion_goes_on_when_its_client_leaves(
    http: aiohttp.ClientSession, model_server: ModelServer, stream: bool
) -> None:
    model_server.set_script(Script.of(latency_ms=200))

    fusion_id = await leave(http, model_server, "k", json={**ASKED, "stream": stream})

    assert await ended(http, fusion_id) == "fused"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by", ["header", "body"])
async def test_a_fusion_is_cancelled_when_its_client_leaves_and_wanted_it(
    http: aiohttp.ClientSession, model_server: ModelServer, by: str, stream: bool
) -> None:
    model_server.set_script(Script.of(Fault(kind="hang")))
    wanted: dict[str, Any] = (
        {"headers": {"x-fusewire-cancel-on-disconnect": "true"}, "json": {**ASKED, "stream": stream}}
        if by == "header"
        else {"json": {**ASKED, "stream": stream, "fusewire": {"cancel_on_disconnect": True}}}
    )

    fusion_id = await leave(http, model_server, "k", **wanted)

    assert await ended(http, fusion_id) == "cancelled"


async def test_a_fusion_that_another_waits_for_is_not_cancelled(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(latency_ms=500))
    wanted = {"x-fusewire-cancel-on-disconnect": "true"}
    other = asyncio.create_task(post(http, headers={"Idempotency-Key": "k"}))
    await asyncio.wait_for(model_server.arrived(3), 250)

    await leave(http, model_server, "k", headers=wanted)

    assert (await other)[0] == 200


async def test_a_fusion_is_cancelled_by_its_id(http: aiohttp.ClientSession, model_server: ModelServer) -> None:
    model_server.set_script(Script.of(Fault(kind="hang")))
    fusion_id = await leave(http, model_server, "k")

    async with http.post(f"/api/v1/fusions/{fusion_id}/cancel") as response:
        assert (response.status, (await response.json())["is_cancelled"]) == (200, True)
    assert await ended(http, fusion_id) == "cancelled"
    async with http.post(f"/v1/fusions/{fusion_id}/cancel") as response:
        assert (response.status, (await response.json())["is_cancelled"]) == (200, False)
    # A retry finds it, and says what became of it.
    status, answer, _ = await post(http, headers={"Idempotency-Key": "k"})
    assert (status, answer["error"]["code"]) == (409, "cancelled")


# -- streams ----------------------------------------------------------------------------------


class Heard:
    """What came of a stream so far."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.status = response.status
        self.comments: list[str] = []
        self.chunks: list[dict[str, Any]] = []
        self.is_done = False

    @property
    def text(self) -> str:
        return "".join(c["choices"][0]["delta"].get("content") or "" for c in self.chunks if c.get("choices"))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Listen on until then, or to the end."""
        async for line in self.response.content:
            if line.startswith(b":"):
                self.comments.append(line[1:].decode().strip())
            elif line == b"data: [DONE]\n":
                self.is_done = True
            elif line.startswith(b"data: "):
                assert not self.is_done
                self.chunks.append(json.loads(line[6:]))
            else:
                assert line == b"\n"
            if condition():
                return


@asynccontextmanager
async def streaming(
    http: aiohttp.ClientSession, *, headers: dict[str, str] | None = None, **fields: Any
) -> AsyncIterator[Heard]:
    """A stream; what the body of the block leaves is heard at its end."""
    body = {**ASKED, "stream": True, **fields}
    async with http.post(CHAT, json=body, headers=headers) as response:
        heard = Heard(response)
        yield heard
        await heard.until(lambda: False)


async def test_a_stream_has_the_order_that_clients_expect(http: aiohttp.ClientSession) -> None:
    async with streaming(http, stream_options={"include_usage": True}) as heard:
        pass

    assert heard.status == 200
    kept = ("content-type", "cache-control", "x-accel-buffering")
    assert [heard.response.headers[name] for name in kept] == ["text/event-stream; charset=utf-8", "no-cache", "no"]
    assert heard.comments == ["fusewire", *(f"fusewire panel {number}/3" for number in (0, 1, 2, 3))]
    first, *content, finish, usage = heard.chunks
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert [c["choices"][0]["finish_reason"] for c in (first, *content)] == [None] * (1 + len(content))
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert (usage["choices"], usage["usage"]["total_tokens"] > 0) == ([], True)
    assert heard.is_done
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in heard.chunks}) == 1
    async with http.get(f"/v1/fusions/{heard.response.headers[OUTCOME_HEADER]}") as response:
        assert heard.text == (await response.json())["content"]


async def test_a_stream_without_usage_ends_with_its_finish(http: aiohttp.ClientSession) -> None:
    async with streaming(http) as heard:
        pass

    assert heard.chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert heard.chunks[-1]["fusion"]["outcome_id"] == heard.response.headers[OUTCOME_HEADER]


async def test_what_some_clients_take_for_a_line_end_is_none(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    said = "one\u2028two\u2029three\u0085four"
    model_server.set_script(Script.of(answer=said))
    async with http.post(CHAT, json={**ASKED, "stream": True}) as response:
        raw = (await response.read()).decode()
    assert len(raw.splitlines()) == raw.count("\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in raw.splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == said


async def test_a_stream_is_never_silent_for_long(
    make_settings: MakeSettings, stack: Running, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "HEARTBEAT_S", 0.05)
    slow = {"b": ModelScript(latency_ms=500), "c": ModelScript(latency_ms=500)}
    model_server.set_script(Script(models=slow))
    async with stack(make_settings()) as client, aiohttp.ClientSession(client.url) as http, streaming(http) as heard:
        pass

    beats = [c for c, after in zip(heard.comments, heard.comments[1:], strict=False) if c == after]
    assert "fusewire panel 1/3" in beats
    assert heard.is_done


class Writer:
    """Stands in for a worker that tells what it writes."""

    def __init__(self, bus: Bus, key: str) -> None:
        self.bus = bus
        self.fusion_id = ids.fusion_id("default", None, f"key-{key}")

    async def write(self, text: str, offset: int, *, call: str = "write", attempt: int = 1) -> None:
        token = Token(fusion_id=self.fusion_id, round=1, call=call, attempt=attempt, offset=offset, text=text)
        await self.bus.client.publish(token_subject(self.fusion_id), token.encode())
        await self.bus.client.flush()


KEY = {"Idempotency-Key": "k"}


@pytest.fixture
async def written(
    make_settings: MakeSettings, running: Running, nats: NatsServer, make_bus: Any, model_server: ModelServer
) -> AsyncIterator[tuple[aiohttp.ClientSession, Writer]]:
    """Fusewire with members that answer late and all alike, and a writer that tells of the fusion with the key `k`."""
    model_server.set_script(Script.of(latency_ms=600, answer=ANSWER))
    names = ("judge", "worker-remote", "dispatcher", "ingest")
    async with (
        running(make_settings(nats=Nats(url=nats.url)), *names) as client,
        aiohttp.ClientSession(client.url) as http,
    ):
        yield http, Writer(await make_bus(), "k")


async def test_text_is_told_while_it_is_written(
    written: tuple[aiohttp.ClientSession, Writer], model_server: ModelServer
) -> None:
    http, writer = written

    async def write() -> None:
        await model_server.arrived(3)
        await writer.write("Hello", 0)
        await writer.write(" world", 5)

    writing = asyncio.create_task(write())
    async with streaming(http, headers=KEY) as heard:
        await heard.until(lambda: heard.text == "Hello world")
        assert heard.comments == ["fusewire", "fusewire panel 0/3"], "no member has answered yet"
    await writing

    assert heard.text == ANSWER
    assert [c["choices"][0]["delta"].get("role") for c in heard.chunks].count("assistant") == 1
    assert heard.chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "Hello"}
    assert heard.is_done


TORN = [
    ("a gap", [("Hello", 0, {}), ("world", 6, {})]),
    ("another attempt", [("Hello", 0, {}), ("Hello", 0, {"attempt": 2})]),
    ("another call", [("Hello", 0, {}), (" world", 5, {"call": "other"})]),
    ("more after a gap", [("Hello", 0, {}), ("d", 10, {}), (" world", 5, {})]),
]


@pytest.mark.parametrize("pieces", [row[1] for row in TORN], ids=[row[0] for row in TORN])
async def test_torn_text_is_told_no_further_and_the_outcome_has_the_rest(
    written: tuple[aiohttp.ClientSession, Writer], model_server: ModelServer, pieces: list[Any]
) -> None:
    http, writer = written

    async def write() -> None:
        await model_server.arrived(3)
        for piece, offset, which in pieces:
            await writer.write(piece, offset, **which)

    writing = asyncio.create_task(write())
    async with streaming(http, headers=KEY) as heard:
        await heard.until(lambda: heard.text == "Hello")
    await writing

    told = [c["choices"][0]["delta"].get("content") for c in heard.chunks if c["choices"][0]["delta"]]
    assert told == ["Hello", ANSWER.removeprefix("Hello")]


async def test_text_that_was_not_chosen_ends_the_stream_with_an_error(
    written: tuple[aiohttp.ClientSession, Writer], model_server: ModelServer
) -> None:
    http, writer = written

    async def write() -> None:
        await model_server.arrived(3)
        await writer.write("Something else", 0)

    writing = asyncio.create_task(write())
    async with streaming(http, headers=KEY) as heard:
        pass
    await writing

    assert heard.text == "Something else"
    error = heard.chunks[-1]["error"]
    assert error["code"] == "stream_superseded"
    assert f"GET /v1/fusions/{writer.fusion_id}" in error["message"]
    assert not heard.is_done


# -- models and documentation -----------------------------------------------------------------


async def test_models_are_the_fusion_the_pools_and_the_models(door: aiohttp.ClientSession) -> None:
    async with door.get("/api/v1/models") as response:
        listed = await response.json()
    assert [model["id"] for model in listed["data"]] == ["openrouter/fusion", "fusewire/default", "a", "b", "c", "j"]
    assert (listed["object"], listed["total_count"]) == ("list", 6)

    for name in ("openrouter/fusion", "openrouter/openrouter/fusion", "fusewire/default", "a", "~a"):
        async with door.get(f"/v1/models/{name}") as response:
            found = await response.json()
        assert (response.status, found["id"]) == (200, name.removeprefix("~"))
    for name, code in (("fusewire/none", "unknown_pool"), ("gtp", "model_not_found")):
        async with door.get(f"/v1/models/{name}") as response:
            answer = await response.json()
        assert (response.status, answer["error"]["code"]) == (404, code)


async def test_the_documentation_needs_no_other_host(door: aiohttp.ClientSession) -> None:
    async with door.get("/docs") as response:
        page = await response.text()
        policy = response.headers["content-security-policy"]
    assert re.findall(r"https?://|//[a-z]", page) == []
    assert "http" not in policy
    for name in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        async with door.get(name) as response:
            assert (response.status, len(await response.read()) > 100_000) == (200, True), name
    async with door.get("/docs/index.html") as response:
        assert response.status == 404


async def test_the_document_names_each_path_once_and_every_component(door: aiohttp.ClientSession) -> None:
    async with door.get("/openapi.json") as response:
        document = await response.json()

    assert document["openapi"].startswith("3.1")
    assert {"/v1/chat/completions", "/v1/models/{model}", "/v1/fusions/{fusion_id}/cancel"} <= document["paths"].keys()
    assert not [path for path in document["paths"] if path.startswith("/api/")]
    components = document["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))) <= components.keys()
    assert "422" not in json.dumps(document["paths"])
