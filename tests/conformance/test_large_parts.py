"""Large images and texts on the real parts: where they go, never go, and how they end."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest
from nats.aio.msg import Msg

from fusewire import references
from fusewire.blobs import Blobs
from fusewire.bus import Bus
from fusewire.contracts import Prompt
from fusewire.references.texts import END_CHARS
from fusewire.settings import Limits, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import FakeClock, make_prompt
from fusewire.testing.large_parts import LONG, picture, read, showing
from fusewire.testing.model_script import Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import BLOB_STORE
from fusewire_cli.client import Client
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.large_parts import IDLE, LargeParts
from fusewire_ingest.repository.images import Images
from fusewire_ingest.repository.submissions import Submissions

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
SERVICES = ("judge", "worker-remote", "dispatcher", "ingest")
PANEL = ("a", "b", "c")


LARGE = picture(5_000_000)


def data_of(url: str) -> bytes:
    """Its base64."""
    return url.partition(",")[2].encode()


def as_json(body: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a request with a large body."""
    return {
        "data": io.BytesIO(json.dumps(body).encode()),
        "headers": {"content-type": "application/json"},
    }


def asked(*urls: str, **fields: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "Which?"}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {
        "model": "openrouter/fusion",
        "messages": [{"role": "user", "content": parts}],
        **fields,
    }


@pytest.fixture
def settings(make_settings: MakeSettings, nats: NatsServer, model_server: ModelServer) -> Settings:
    """Three members that take images; their judge takes none."""
    hosted = {"kind": "remote", "base_url": model_server.base_url, "images": True}
    return make_settings(
        nats=Nats(url=nats.url), models={name: {**hosted, "model": name} for name in PANEL}
    )


# -- through all of Fusewire --------------------------------------------------------------------


@pytest.mark.slow
async def test_each_member_is_shown_it_and_no_message_holds_it(
    settings: Settings, running: Running, model_server: ModelServer, traffic: list[Msg]
) -> None:
    model_server.set_script(Script(recording=True))
    async with (
        running(settings, *SERVICES) as client,
        aiohttp.ClientSession(client.url) as http,
        http.post("/v1/chat/completions", **as_json(asked(LARGE))) as response,
    ):
        reply = await response.json()

    assert (response.status, reply["fusion"]["outcome_status"]) == (200, "selected")
    shown = [r for r in model_server.stats.recorded if r.model in PANEL]
    assert sorted(r.model for r in shown) == list(PANEL)
    for one in shown:
        (part,) = [p for p in one.request["messages"][0]["content"] if p["type"] == "image_url"]
        assert part["image_url"]["url"] == LARGE
    ours = [m for m in traffic if m.subject.startswith("fw.")]
    assert {m.subject.split(".")[1] for m in ours} >= {"prompt", "task", "candidate", "outcome"}
    assert max(len(m.data) for m in ours) < 64 * 1024
    assert not any(LARGE[1000:1100].encode() in m.data for m in ours)


async def go_on(client: Client, first: Any) -> None:
    """Ask one model something, and then something after it."""
    async with aiohttp.ClientSession(client.url) as http:
        async with http.post(
            "/v1/responses", **as_json({"model": "a", "input": first})
        ) as response:
            before = await response.json()
        then = {"model": "a", "input": "And now?", "previous_response_id": before["id"]}
        async with http.post("/v1/responses", json=then) as response:
            assert (response.status, (await response.json())["status"]) == (200, "completed")


