"""OpenAI's and OpenRouter's routes on the real parts: answered, refused, described."""

import gzip
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from fusewire.contracts import Candidate
from fusewire.settings import Nats, Settings
from fusewire.testing.factories import known_usage
from fusewire.testing.http_api import ASKED, CHAT, post, rows
from fusewire.testing.model_script import Script, ScriptedCall
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.served import code_of
from fusewire_cli.client import Client
from fusewire_ingest.api.fusions import JSONL_LINES
from fusewire_ingest.api.run import OUTCOME_HEADER
from fusewire_ingest.intake import Intake

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]


# -- answers --------------------------------------------------------------------------------------


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
    assert stored["status"] == "selected"
    assert dict(model_server.stats.by_model) == {"a": 1, "b": 1, "c": 1, "j": 2}


async def test_usage_is_that_of_all_calls(http: aiohttp.ClientSession, settings: Settings) -> None:
    _, reply, _ = await post(http)

    calls = [
        Candidate.decode(row["body"]) for row in await rows(settings, "SELECT body FROM candidates")
    ]
    assert len(calls) == 5
    assert reply["usage"]["prompt_tokens"] == sum(known_usage(c).prompt_tokens for c in calls)
    assert reply["usage"]["completion_tokens"] == sum(
        known_usage(c).completion_tokens for c in calls
    )
    of_panel = sum(m["prompt_tokens"] for m in reply["fusion"]["members"])
    assert 0 < of_panel < reply["usage"]["prompt_tokens"], "the judge's calls are in the sum"
    assert reply["usage"]["cost"] is None, "of models without a price"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_cost_that_is_not_known_is_absent_for_the_ai_sdk(
    http: aiohttp.ClientSession, is_streamed: bool
) -> None:
    agent = {"user-agent": "ai/7.0.173 ai-sdk/provider-utils/5.0.42 runtime/node.js/v20.20.2"}
    body = {**ASKED, "stream": is_streamed}
    async with http.post("/api/v1/chat/completions", json=body, headers=agent) as response:
        text = await response.text()
    told = [
        json.loads(line) for line in text.removesuffix("data: [DONE]\n\n").split("data: ")[1:]
    ] or [json.loads(text)]

    assert "cost" not in told[-1]["usage"]
    assert told[-1]["usage"]["total_tokens"]


async def test_one_model_alone_answers_by_its_name(
    http: aiohttp.ClientSession, model_server: ModelServer
) -> None:
    status, reply, _ = await post(http, json={**ASKED, "model": "b"})

    assert (status, reply["model"]) == (200, "b")
    assert dict(model_server.stats.by_model) == {"b": 1}


async def test_tools_of_the_client(http: aiohttp.ClientSession, model_server: ModelServer) -> None:
    model_server.set_script(
        Script.of(calls=(ScriptedCall(name="weather", arguments={"city": "Oslo"}),))
    )
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


# -- refusals -------------------------------------------------------------------------------------

JSON = {"content-type": "application/json"}
ZIPPED = {**JSON, "content-encoding": "gzip"}
BODY = json.dumps(ASKED).encode()


def asking(**fields: Any) -> bytes:
    return json.dumps({**ASKED, **fields}).encode()


def long(chars: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x" * chars}]


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
    ("too deep", {}, BODY[:-1] + b',"metadata":' + b"[" * 70 + b"]" * 70 + b"}",
     400, "invalid_request", None),
    ("too much", {}, asking(messages=long(20_000)), 413, "prompt_too_large", None),
    ("too much by far", {}, asking(messages=long(1_000_000)), 413, "prompt_too_large", None),
    ("an unknown pool", {}, asking(model="fusewire/none"), 404, "unknown_pool", "model"),
    ("an unknown model", {}, asking(model="gtp"), 404, "model_not_found", "model"),
    ("what is not done", {}, asking(n=2), 400, "unsupported_parameter", "n"),
    ("a tool of the server", {},
     asking(fusewire={"strict": True}, tools=[{"type": "openrouter:web_search"}]),
     400, "unsupported_tool", "tools.0"),
    ("a form", {"content-type": "application/x-www-form-urlencoded"}, BODY,
     415, "unsupported_media_type", None),
    ("a text", {"content-type": "text/plain"}, BODY, 415, "unsupported_media_type", None),
    ("parts", {"content-type": "multipart/form-data; boundary=x"}, BODY,
     415, "unsupported_media_type", None),
    ("brotli", {**JSON, "content-encoding": "br"}, BODY, 415, "unsupported_encoding", None),
    ("gzip in gzip", {**JSON, "content-encoding": "gzip, gzip"}, BODY,
     415, "unsupported_encoding", None),
    ("no gzip", ZIPPED, BODY, 400, "invalid_encoding", None),
    ("half a gzip", ZIPPED, gzip.compress(BODY)[:-9], 400, "invalid_encoding", None),
    ("more than a gzip", ZIPPED, gzip.compress(BODY) + b"more", 400, "invalid_encoding", None),
    ("deeper than one fusion", {"x-fusewire-depth": "2"}, BODY,
     400, "recursion", "x-fusewire-depth"),
    ("the same, by OpenRouter's name", {"x-openrouter-fusion-depth": "2"}, BODY,
     400, "recursion", "x-fusewire-depth"),
    ("without end", {"x-fusewire-depth": "9" * 5000}, BODY, 400, "recursion", "x-fusewire-depth"),
    ("no depth", {"x-fusewire-depth": "-1"}, BODY, 400, "invalid_request", "x-fusewire-depth"),
    ("a long key", {"idempotency-key": "k" * 300}, BODY, 400, "invalid_request", "custom_id"),
]  # fmt: skip


