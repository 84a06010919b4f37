"""A hosted call with large images and texts, in each protocol, and without them."""

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from fusewire import references
from fusewire.blobs import CHUNK, Blob, Blobs
from fusewire.bus import Bus
from fusewire.contracts import Image, Message, Task
from fusewire.settings import RemoteModel
from fusewire.testing.factories import make_task
from fusewire.testing.large_parts import LONG, damage, picture, showing
from fusewire.testing.memory_kv import MemoryKeyValue
from fusewire.testing.model_script import Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import BLOB_STORE
from fusewire_worker_remote.generate import RemoteGenerate
from fusewire_worker_remote.ledger_kv import KvLedger

LARGE = picture(5_000_000)


async def no_wait(_seconds: float) -> None:
    """Attempts follow at once."""


@contextlib.asynccontextmanager
async def calling(
    server: ModelServer, provider: str, blobs: Blobs | None
) -> AsyncIterator[RemoteGenerate]:
    settings = {
        "kind": "remote",
        "provider": provider,
        "base_url": server.base_url_of(provider),
        "max_attempts": 2,
    }
    generate = RemoteGenerate(
        {"a": RemoteModel.model_validate({**settings, "model": "a"})},
        KvLedger(MemoryKeyValue()),
        clock=lambda: datetime.now(UTC),
        sleep=no_wait,
        rng=lambda: 0.0,
        worker_id="test",
        images=blobs,
    )
    yield generate
    await generate.aclose()


def a_task(*messages: Message) -> Task:
    until = datetime.now(UTC) + timedelta(seconds=250)
    return make_task(messages=messages, model="a", deadline_at=until)


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini", "mistral"])
async def test_each_protocol_sends_images_as_they_were(
    model_server: ModelServer, blobs: Blobs, provider: str
) -> None:
    model_server.set_script(Script(recording=True))
    urls = [picture(40_000), picture(3 * CHUNK, seed=2), picture(40_000), picture(100, seed=3)]
    slim, apart = references.images.put_aside("acme", [showing(*urls), showing(urls[1])])
    for name, data in apart.items():
        await blobs.put(name, data.encode())

    async with calling(model_server, provider, blobs) as generate:
        candidate = await generate.generate(a_task(*slim))

    assert candidate.ok, candidate.error
    (recorded,) = model_server.stats.recorded
    parts = [
        part
        for m in recorded.request["messages"]
        for part in m["content"]
        if part["type"] == "image_url"
    ]
    assert [part["image_url"]["url"] for part in parts] == [*urls, urls[1]]


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini", "mistral"])
async def test_each_protocol_sends_texts_as_they_were(
    model_server: ModelServer, blobs: Blobs, provider: str
) -> None:
    model_server.set_script(Script(recording=True))
    url = picture(100)
    image = Image(url=url, at=len(LONG) // 2)
    whole = (
        Message(role="system", content=LONG[::-1]),
        Message(role="user", content=LONG, images=(image,)),
    )
    slim, apart = references.texts.put_aside("acme", whole)
    assert len(apart) == 3
    for name, data in apart.items():
        await blobs.put(name, data.encode())

    async with calling(model_server, provider, blobs) as generate:
        candidate = await generate.generate(a_task(*slim))

    assert candidate.ok, candidate.error
    system, user = model_server.stats.recorded[0].request["messages"]
    assert system["content"] == LONG[::-1]
    first, shown, second = user["content"]
    assert first["text"] + second["text"] == LONG
    assert len(first["text"]) == image.at
    assert shown["image_url"]["url"] == url


async def test_text_that_names_an_image_stays_text(model_server: ModelServer, blobs: Blobs) -> None:
    model_server.set_script(Script(recording=True))
    url = picture(40_000)
    ((shown,), apart) = references.images.put_aside("acme", [showing(url)])
    ((name, data),) = apart.items()
    await blobs.put(name, data.encode())
    text = f"{name} and {shown.images[0].url}"

    async with calling(model_server, "openai", blobs) as generate:
        await generate.generate(a_task(shown.model_copy(update={"content": text})))

    (image, said) = model_server.stats.recorded[0].request["messages"][0]["content"]
    assert (image["image_url"]["url"], said["text"]) == (url, text)


async def test_without_a_store_a_reference_is_not_sent(model_server: ModelServer) -> None:
    slim, _ = references.images.put_aside("acme", [showing(LARGE)])

    async with calling(model_server, "openai", None) as generate:
        candidate = await generate.generate(a_task(*slim))

    assert candidate.error is not None
    assert (candidate.error.code, model_server.stats.requests) == ("bad_request", 0)


@pytest.mark.parametrize("fault", ["missing", "damaged"])
async def test_a_call_without_its_image_fails_before_anybody_could_be_paid(
    model_server: ModelServer, blobs: Blobs, bus: Bus, fault: str
) -> None:
    slim, apart = references.images.put_aside("acme", [showing(picture(3 * CHUNK))])
    ((name, data),) = apart.items()
    await blobs.put(name, data.encode())
    if fault == "missing":
        await blobs.delete(name)
    else:
        await damage(bus, 2, b"x" * CHUNK)

    async with calling(model_server, "openai", blobs) as generate:
        candidate = await generate.generate(a_task(*slim))

    assert candidate.error is not None
    assert (candidate.error.code, candidate.maybe_paid_twice) == ("bad_request", False)
    assert "send the prompt again" in candidate.error.message
    assert (candidate.attempts, candidate.cost_usd, model_server.stats.requests) == (1, 0.0, 0)


async def test_one_that_is_put_again_while_it_is_sent_is_sent_again(
    model_server: ModelServer, blobs: Blobs, bus: Bus
) -> None:
    model_server.set_script(Script(recording=True))
    url = picture(3 * CHUNK)
    slim, apart = references.images.put_aside("acme", [showing(url)])
    ((name, data),) = apart.items()

    class PutAgain(Blobs):
        puts = 0

        async def read(self, blob: Blob) -> AsyncIterator[bytes]:
            async for piece in super().read(blob):
                yield piece
                if not self.puts:
                    self.puts += 1
                    await self.put(name, data.encode())

    await blobs.put(name, data.encode())
    put_again = PutAgain(bus.js, BLOB_STORE)
    async with calling(model_server, "openai", put_again) as generate:
        candidate = await generate.generate(a_task(*slim))

    assert (candidate.ok, candidate.attempts, candidate.maybe_paid_twice) == (True, 2, False)
    assert model_server.stats.requests == 1
    assert (
        model_server.stats.recorded[0].request["messages"][0]["content"][0]["image_url"]["url"]
        == url
    )


async def test_a_broker_that_does_not_answer_is_asked_again(
    model_server: ModelServer, bus: Bus, nats: NatsServer
) -> None:
    slim, _ = references.images.put_aside("acme", [showing(LARGE)])
    silent = Blobs(bus.client.jetstream(timeout=0.1), BLOB_STORE)
    await nats.stop()

    async with calling(model_server, "openai", silent) as generate:
        candidate = await generate.generate(a_task(*slim))

    assert candidate.error is not None
    assert (candidate.error.code, candidate.attempts, model_server.stats.requests) == (
        "connect_error",
        2,
        0,
    )