async def test_the_conversation_after_a_response_still_shows_it(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    large = picture(40_000)
    model_server.set_script(Script(recording=True))
    content = [
        {"type": "input_text", "text": "Which?"},
        {"type": "input_image", "image_url": large},
    ]
    async with running(settings, *SERVICES) as client:
        await go_on(client, [{"role": "user", "content": content}])

    messages = model_server.stats.recorded[-1].request["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert [p["image_url"]["url"] for p in messages[0]["content"] if p["type"] == "image_url"] == [
        large
    ]


@pytest.mark.slow
async def test_each_member_reads_a_long_text_and_the_judge_its_ends(
    settings: Settings, running: Running, model_server: ModelServer, traffic: list[Msg]
) -> None:
    model_server.set_script(Script(recording=True))
    body = {"model": "openrouter/fusion", "messages": [{"role": "user", "content": LONG}]}
    async with (
        running(settings, *SERVICES) as client,
        aiohttp.ClientSession(client.url) as http,
        http.post("/v1/chat/completions", **as_json(body)) as response,
    ):
        reply = await response.json()

    assert (response.status, reply["fusion"]["outcome_status"]) == (200, "selected")
    assert reply["fusion"]["warnings"] == [
        (
            f"judges read the first and the last {END_CHARS} characters of each long text; "
            "members read the whole"
        )
    ]
    said = {r.model: r.request["messages"][-1]["content"] for r in model_server.stats.recorded}
    assert said.keys() == {*PANEL, "j"}
    assert all(said[name] == LONG for name in PANEL)
    left_out = len(LONG) - 2 * END_CHARS
    assert f"[{left_out} characters are left out here]" in said["j"]
    assert LONG[:END_CHARS] in said["j"]
    ours = [m for m in traffic if m.subject.startswith("fw.")]
    assert max(len(m.data) for m in ours) < 64 * 1024


async def test_the_conversation_after_a_response_has_its_long_text_again(
    settings: Settings, running: Running, model_server: ModelServer
) -> None:
    model_server.set_script(Script(recording=True))
    async with running(settings, *SERVICES) as client:
        await go_on(client, LONG)

    messages = model_server.stats.recorded[-1].request["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert messages[0]["content"] == LONG


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"residency": "edge-only"}, "the limit of an edge-only prompt is"),
        ({"messages": [{"role": "user", "content": LONG * 3}]}, "raise limits.text_bytes"),
        (
            {"messages": [{"role": "user", "content": "x" * 8000}] * 40},
            "not in long texts or images is",
        ),
    ],
    ids=["edge-only", "too long", "many short ones"],
)
async def test_a_text_that_no_message_can_hold_is_refused(
    settings: Settings, running: Running, more: dict[str, Any], named: str
) -> None:
    body = {"messages": [{"role": "user", "content": LONG}], **more}
    async with (
        running(settings, "ingest") as client,
        aiohttp.ClientSession(client.url) as http,
        http.post("/v1/fusions", **as_json(body)) as response,
    ):
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (413, "prompt_too_large")
    assert named in error["message"]


async def test_nothing_of_an_edge_only_prompt_goes_to_where_hosted_models_read(
    settings: Settings, running: Running, traffic: list[Msg]
) -> None:
    body = {"messages": asked(picture(40_000))["messages"], "residency": "edge-only"}
    async with running(settings, *SERVICES) as client:
        shown = await client.submit(body, wait_s=250)

    assert (shown["status"], shown["content"]) == ("failed", None)
    assert not [m.subject for m in traffic if m.subject.startswith("$O.")]


async def test_images_that_were_erased_are_shown_to_nobody(
    settings: Settings, running: Running
) -> None:
    body = {"messages": asked(picture(40_000))["messages"]}
    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as http:
        prompt = await client.submit(body)
        path = f"/v1/fusions/{prompt['id']}/images"
        async with http.delete(path) as response:
            assert (response.status, await response.json()) == (
                200,
                {"id": prompt["id"], "erased": 1},
            )
        async with http.delete(path) as response:
            assert await response.json() == {"id": prompt["id"], "erased": 0}
        async with http.delete("/v1/fusions/01JZZZZZZZZZZZZZZZZZZZZZZZ/images") as response:
            assert response.status == 404
    async with running(settings, *SERVICES) as client:
        shown = await client.get(prompt["id"], wait_s=250)

    assert shown["status"] == "failed"
    assert {a["error_code"] for a in shown["answers"]} == {"bad_request"}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (asked(picture(110_000), picture(110_000, seed=2)), "the body has more than"),
        (
            asked(picture(51_000), picture(50_001, seed=2)),
            "its images have 101001 bytes, the limit is 100000",
        ),
        (asked(messages=[{"role": "user", "content": "x" * 60_000}]), "limits.text_bytes"),
    ],
    ids=["images by far", "images", "text"],
)
async def test_what_is_too_large_is_refused(
    make_settings: MakeSettings,
    nats: NatsServer,
    running: Running,
    body: dict[str, Any],
    named: str,
) -> None:
    limits = {"drain_s": 2, "prompt_bytes": 20_000, "image_bytes": 100_000, "text_bytes": 10_000}
    settings = make_settings(nats=Nats(url=nats.url), limits=limits)
    async with (
        running(settings, "ingest") as client,
        aiohttp.ClientSession(client.url) as http,
        http.post("/v1/chat/completions", json=body) as response,
    ):
        error = (await response.json())["error"]

    assert response.status == 413
    assert error["code"] == "prompt_too_large"
    assert named in error["message"]


