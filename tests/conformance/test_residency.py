"""No content of an edge-only prompt reaches anything remote, as streams, subjects and logs show."""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import structlog
from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.contracts import Candidate, Task
from fusewire.settings import Nats, Settings
from fusewire.testing.canary import find
from fusewire.testing.echo_worker import EchoWorker
from fusewire.testing.eventually import eventually
from fusewire.testing.model_script import Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_dispatcher.planning import plan, tasks

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
SECRET = "s3cr3t-0f-the-house"
EDGE = {name: {"kind": "edge", "path": "/nowhere"} for name in ("tiny", "small", "big")}
SERVICES = ("judge", "worker-remote", "dispatcher", "ingest")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """All that we log, even debug, and others' warnings, as `telemetry.configure` lets through."""
    lines: list[str] = []

    def keep(
        _logger: Any, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        lines.append(repr(event))
        raise structlog.DropEvent

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            keep,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
    )
    caplog.set_level(logging.WARNING)
    return lines


async def stored(settings: Settings, stream: str) -> tuple[int, list[Msg]]:
    """How many messages a stream has ever stored, and those that it still holds."""
    bus = Bus("reader", settings.nats, drain_s=2)
    await bus.connect(timeout_s=120)
    state = (await bus.js.stream_info(stream)).state
    held: list[Any] = []
    if state.messages:
        held = [
            await bus.js.get_msg(stream, seq, direct=False)
            for seq in range(state.first_seq, state.last_seq + 1)
        ]
    await bus.stop()
    return state.last_seq, held


POOLS: list[tuple[str, dict[str, Any], dict[str, Any], str, list[str]]] = [
    (
        "one edge member among hosted ones",
        {"members": ["a", "tiny", "b"], "judge": "j"},
        {"residency": "edge-only"},
        "single",
        ["excluded:a:residency", "excluded:b:residency", "excluded:judge:residency"],
    ),
    (
        "an edge judge, in a debate",
        {"members": ["a", "tiny", "small"], "judge": "big", "mode": "debate"},
        {"residency": "edge-only"},
        "selected",
        ["excluded:a:residency"],
    ),
    (
        "an edge judge, in a merge",
        {"members": ["tiny", "small", "a"], "judge": "big", "mode": "merge"},
        {"residency": "edge-only"},
        "selected",
        ["excluded:a:residency"],
    ),
    (
        "the pool demands it, whatever the prompt says",
        {"members": ["a", "tiny", "small"], "judge": "j", "residency": "edge-only"},
        {"residency": "any"},
        "voted",
        ["excluded:a:residency", "excluded:judge:residency"],
    ),
]


@pytest.mark.parametrize(
    ("pool", "fields", "status", "reasons"),
    [row[1:] for row in POOLS],
    ids=[row[0] for row in POOLS],
)
async def test_an_edge_only_prompt_stays_at_the_edge(
    make_settings: MakeSettings,
    nats: NatsServer,
    running: Running,
    model_server: ModelServer,
    traffic: list[Msg],
    told: list[str],
    caplog: pytest.LogCaptureFixture,
    pool: dict[str, Any],
    fields: dict[str, Any],
    status: str,
    reasons: list[str],
) -> None:
    model_server.set_script(Script(recording=True))
    settings = make_settings(nats=Nats(url=nats.url), pool=pool, models=EDGE)
    edge = EchoWorker(settings)
    async with running(settings, *SERVICES[:2], edge, *SERVICES[2:]) as client:
        shown = await client.submit({"prompt": f"Keep {SECRET}!", **fields}, wait_s=250)

    # The outcome is of edge members alone, and says so.
    assert (shown["status"], shown["is_degraded"], shown["degraded_reasons"]) == (
        status,
        True,
        reasons,
    )
    assert {answer["tier"] for answer in shown["answers"]} == {"edge"}
    assert {answer["model"] for answer in shown["answers"]} <= set(EDGE)
    assert shown["judge_model"] in (None, "big")
    assert SECRET in (shown["content"] or "")

    # The guard is the dispatcher's: nothing was ever stored for a remote worker.
    assert await stored(settings, "FW_TASK_REMOTE") == (0, [])
    assert await stored(settings, "FW_DEAD") == (0, [])
    spoken = [Candidate.decode(m.data) for m in traffic if m.subject.startswith("fw.candidate.")]
    assert spoken
    assert {c.tier for c in spoken} == {"edge"}

    # Nothing on the wire was for anyone remote, and the fake server never heard of it.
    assert any(SECRET.encode() in msg.data for msg in traffic)
    assert not [
        msg.subject for msg in traffic if SECRET.encode() in msg.data and "remote" in msg.subject
    ]
    assert model_server.stats.requests == 0
    assert SECRET.encode() not in model_server.received_bytes

    # No line of any log holds it.
    assert any("judge.decided" in line for line in told)
    assert not [line for line in told if SECRET in line]
    assert SECRET not in caplog.text


