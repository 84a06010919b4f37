"""A judge without a broker, on a real database, and what it is given."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from nats.aio.msg import Msg
from sqlalchemy import text

from fusewire.bus import Bus, Delivery
from fusewire.contracts import Candidate, Outcome, Plan, Prompt, Round
from fusewire.errors import Transient
from fusewire.store.engine import Store
from fusewire.store.queries import standings
from fusewire.testing.factories import (
    JUDGE,
    OPEN_ANSWERS,
    FakeClock,
    make_candidate,
    make_plan,
)
from fusewire.topology import candidate_subject, plan_subject
from fusewire_ingest.repository.submissions import Submissions
from fusewire_judge.handlers import Handlers

Message = Plan | Candidate
REASON = "It is right about the city."
CLOSED = {"a": "4", "b": "5", "c": "4"}


@dataclass
class Published:
    """A bus that keeps what is published."""

    messages: list[Round | Outcome] = field(default_factory=list)
    timers: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    is_down: bool = False
    last_store_id: str = "s1"

    async def publish(
        self,
        subject: str,
        message: Round | Outcome | bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        if self.is_down:
            raise Transient("the server does not answer")
        if isinstance(message, bytes):
            assert headers is not None
            assert msg_id is None, "setting a timer again must not be swallowed as a duplicate"
            self.timers.append((subject, headers))
        else:
            assert msg_id is not None
            self.messages.append(message)
        return True

    def of(self, prompt: Prompt) -> list[str]:
        """What was published for one fusion, in order: `round 1`, `outcome`."""
        mine = [m for m in self.messages if m.fusion_id == prompt.fusion_id]
        return [f"round {m.round}" if isinstance(m, Round) else "outcome" for m in mine]


class Desk:
    """A judge without a broker."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.bus = Published()
        self.arrived: set[str] = set()
        """Fusions of which something waits in the stream."""
        self.clock = FakeClock()
        self.restart()
        self._sequence = itertools.count(1)

    async def submit(self, *batch: Prompt) -> None:
        await Submissions(self.store).add(batch, [None] * len(batch))

    def delivery(
        self, message: Message, deliveries: int = 1, subject: str | None = None
    ) -> Delivery:
        if subject is None:
            subject = (
                plan_subject(message.fusion_id)
                if isinstance(message, Plan)
                else candidate_subject(message.fusion_id, message.round, message.call)
            )
        return Delivery(
            message.encode(),
            subject,
            {},
            deliveries,
            "FW_CANDIDATE",
            next(self._sequence),
            cast("Msg", None),
        )

    async def take(self, *messages: Message, deliveries: int = 1) -> None:
        """Handle messages as one batch."""
        await self.handlers.on_batch([self.delivery(m, deliveries) for m in messages])

    async def fire(self, *batch: Prompt, deliveries: int = 1) -> None:
        """Let timers arrive."""
        due = [
            Delivery(
                b"{}",
                f"fw.due.{p.fusion_id}",
                {},
                deliveries,
                "FW_TIMER",
                next(self._sequence),
                cast("Msg", None),
            )
            for p in batch
        ]
        await self.handlers.on_due(due)

    async def _has_pending(self, fusion_id: str) -> bool:
        return fusion_id in self.arrived

    def restart(self) -> None:
        """Another judge, which knows what is stored."""
        self.handlers = Handlers(
            cast("Bus", self.bus), self.store, self.clock, has_pending=self._has_pending
        )

    async def outcome(self, prompt: Prompt) -> Outcome | None:
        (standing,) = await standings(self.store, prompt.tenant, [prompt.fusion_id])
        return standing.outcome

    async def rows(self, query: str) -> list[dict[str, Any]]:
        async with self.store.read() as connection:
            return [dict(row) for row in (await connection.execute(text(query))).mappings()]


def answers(
    prompt: Prompt, texts: Mapping[str, str] = OPEN_ANSWERS, **overrides: Any
) -> list[Candidate]:
    return [make_candidate(text, name, prompt=prompt, **overrides) for name, text in texts.items()]


def everything(prompt: Prompt) -> list[Message]:
    """A plan and closed answers."""
    return [make_plan(prompt), *answers(prompt, CLOSED)]


def verdicts(desk: Desk, prompt: Prompt, member: str = "a", **overrides: Any) -> list[Candidate]:
    """Both orders name one member."""
    asked = next(
        m for m in desk.bus.messages if isinstance(m, Round) and m.fusion_id == prompt.fusion_id
    )
    found = []
    for call in asked.calls:
        shown, said = call.messages[-1].content, OPEN_ANSWERS[member]
        label = shown[: shown.index(said)].rstrip("]\n")[-2:]
        content = json.dumps({"reason": REASON, "winner": label})
        given = {
            "round": asked.round,
            "member": None,
            "model": JUDGE.model,
            "cost_usd": 0.01,
            **overrides,
        }
        found.append(make_candidate(content, call.name, prompt=prompt, **given))
    return found
