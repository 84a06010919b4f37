"""For tests: the events of a history that are read from a running stack and its fake models."""

import asyncio
import contextlib
import hashlib
import json
import re
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import aiohttp
from nats.js.api import ConsumerInfo
from sqlalchemy import text

from fusewire.bus import Bus
from fusewire.contracts import Candidate, Outcome
from fusewire.settings import Nats
from fusewire.store.engine import Store
from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.history import (
    Event,
    Fate,
    History,
    ModelCall,
    OutcomeCount,
    OutcomeView,
    QueueCount,
    StoredCandidate,
    StoredVerdict,
)
from fusewire.testing.model_script import STATUS_FAULTS
from fusewire.topology import CARRIERS

POLL_S = 0.25
_UNBILLED = frozenset({"close", "error_in_200", *STATUS_FAULTS})


class Api(Protocol):
    """What is needed of a client of the API."""

    async def get_many(self, fusion_ids: Sequence[str]) -> Sequence[Mapping[str, Any]]: ...


def digest(fusion: Mapping[str, Any]) -> str:
    """Of all of a fusion that must not change once it has ended."""
    parts = [fusion.get(key) for key in ("id", "status", "content", "winner", "finished_at")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class Watch:
    """Asks for the fusions of one client until all have ended, and notes when it saw that."""

    def __init__(self, api: Api, history: History) -> None:
        self._api = api
        self._history = history
        self._open: set[str] = set()
        self.final: dict[str, Mapping[str, Any]] = {}
        """Final states, by id."""

    def add(self, fusion_id: str) -> None:
        """Watch one more."""
        self._open.add(fusion_id)

    @property
    def open_count(self) -> int:
        """How many have not ended."""
        return len(self._open)

    async def run(self, all_are_added: asyncio.Event) -> None:
        """Watch until all have been added and have ended."""
        while self._open or not all_are_added.is_set():
            await asyncio.sleep(POLL_S)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                await self._look()

    async def look_again(self) -> None:
        """Note once more what has ended."""
        for fusion in await self._api.get_many(list(self.final)):
            self._note(fusion)

    async def _look(self) -> None:
        for fusion in await self._api.get_many(list(self._open)):
            if fusion["status"] != "running":
                self._open.discard(fusion["id"])
                self.final[fusion["id"]] = fusion
                self._note(fusion)

    def _note(self, fusion: Mapping[str, Any]) -> None:
        ended_at = datetime.fromisoformat(fusion["finished_at"]).timestamp()
        self._history.add(
            OutcomeView(time.time(), fusion["id"], fusion["status"], digest(fusion), ended_at)
        )


def control(port: int, what: str, body: bytes | None = None) -> bytes:
    """Ask a fake model server, or tell it."""
    address = f"http://127.0.0.1:{port}/_control/{what}"
    with urllib.request.urlopen(address, data=body, timeout=PATIENCE_S) as reply:
        content: bytes = reply.read()
    return content


def model_calls(recorded: Iterable[Mapping[str, Any]]) -> list[ModelCall]:
    """The calls that a fake model server has recorded; a task's id is its idempotency key."""
    return [
        ModelCall(call["at"], call["key"], call["model"], _fate(call["fault"]), call["fault"])
        for call in recorded
    ]


def _fate(fault: str) -> Fate:
    if not fault:
        return "answered"
    return "refused" if fault in _UNBILLED or fault == "refused" else "broken"


async def stored_events(store: Store) -> list[Event]:
    """What the database holds: how many outcomes of each fusion, verdicts and candidates."""
    at, events = time.time(), list[Event]()
    async with store.read() as connection:
        counts = await connection.execute(
            text("SELECT fusion_id, count(*) FROM outcomes GROUP BY fusion_id")
        )
        events += [OutcomeCount(at, fusion, count) for fusion, count in counts]
        candidates = [
            Candidate.decode(body)
            for (body,) in await connection.execute(text("SELECT body FROM candidates"))
        ]
        outcomes = [
            Outcome.decode(body)
            for (body,) in await connection.execute(text("SELECT body FROM outcomes"))
        ]
    events += [
        StoredCandidate(at, c.fusion_id, c.task_id, c.attempts, c.maybe_paid_twice)
        for c in candidates
    ]
    for outcome in outcomes:
        members = tuple(answer.member for answer in outcome.answers if answer.status == "ok")
        if outcome.winner:
            events.append(StoredVerdict(at, outcome.fusion_id, outcome.winner, members))
    return events


async def queue_counts(nats: Nats) -> list[Event]:
    """What the streams of work hold."""
    bus = Bus("ops", nats)
    await bus.connect(timeout_s=PATIENCE_S)
    try:
        return [
            QueueCount(time.time(), stream, (await bus.js.stream_info(stream)).state.messages)
            for stream in CARRIERS
        ]
    finally:
        await bus.stop()


async def queue_details(nats: Nats) -> list[str]:
    """What the streams of work hold, a line for each subject and consumer."""
    bus = Bus("ops", nats)
    await bus.connect(timeout_s=PATIENCE_S)
    lines = []
    try:
        for stream in CARRIERS:
            info = await bus.js.stream_info(stream, subjects_filter=">")
            state = info.state
            lines += [f"{stream}: {subject}" for subject in state.subjects or {}]
            if state.messages:
                lines.append(f"{stream}: sequences {state.first_seq} to {state.last_seq}")
                consumers = await bus.js.consumers_info(stream)
                lines += [f"{stream}: {_progress(consumer)}" for consumer in consumers]
    finally:
        await bus.stop()
    return lines


def _progress(consumer: ConsumerInfo) -> str:
    sequences = [
        place.stream_seq if place else None for place in (consumer.delivered, consumer.ack_floor)
    ]
    return (
        f"{consumer.name} pending {consumer.num_pending}, open {consumer.num_ack_pending}, "
        f"delivered to {sequences[0]}, acknowledged to {sequences[1]}"
    )


def occurrences(canary: str, places: Mapping[str, bytes]) -> dict[str, int]:
    """How often a text occurs in the bytes of each place."""
    pattern = re.compile(re.escape(canary.encode()))
    return {place: len(pattern.findall(data)) for place, data in places.items()}
