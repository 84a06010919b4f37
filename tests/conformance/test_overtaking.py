"""A prompt of one tenant overtakes the lines of another's batch at each stage, on the real parts.

Each service is started only once everything waits before it, and takes one thing at a time: so the
order in which it goes on is the order in which it chose.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest
from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.settings import Nats, Settings
from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_dispatcher import service as dispatcher_service
from fusewire_judge import service as judge_service

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]

WINDOW, LINES = 40, 100


@pytest.fixture
def settings(
    make_settings: MakeSettings, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setattr(dispatcher_service, "CONCURRENCY", 1)
    monkeypatch.setattr(judge_service, "BATCH", 1)
    base = make_settings(
        nats=Nats(url=nats.url),
        limits={"batch_window": WINDOW, "drain_s": 2, "call_drain_s": 2},
        pool={"members": ["a"], "judge": None},
    )
    one_at_a_time = base.models["a"].model_copy(update={"max_concurrency": 1})
    return base.model_copy(update={"models": {**base.models, "a": one_at_a_time}})


def fusions(traffic: list[Msg], subject: str, token: int) -> list[str]:
    """The fusions of the messages on a subject, in their order, each once."""
    found = [msg.subject.split(".")[token] for msg in traffic if msg.subject.startswith(subject)]
    return list(dict.fromkeys(found))


async def begin_batch(web: aiohttp.ClientSession) -> str:
    form = aiohttp.FormData({"purpose": "batch"})
    form.add_field("file", b'{"prompt":"Why?"}\n' * LINES, filename="in.jsonl")
    async with web.post("/v1/files", data=form) as response:
        file = await response.json()
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions"}
    async with web.post("/v1/batches", json=wanted) as response:
        return str((await response.json())["id"])


async def test_a_prompt_overtakes_queued_lines_at_each_stage(
    settings: Settings, running: Running, ops: Bus, traffic: list[Msg]
) -> None:
    async def wait_until_stored(stream: str, count: int) -> None:
        async def is_stored() -> bool:
            return (await ops.js.stream_info(stream)).state.messages >= count

        await eventually(is_stored)

    async with running(settings, "ingest") as client, aiohttp.ClientSession(client.url) as web:
        batch = await begin_batch(web)
        await wait_until_stored("FW_PROMPT", WINDOW)
        async with web.post("/v1/fusions", json={"prompt": "Why not?"}) as response:
            urgent = (await response.json())["id"]
        # Ingest: it does not wait for the lines that are held.
        await wait_until_stored("FW_PROMPT", WINDOW + 1)
        async with web.get(f"/v1/batches/{batch}") as response:
            standing: dict[str, Any] = (await response.json())["x_fusewire"]
        assert (standing["in_flight"], standing["held"]) == (WINDOW, LINES - WINDOW)

        async with running(settings, "dispatcher"):
            await wait_until_stored("FW_TASK_REMOTE", WINDOW + 1)
        planned = fusions(traffic, "fw.plan.", 2)
        assert (planned[0], len(planned)) == (urgent, WINDOW + 1)

        async with running(settings, "worker-remote"):
            await wait_until_stored("FW_CANDIDATE", 2 * (WINDOW + 1))
        answered = fusions(traffic, "fw.candidate.", 2)
        assert (answered[0], len(answered)) == (urgent, WINDOW + 1)

        async with running(settings, "judge"):
            await eventually(lambda: len(fusions(traffic, "fw.outcome.", 3)) >= WINDOW)
        # A few lines are decided before its messages, the last of their stream, have arrived.
        decided = fusions(traffic, "fw.outcome.", 3)
        assert decided.index(urgent) < WINDOW // 2
