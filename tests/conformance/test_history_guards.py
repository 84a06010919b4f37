"""The checker of histories on a running stack, with its guards and without them."""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from fusewire.contracts import CallFailure, Task
from fusewire.settings import Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.echo_worker import EchoWorker
from fusewire.testing.history import Acceptance, LeakCheck, OutcomeView
from fusewire.testing.invariants import check
from fusewire.testing.model_script import Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.stack_events import digest, model_calls, occurrences, stored_events
from fusewire.worker import Worker
from fusewire_cli.client import Client
from fusewire_dispatcher.planning import plan, tasks
from fusewire_worker_remote.generate import RemoteGenerate

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
CANARY = "zebracanary78"
SERVICES = ("judge", "worker-remote", "dispatcher", "ingest")


def let_edge_only_go_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out the dispatcher's guards and both of the worker's."""
    find_model, refusal = RemoteGenerate._find_model, Worker._refusal

    def find(self: RemoteGenerate, task: Task) -> Any:
        return find_model(self, task.model_copy(update={"residency": "any"}))

    def refuse(self: Worker, task: Task) -> CallFailure | None:
        return refusal(self, task.model_copy(update={"residency": "any"}))

    for module in (plan, tasks):
        monkeypatch.setattr(module, "permits", lambda _residency, _tier: True)
    monkeypatch.setattr(RemoteGenerate, "_find_model", find)
    monkeypatch.setattr(Worker, "_refusal", refuse)


@pytest.mark.parametrize("is_guarded", [True, False])
async def test_an_edge_only_prompt_leaks_where_its_guards_are_taken_out_and_the_checker_says_so(
    make_settings: MakeSettings,
    nats: NatsServer,
    running: Running,
    model_server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    is_guarded: bool,
) -> None:
    if not is_guarded:
        let_edge_only_go_anywhere(monkeypatch)
    model_server.set_script(Script(recording=True))
    settings = make_settings(
        nats=Nats(url=nats.url),
        pool={"members": ["a", "tiny"], "judge": None},
        models={"tiny": {"kind": "edge", "path": "/nowhere"}},
    )
    services = (*SERVICES[:2], EchoWorker(settings), *SERVICES[2:])
    async with running(settings, *services) as client:
        body = {"prompt": f"Keep the {CANARY}!", "residency": "edge-only", "custom_id": "q"}
        shown = await client.submit(body, wait_s=250)
        store = Store(settings.database)
        stored = await stored_events(store)
        await store.close()
    recorded = [vars(request) for request in model_server.stats.recorded]
    (hits,) = occurrences(CANARY, {"models": bytes(model_server.received_bytes)}).values()
    history = [
        Acceptance(time.time(), shown["id"], "q", residency="edge-only"),
        OutcomeView(time.time(), shown["id"], shown["status"], digest(shown)),
        *stored,
        *model_calls(recorded),
        LeakCheck(time.time(), "models", len(model_server.received_bytes), hits),
    ]
    violations = {fault.invariant for fault in check(history)}
    assert violations == (set() if is_guarded else {"I5"})