async def test_the_same_prompt_without_the_mark_goes_everywhere(
    make_settings: MakeSettings,
    nats: NatsServer,
    running: Running,
    model_server: ModelServer,
    traffic: list[Msg],
) -> None:
    """Else the test above would also pass on a pipeline that never asks anyone remote."""
    settings = make_settings(
        nats=Nats(url=nats.url), pool={"members": ["a", "tiny", "b"]}, models=EDGE
    )
    edge = EchoWorker(settings)
    async with running(settings, *SERVICES[:2], edge, *SERVICES[2:]) as client:
        shown = await client.submit({"prompt": f"Keep {SECRET}!"}, wait_s=250)

    assert (shown["status"], shown["is_degraded"]) == ("selected", False)
    assert {answer["tier"] for answer in shown["answers"]} == {"edge", "remote"}
    assert (await stored(settings, "FW_TASK_REMOTE"))[
        0
    ] == 2  # both members; the judge in both orders
    assert [
        msg.subject
        for msg in traffic
        if SECRET.encode() in msg.data and msg.subject.startswith("fw.task.remote")
    ]
    assert model_server.stats.requests == 4


async def test_without_the_dispatcher_s_guard_it_is_found_and_the_worker_s_guard_holds(
    make_settings: MakeSettings,
    nats: NatsServer,
    running: Running,
    model_server: ModelServer,
    traffic: list[Msg],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (plan, tasks):
        monkeypatch.setattr(module, "permits", lambda residency, tier: True)
    model_server.set_script(Script(recording=True))
    settings = make_settings(nats=Nats(url=nats.url))
    async with running(settings, *SERVICES) as client:
        shown = await client.submit(
            {"prompt": f"Keep {SECRET}!", "residency": "edge-only"}, wait_s=250
        )

    places: dict[str, list[bytes]] = {}
    for message in traffic:
        places.setdefault(".".join(message.subject.split(".")[:3]), []).append(message.data)
    assert "fw.task.remote" in {place for place, _ in find(places, [SECRET])}
    assert shown["status"] == "failed"
    assert model_server.stats.connections == 0


async def test_no_log_holds_what_a_failing_service_had_in_hand(
    make_settings: MakeSettings,
    nats: NatsServer,
    running: Running,
    told: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings(
        nats=Nats(url=nats.url), pool={"members": ["tiny", "small"], "judge": None}, models=EDGE
    )
    edge = EchoWorker(settings)

    async def fail(task: Task, tell: object = None) -> Candidate:
        raise RuntimeError(f"could not handle {task.messages}")

    monkeypatch.setattr(edge.engine, "generate", fail)
    async with running(settings, "judge", edge, "dispatcher", "ingest") as client:
        running_ = await client.submit(
            {"prompt": f"Keep {SECRET}!", "residency": "edge-only", "deadline_s": 30}
        )
        await eventually(lambda: [line for line in told if "bus.message_retried" in line])
        assert running_["status"] == "running"

    assert any("RuntimeError at fail" in line for line in told)
    assert not [line for line in told if SECRET in line]
    assert SECRET not in caplog.text
