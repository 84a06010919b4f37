"""The outbox of an edge site: candidates wait on the site's own server until the hub has them."""

import asyncio
from collections.abc import Sequence

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from fusewire.bus import Bus, Delivery
from fusewire.candidate_lookup import JudgeLookup
from fusewire.contracts import Task
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire.loops import BatchLoop
from fusewire.topology import FORWARDER, OUTBOX, PRIORITY, candidate_subject, outbox_subject

FORWARD_AT_ONCE = 64
"""The most candidates that wait for the hub's acknowledgement at once."""


class Outbox:
    """Implements `fusewire.worker.CandidateOutbox` (docs/decisions/0049)."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lookup = JudgeLookup(bus)

    def subject(self, task: Task) -> str:
        """Where the candidate of a task is stored."""
        return outbox_subject(task.fusion_id, task.round, task.call)

    async def has_candidate(self, task: Task) -> bool:
        """Whether a task has its candidate: here, or on the hub already.

        Raises:
            Transient: this server or the judge does not answer.
        """
        # The outbox first: what is forwarded in between is on the hub before it is gone here.
        return await self._holds(task) or await self._is_on_hub(task)

    async def _holds(self, task: Task) -> bool:
        try:
            await self._bus.js_of(OUTBOX.name).get_last_msg(OUTBOX.name, self.subject(task))
        except NotFoundError:
            return False
        except (NatsError, OSError, TimeoutError) as exc:
            raise Transient(f"the outbox cannot be read ({type(exc).__name__})") from None
        return True

    async def _is_on_hub(self, task: Task) -> bool:
        return task.call in await self._lookup(task.fusion_id, task.round, [task.call])


class Forwarder:
    """Publishes what the outbox holds to the hub, as soon as the link is up."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def loop(self) -> BatchLoop:
        """The loop that does so."""
        return BatchLoop(self._bus, FORWARDER, self._forward, batch=FORWARD_AT_ONCE)

    async def _forward(self, batch: Sequence[Delivery]) -> None:
        """Publish a batch.

        Raises:
            Transient: the hub has not acknowledged all of it. What it has, it takes no second time.
        """
        results = await asyncio.gather(
            *(self._forward_one(delivery) for delivery in batch), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _forward_one(self, delivery: Delivery) -> None:
        _, _, fusion_id, round_, call = delivery.subject.split(".")
        subject = candidate_subject(fusion_id, int(round_), call)
        msg_id = delivery.headers.get("Nats-Msg-Id")
        priority = delivery.headers.get(PRIORITY)
        headers = {PRIORITY: priority} if priority else {}
        await self._bus.publish(
            subject, delivery.data, msg_id=msg_id, headers=headers, only_if_new=True
        )
        reach(CrashPoint.FORWARDER_FORWARDED)
