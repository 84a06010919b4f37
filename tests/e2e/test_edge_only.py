"""Edge-only content is searched for, byte by byte, in all that leaves the edge's side of a stack.

The stack is real: each service a process, a nats-server, an edge model, hosted models by the fake
server, which keeps every byte that it receives. What is searched for are words that no other text
holds: some in prompts, and the answers of the edge model, which are random letters.
"""

import asyncio
import base64
import gzip
import io
import json
import secrets
import sqlite3
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.aio.msg import Msg

from fusewire import provision
from fusewire.bus import Bus
from fusewire.configuration import load
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.testing.canary import find, forms, memory_of
from fusewire.testing.collector import collecting
from fusewire.testing.command_line import FakeServer
from fusewire.testing.eventually import PATIENCE_S, eventually
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.replicas import Replica, Replicas
from fusewire.topology import CARRIERS, topology
from fusewire_cli.client import Client
from fusewire_ingest.admission.keys import RANDOM_BYTES, digest, key_id, make
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key

SERVICES = ("judge", "worker-remote", "worker-edge", "dispatcher", "ingest")
HOUSE_STREAMS = {
    "FW_PROMPT", "FW_ROUND", "FW_TASK_EDGE", "FW_CANDIDATE", "FW_OUTCOME", "FW_DEAD_EDGE", "FW_IN",
}  # fmt: skip
"""Streams that may hold edge-only content; no account of the remote side reads one of them."""
HOUSE_SUBJECTS = (
    "fw.prompt.", "fw.round.", "fw.task.edge.", "fw.candidate.", "fw.outcome.", "fw.sealed.",
    "fw.in.", "fw.token.", "fw.plan.",
    "_INBOX_ingest", "_INBOX_dispatcher", "_INBOX_judge", "_INBOX_worker-edge", "_INBOX_ops",
)  # fmt: skip
"""Subjects that may carry it, and the inboxes on which their messages are delivered."""
KEY_PLACES = ("model server", "worker-remote's memory")
"""Where a provider's key is; clients' keys are in ingest's memory."""
MOST_ANSWERS = 6
LEAST_LETTERS = 8
"""An answer of fewer different characters may come about by chance."""

Places = dict[str, list[bytes]]


def token() -> str:
    return f"c4n4ry{secrets.token_hex(12)}"


class Words:
    """The words that are searched for."""

    def __init__(self) -> None:
        self.secret = token()
        """What all of them begin with: one is searched for instead of many."""
        self.count = 0
        self.open = token()
        """Of prompts that hosted models may see: found where the secret ones must not be."""

    def new(self) -> str:
        self.count += 1
        return f"{self.secret}{self.count}"


@dataclass
class Stack:
    """A running stack and what can be seen of it."""

    base: str
    keys: dict[str, str]
    bus: Bus
    replicas: Replicas
    running: dict[str, Replica]
    traffic: list[Msg]
    folder: Path
    server: FakeServer
    traces: list[bytes]
    nats: NatsServer


def config(server: FakeServer, nats: NatsServer, folder: Path, edge_model: Path) -> dict[str, Any]:
    remote = {
        name: {
            "kind": "remote", "base_url": server.base_url, "model": name,
            "api_key_env": "CANARY_KEY",
        }
        for name in "abj"
    }  # fmt: skip
    edge = {
        name: {"kind": "edge", "path": str(edge_model), "max_tokens": 32, "kv_cache_mb": 64}
        for name in ("tiny", "small")
    }
    members = ["a", "tiny", "small", "b"]
    shared = {"deadline_s": 60, "control_share": 0.0}
    return {
        "data_dir": str(folder / ".fusewire"),
        "database": {"url": f"sqlite+aiosqlite:///{folder / '.fusewire' / 'fusewire.db'}"},
        "nats": {"url": nats.url},
        "http": {"keys": "required"},
        "models": remote | edge,
        "pools": {
            "default": {"members": members, "judge": "j", **shared},
            "edge-judge": {"members": ["a", "tiny", "small"], "judge": "tiny", **shared},
            "sealed": {
                "members": members, "judge": "j", "residency": "edge-only", "mode": "merge",
                **shared,
            },
        },
    }  # fmt: skip