async def test_a_bad_request_is_refused_in_openai_s_shape(door: aiohttp.ClientSession) -> None:
    for prefix in ("/v1", "/api/v1"):
        for what, headers, body, status, code, param in REFUSED:
            # aiohttp would say what it is.
            given = {"content-type": "application/json", **headers}
            async with door.post(
                f"{prefix}/chat/completions", data=body, headers=given
            ) as response:
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
async def test_a_bad_address_is_refused_in_openai_s_shape(
    door: aiohttp.ClientSession, prefix: str
) -> None:
    for method, path, status, code in [
        ("GET", "/none", 404, "not_found"),
        (
            "GET",
            "/chat/completions",
            405 if prefix else 404,
            "method_not_allowed" if prefix else "not_found",
        ),
        (
            "DELETE",
            "/models",
            405 if prefix else 404,
            "method_not_allowed" if prefix else "not_found",
        ),
        ("POST", "/fusions/fnone/cancel", 404, "not_found"),
    ]:
        async with door.request(method, prefix + path) as response:
            answer = await response.json()
        assert (response.status, code_of(answer["error"])) == (status, code), path
        assert response.headers["x-request-id"].startswith("req-")


async def test_an_address_is_the_same_with_a_slash_and_without_a_body(
    door: aiohttp.ClientSession,
) -> None:
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
    [
        ("completions", CHAT),
        ("embeddings", "/v1/fusions"),
        ("assistants/a1", "/v1/responses"),
        ("messages", CHAT),
    ],
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

    monkeypatch.setattr(Intake, "admit", broken)
    with capture_logs() as logged:
        status, answer, headers = await post(door)

    assert (status, answer["error"]["code"], answer["error"]["type"]) == (
        500,
        "internal_error",
        "server_error",
    )
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
        ("one long line, zipped", fusions, {**jsonl, "content-encoding": "gzip"},
         _zipped(b"x" * mib, 128), 202),
        ("blank lines, zipped", fusions, {**jsonl, "content-encoding": "gzip"},
         _zipped(b"\n" * mib, 128), 400),
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


# -- models and documentation ---------------------------------------------------------------------


async def test_models_are_the_fusion_the_pools_and_the_models(door: aiohttp.ClientSession) -> None:
    async with door.get("/api/v1/models") as response:
        listed = await response.json()
    assert [model["id"] for model in listed["data"]] == [
        "openrouter/fusion",
        "fusewire/default",
        "a",
        "b",
        "c",
        "j",
    ]
    assert (listed["object"], listed["total_count"]) == ("list", 6)

    for name in (
        "openrouter/fusion",
        "openrouter/openrouter/fusion",
        "fusewire/default",
        "a",
        "~a",
    ):
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


async def test_the_document_names_each_path_once_and_every_component(
    door: aiohttp.ClientSession,
) -> None:
    async with door.get("/openapi.json") as response:
        document = await response.json()

    assert document["openapi"].startswith("3.1")
    assert {
        "/v1/chat/completions",
        "/v1/models/{model}",
        "/v1/fusions/{fusion_id}/cancel",
    } <= document["paths"].keys()
    assert not [path for path in document["paths"] if path.startswith("/api/")]
    components = document["components"]["schemas"]
    assert (
        set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))) <= components.keys()
    )
    assert "422" not in json.dumps(document["paths"])