async def test_a_body_of_unknown_length_has_the_limit_of_one_without_images(
    make_settings: MakeSettings, nats: NatsServer, running: Running
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        yield b"x" * 60_000

    settings = make_settings(nats=Nats(url=nats.url), limits={"drain_s": 2, "prompt_bytes": 20_000})
    kind = {"content-type": "application/json"}
    async with (
        running(settings, "ingest") as client,
        aiohttp.ClientSession(client.url) as http,
        http.post("/v1/fusions", data=pieces(), headers=kind) as response,
    ):
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (413, "prompt_too_large")


async def test_what_a_lost_broker_held_is_published_again(
    settings: Settings, running: Running, nats: NatsServer, model_server: ModelServer
) -> None:
    body = {"messages": asked(picture(40_000))["messages"]}
    async with running(settings, "ingest") as client:
        prompt = await client.submit(body)
        bus = Bus("ops", settings.nats, drain_s=2)
        await bus.connect(timeout_s=120)
        published = bus.blobs(BLOB_STORE)
        (name,) = references.images.put_aside("default", (showing(picture(40_000)),))[1]
        await eventually(lambda: published.has(name))
        await bus.js.delete_stream("FW_PROMPT")
        await bus.js.delete_object_store(BLOB_STORE)
        await bus.stop()
    async with running(settings, *SERVICES) as client:
        shown = await client.get(prompt["id"], wait_s=250)

    assert (shown["status"], shown["is_degraded"]) == ("selected", False)


# -- what is kept, and for how long -------------------------------------------------------------


class Kept:
    """An image store on a real broker and database, with a clock of the test's."""

    def __init__(self, bus: Bus, store: Store) -> None:
        self.clock = FakeClock()
        self.images = Images(store)
        self.store = LargeParts(bus, self.images, Limits(image_days=2), self.clock)
        self.submissions = Submissions(store)

    async def submit(self, *urls: str, **fields: Any) -> Prompt:
        prompt = await self.store.put_aside(make_prompt(messages=(showing(*urls),), **fields))
        await self.submissions.add([prompt], [None])
        await self.store.publish(prompt)
        return prompt


@pytest.fixture
def kept(bus: Bus, store: Store) -> Kept:
    return Kept(bus, store)


async def end(store: Store, prompt: Prompt) -> None:
    async with store.write() as connection:
        await connection.exec_driver_sql(
            f"UPDATE fusions SET is_done = true WHERE fusion_id = '{prompt.fusion_id}'"
        )


async def test_the_broker_has_it_as_long_as_a_fusion_waits_for_it(
    kept: Kept, store: Store, blobs: Blobs
) -> None:
    prompt = await kept.submit(LARGE)
    (name,) = references.images.names(prompt.messages)
    assert await read(blobs, name) == data_of(LARGE)

    kept.clock.advance(5 * 24 * 3600)
    await kept.store.tidy()
    assert await blobs.has(name)
    assert await kept.images.get(prompt.tenant, name)

    await end(store, prompt)
    kept.clock.advance(60)
    await kept.store.tidy()
    assert not await blobs.has(name)
    assert await kept.images.get(prompt.tenant, name) is None


async def test_one_that_is_shown_again_is_published_again(
    kept: Kept, store: Store, blobs: Blobs
) -> None:
    first = await kept.submit(LARGE, custom_id="1")
    (name,) = references.images.names(first.messages)
    await end(store, first)
    kept.clock.advance(IDLE.total_seconds() + 1)
    await kept.store.tidy()
    assert not await blobs.has(name)
    assert await kept.images.get(first.tenant, name), "it may be shown again"

    await kept.submit(LARGE, custom_id="2")
    assert await read(blobs, name) == data_of(LARGE)


async def test_one_that_was_just_shown_stays_for_the_prompt_that_comes(
    kept: Kept, store: Store, blobs: Blobs
) -> None:
    first = await kept.submit(LARGE)
    (name,) = references.images.names(first.messages)
    await end(store, first)
    kept.clock.advance(IDLE.total_seconds() - 1)
    await kept.store.tidy()

    assert await blobs.has(name)


async def test_one_that_is_published_by_several_at_once_is_put_once(
    kept: Kept, bus: Bus, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[str] = []

    class Counted(Blobs):
        async def put(self, name: str, data: bytes) -> None:
            puts.append(name)
            await super().put(name, data)

    monkeypatch.setattr(bus, "blobs", lambda store: Counted(bus.js, store))
    prompt = await kept.store.put_aside(make_prompt(messages=(showing(LARGE),)))
    await asyncio.gather(*(kept.store.publish(prompt) for _ in range(5)))

    assert puts == list(references.images.names(prompt.messages))
    assert await read(blobs, puts[0]) == data_of(LARGE)


async def test_each_tenant_has_its_own(kept: Kept) -> None:
    prompt = await kept.submit(LARGE, tenant="acme")
    (name,) = references.images.names(prompt.messages)

    assert await kept.images.get("umbrella", name) is None
    assert await kept.images.remove("umbrella", [name]) == 0
    with pytest.raises(RefusedError, match="no longer kept"):
        await kept.store.put_back("umbrella", prompt.messages)
    assert await kept.store.put_back("acme", prompt.messages) == (showing(LARGE),)