@asynccontextmanager
async def running_stack(
    folder: Path, server: FakeServer, edge_model: Path, provider_key: str
) -> AsyncIterator[Stack]:
    (folder / ".fusewire").mkdir()
    async with NatsServer(folder / "nats") as nats:
        with (
            collecting() as collector,
            Replicas(folder, config(server, nats, folder, edge_model)) as replicas,
        ):
            settings = load(folder / "fusewire.json")
            keys = await prepare(settings)
            bus = Bus("ops", settings.nats, drain_s=2)
            await bus.connect(timeout_s=PATIENCE_S)
            models = {name: model.kind for name, model in settings.models.items()}
            await provision.apply(bus.js, topology(models, settings.pools))
            traffic: list[Msg] = []

            async def note(message: Msg) -> None:
                traffic.append(message)

            await bus.client.subscribe(">", cb=note, pending_bytes_limit=512 * 1024**2)
            await bus.confirm_subscriptions()
            env = {
                "FUSEWIRE_TELEMETRY__OTLP_ENDPOINT": collector.endpoint,
                "FUSEWIRE_LOG__LEVEL": "debug",
            }
            processes = {}
            for service in SERVICES:
                secret = {"CANARY_KEY": provider_key} if service == "worker-remote" else {}
                processes[service] = replicas.start(service, **env, **secret)
            for replica in processes.values():
                await replica.ready()
            base = await processes["ingest"].ready()
            yield Stack(
                base, keys, bus, replicas, processes, traffic, folder, server,
                collector.bodies, nats,
            )  # fmt: skip
            await bus.stop()


async def prepare(settings: Settings) -> dict[str, str]:
    """The schema, and a key that may do everything for each tenant."""
    store = Store(settings.database)
    await migrate.upgrade(store)
    keys = {}
    for tenant in ("acme", "rival"):
        secret = make(secrets.token_bytes(RANDOM_BYTES))
        keys[tenant] = secret
        at = datetime.now(UTC)
        key = Key(
            str(key_id(secret)), tenant, "test", digest(secret, pepper(settings)), at,
            scopes="admin",
        )  # fmt: skip
        await ApiKeys(store).add(key, Change("test", at))
    await store.close()
    return keys


def play(server: FakeServer) -> None:
    """Hosted models fail once, then answer; all that arrives is kept."""
    script = {"models": {"*": {"faults": [{"kind": "server_error"}]}}, "recording": True}
    address = f"http://127.0.0.1:{server.port}/_control/script"
    urllib.request.urlopen(address, data=json.dumps(script).encode(), timeout=PATIENCE_S).close()


def received(server: FakeServer) -> bytes:
    address = f"http://127.0.0.1:{server.port}/_control/received"
    with urllib.request.urlopen(address, timeout=PATIENCE_S) as reply:
        return bytes(reply.read())


# -- what is done -----------------------------------------------------------------------------


async def submit(stack: Stack, words: Words) -> list[dict[str, Any]]:
    """Edge-only prompts by every way in, some of them refused, and open ones; their outcomes."""
    edge: dict[str, Any] = {"residency": "edge-only"}
    picture = "data:image/png;base64," + base64.b64encode(words.new().encode() * 9000).decode()
    parts = [
        {"type": "text", "text": f"What is {words.new()}?"},
        {"type": "image_url", "image_url": {"url": picture}},
    ]
    long_text = f"{words.new()} is long. " * 6000
    prompts: list[dict[str, Any]] = [
        {"prompt": f"Is {words.new()} good?", **edge},
        {"prompt": f"Why {words.new()}?", "mode": "merge", "pool": "edge-judge", **edge},
        {"prompt": f"How {words.new()}?", "mode": "debate", "pool": "edge-judge", **edge},
        {"prompt": f"Who {words.new()}?", "pool": "edge-judge", "criteria": words.new(), **edge},
        {"prompt": f"When {words.new()}?", "pool": "sealed", "residency": "any"},
        {"messages": [{"role": "user", "content": parts}], **edge},
        {"prompt": long_text, **edge},
        {"prompt": f"Is {words.open} open?"},
        {"prompt": f"Is {words.open} open, to all?", "mode": "debate"},
    ]
    async with Client(stack.base, stack.keys["acme"]) as client:
        outcomes = await asyncio.gather(*(client.submit(body, wait_s=250) for body in prompts))
        line = {"prompt": f"A line on {words.new()}", "custom_id": "line", **edge}
        bad_line = {"prompt": 1, words.new(): words.new()}
        await client.submit_lines([json.dumps(line), json.dumps(bad_line)], "b")
        await asyncio.gather(chat(stack, words), batch(stack, words), refused(stack, words))
    await on_the_bus(stack, words)
    return [dict(outcome) for outcome in outcomes]


def headers(stack: Stack) -> dict[str, str]:
    return {"authorization": f"Bearer {stack.keys['acme']}"}


async def chat(stack: Stack, words: Words) -> None:
    """A stream, whose pieces go over the bus."""
    body = {
        "model": "fusewire/sealed", "stream": True,
        "messages": [{"role": "user", "content": f"Tell of {words.new()}."}],
    }  # fmt: skip
    async with (
        aiohttp.ClientSession(stack.base, headers=headers(stack)) as http,
        http.post("/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        assert b"[DONE]" in await response.read()


async def batch(stack: Stack, words: Words) -> None:
    """A file of lines, as OpenAI has it."""
    file = stack.folder / "batch.jsonl"
    body = {
        "model": "fusewire/sealed",
        "messages": [{"role": "user", "content": f"Of {words.new()}?"}],
    }
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file.write_text(json.dumps(line) + "\n")
    async with Client(stack.base, stack.keys["acme"]) as client:
        uploaded = await client.upload(file)
        made = await client.create_batch(
            {
                "input_file_id": uploaded,
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
            },
            "key",
        )

        async def is_over() -> bool:
            return (await client.batch(made["id"]))["status"] == "completed"

        await eventually(is_over)


async def refused(stack: Stack, words: Words) -> None:
    """Bodies that nobody accepts."""
    async with aiohttp.ClientSession(stack.base, headers=headers(stack)) as http:
        for body in (
            json.dumps({"prompt": words.new(), "mode": words.new(), "residency": "edge-only"}),
            '{"prompt": "' + words.new(),
            json.dumps({"prompt": words.new() * 40_000, "residency": "edge-only"}),
        ):
            async with http.post("/v1/fusions", data=io.BytesIO(body.encode())) as response:
                assert 400 <= response.status < 500, await response.text()


async def on_the_bus(stack: Stack, words: Words) -> None:
    """A producer's prompt; and messages that no service can read, which are dead-lettered."""
    body = {"prompt": f"On the bus: {words.new()}", "residency": "edge-only", "custom_id": "bus"}
    await stack.bus.publish("fw.in.acme", json.dumps(body).encode())
    for subject in (
        "fw.in.acme", "fw.prompt.normal.acme", "fw.round.f", "fw.task.edge.tiny.normal",
        "fw.candidate.f.0.tiny",
    ):  # fmt: skip
        await stack.bus.publish(subject, f'{{"prompt": ["{words.new()}'.encode())
    open_body = {"residency": "any", "prompt": words.open}
    await stack.bus.publish("fw.task.remote.default.normal", json.dumps(open_body).encode())

    async def is_done() -> bool:
        states = [
            (await stack.bus.js.stream_info(name)).state.messages for name in ("FW_IN", *CARRIERS)
        ]
        dead = (await stack.bus.js.stream_info("FW_DEAD")).state.messages
        return dead >= 6 and not any(states)

    await eventually(is_done)


# -- where it is searched for -----------------------------------------------------------------


async def places_of(stack: Stack) -> Places:
    """All that is beyond the edge's side of the house, by place."""
    places: Places = {
        "model server": [received(stack.server)],
        "traces": list(stack.traces),
        "nats-server's log": [stack.nats.log().encode()],
        "worker-remote's memory": list(memory_of(stack.running["worker-remote"].command.pid)),
        "another tenant": await seen_by(stack, "rival"),
    }
    for name, replica in stack.running.items():
        places[f"log of {name}"] = [
            replica.command.stdout.encode(), replica.command.stderr.encode(),
        ]  # fmt: skip
        url = f"{await replica.ready()}/metrics"
        places[f"metrics of {name}"] = [await get(url, stack.keys["acme"])]
        assert b"fusewire_" in places[f"metrics of {name}"][0]
    for message in stack.traffic:
        head = f"{message.subject} {message.reply} {dict(message.headers or {})}".encode()
        places.setdefault("subjects and headers", []).append(head)
        if not message.subject.startswith(HOUSE_SUBJECTS):
            name = ".".join(message.subject.split(".")[:3])
            places.setdefault(f"subject {name}", []).append(message.data)
    for folder in (stack.folder / "nats" / "store").rglob("streams/*"):
        if folder.name not in HOUSE_STREAMS:
            files = [path for path in folder.rglob("*") if path.is_file()]
            places[f"stream {folder.name}"] = [path.read_bytes() for path in files]
    return places


async def get(url: str, key: str = "") -> bytes:
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"} if key else {}) as http,
        http.get(url) as response,
    ):
        return await response.read()


async def seen_by(stack: Stack, tenant: str) -> list[bytes]:
    """All that the API lists for a tenant."""
    document = json.loads(await get(f"{stack.base}/openapi.json", stack.keys[tenant]))
    paths = [
        path for path, methods in document["paths"].items() if "get" in methods and "{" not in path
    ]
    assert len(paths) > 5
    return [await get(stack.base + path, stack.keys[tenant]) for path in paths]


def edge_answers(folder: Path) -> list[str]:
    """The answers of the edge model that are unlike anything else, from the database."""
    with closing(sqlite3.connect(folder / ".fusewire" / "fusewire.db")) as database:
        query = (
            "SELECT c.body FROM candidates c JOIN prompts p USING (fusion_id)"
            " WHERE p.residency = 'edge-only'"
        )
        bodies = [json.loads(body) for (body,) in database.execute(query)]
    texts = [body["content"] for body in bodies if body.get("tier") == "edge" and body["content"]]
    letters = {text[:20] for text in texts if len(set(text[:20])) >= LEAST_LETTERS}
    return sorted(letters)[:MOST_ANSWERS]


def secret_places(stack: Stack, places: Places) -> Places:
    """Where no key may be: all that was searched for content, all of the database and the broker.

    A provider's key goes to the provider and is in worker-remote's memory; nowhere else.
    """
    files = [path for path in (stack.folder / ".fusewire").glob("fusewire.db*") if path.is_file()]
    store = [path for path in (stack.folder / "nats").rglob("*") if path.is_file()]
    return {
        **{name: chunks for name, chunks in places.items() if name not in KEY_PLACES},
        "database": [path.read_bytes() for path in files],
        "broker": [path.read_bytes() for path in store],
        "all messages": [message.data for message in stack.traffic],
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_no_byte_of_edge_only_content_is_found_beyond_the_edge_and_no_key_anywhere(
    tmp_path: Path, server: FakeServer, tiny_folder: Path
) -> None:
    words, provider_key = Words(), token()
    play(server)
    async with running_stack(tmp_path, server, tiny_folder, provider_key) as stack:
        outcomes = await submit(stack, words)
        places = await places_of(stack)
        without_keys = secret_places(stack, places)
        sealed = (await stack.bus.js.stream_info("FW_DEAD_EDGE")).state.messages
        keys = list(stack.keys.values())
    answers = edge_answers(tmp_path)

    assert Counter(outcome["status"] for outcome in outcomes)["running"] == 0
    assert (sealed >= 5, len(answers) >= 3, words.count > 20) == (True, True, True)
    assert find(places, [words.secret, *answers]) == set()
    assert find(without_keys, [provider_key, *keys]) == set()
    # What may be seen is found by the same search where it has to be.
    assert {place for place, _ in find(places, [words.open])} >= {
        "model server", "subject fw.task.remote", "stream FW_DEAD",
    }  # fmt: skip
    assert "model server" in {place for place, _ in find(places, [provider_key])}
    assert {"stream FW_DEAD", "stream KV_fw_calls", "stream OBJ_fw_blobs"} <= places.keys()
    # And what must not be seen would be found in each place, in each form.
    for form, data in forms(words.secret).items():
        for place in places:
            planted = {place: [b"nothing", b'{"content":"' + data + b'"}']}
            assert any(name == place for name, _ in find(planted, [words.secret])), (place, form)
    packed = gzip.compress(f"It is {words.secret}.".encode())
    assert find({"packed": [b"\0" + packed]}, [words.secret]) == {("packed", "packed plain")}
