"""The outbox: publishes committed prompts to the bus, and notices when the bus has lost them."""

import asyncio
import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from fusewire import metrics
from fusewire.bus import Bus, fault
from fusewire.cancel import CancelledFusions
from fusewire.contracts import PRIORITIES, Prompt
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire.tasks import BackgroundTasks
from fusewire.topology import CARRIERS, cancel_subject, due_subject, prompt_subject
from fusewire_ingest.large_parts import LargeParts
from fusewire_ingest.repository.submissions import Submissions

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 2.0
SWEEP_BATCH = 500
IN_FLIGHT = 64
MARK_EVERY_S = 0.5
"""How often published prompts are marked as such, in one commit: more would delay the judge's
(docs/decisions/0043).

After a crash before it they are published again, and the broker drops them by their message ids.
"""
STALLED_S = 30.0
"""A fusion whose prompt was published so long ago and that is open has a message in some stream."""
LOST_EVERY_S = 5.0
LOST_LOOKS = 4
"""How many looks in a row must find all streams empty, since a running fusion has no message in any
of them for a moment between two steps."""
NUDGE_AFTER_S = 5.0
"""How long the judge may take to end a cancelled fusion before the cancellation is repeated."""


@dataclass(frozen=True, order=True)
class _WaitingPrompt:
    """A prompt that is to be published; the most urgent is the least."""

    rank: int
    number: int
    """In the order in which they came."""
    prompt: Prompt = field(compare=False)
    traceparent: str | None = field(compare=False)


class Outbox:
    """Publishes prompts right after their commit; a sweep publishes those that were missed."""

    def __init__(
        self,
        bus: Bus,
        submissions: Submissions,
        large_parts: LargeParts,
        clock: Callable[[], datetime],
    ) -> None:
        self._bus = bus
        self._submissions = submissions
        self._large_parts = large_parts
        self._clock = clock
        self._queue: asyncio.PriorityQueue[_WaitingPrompt] = asyncio.PriorityQueue(maxsize=10_000)
        self._numbers = itertools.count()
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._unmarked_ids: list[str] = []
        """Fusions whose prompts are published and not marked as such yet."""
        self._published_at: datetime | None = None
        """A time before the first of them was published."""
        self._background = BackgroundTasks()
        self._store_id = ""
        """Id of the broker's store that is published to; empty until it is known."""
        self._empty_looks = 0
        self._looked_at = -math.inf
        self._cancelled = CancelledFusions()

    def start(self) -> None:
        """Start to publish, to mark and to sweep."""
        self._background.start("ingest-outbox", self._publish_loop())
        self._background.start("ingest-mark", self._mark_loop())
        self._background.start("ingest-sweep", self._sweep_loop())

    async def stop(self) -> None:
        """Stop; prompts that are not published yet are committed, and the next sweep finds them."""
        await self._background.stop()
        await self.mark()

    def faults(self) -> list[str]:
        """Name the loops that have ended."""
        return self._background.faults()

    def offer(self, prompt: Prompt, traceparent: str | None = None) -> None:
        """Publish a prompt soon. If the queue is full, the sweep will take it from SQL."""
        if not self._queue.full():
            rank = PRIORITIES.index(prompt.priority)
            self._queue.put_nowait(_WaitingPrompt(rank, next(self._numbers), prompt, traceparent))

    async def _publish_loop(self) -> None:
        """Publish the most urgent prompts first, a few at once."""
        room = asyncio.Semaphore(IN_FLIGHT)

        async def publish(waiting: _WaitingPrompt) -> None:
            try:
                await self.publish([(waiting.prompt, waiting.traceparent)])
            finally:
                room.release()

        async with asyncio.TaskGroup() as group:
            while True:
                await room.acquire()
                group.create_task(publish(await self._queue.get()))

    async def publish_cancellations(self, fusion_ids: Sequence[str]) -> None:
        """Publish cancellations to workers and judge; the sweep repeats unacknowledged ones."""
        for fusion_id in fusion_ids:
            self._cancelled.add(fusion_id)
            # One that is lost costs a call that nobody reads: the mark in SQL decides
            # (docs/decisions/0019).
            with contextlib.suppress(NatsError, OSError):
                await self._bus.client.publish(cancel_subject(fusion_id), b"")
        await asyncio.gather(*(self._nudge_judge(fusion_id) for fusion_id in fusion_ids))

    async def _nudge_judge(self, fusion_id: str) -> None:
        async with self._slots:
            try:
                # With a message id, so that repetitions do not pile up while no judge runs.
                await self._bus.publish(due_subject(fusion_id), b"{}", msg_id=f"cancel-{fusion_id}")
            except Transient as exc:
                log.warning("ingest.cancel_not_told", fusion_id=fusion_id, fault=str(exc))

    async def publish(self, batch: Sequence[tuple[Prompt, str | None]]) -> int:
        """Publish prompts with their traces; returns how many the broker has now.

        They are marked as published soon after, by `mark`.
        """
        at = self._clock()
        publications = [self._publish_one(prompt, traceparent) for prompt, traceparent in batch]
        fusion_ids = [key for key in await asyncio.gather(*publications) if key]
        self._unmarked_ids += fusion_ids
        self._published_at = min(at, self._published_at or at)
        return len(fusion_ids)

    async def _mark_loop(self) -> None:
        while True:
            await asyncio.sleep(MARK_EVERY_S)
            await self.mark()

    async def mark(self) -> None:
        """Mark in SQL the prompts that were published since the last time."""
        fusion_ids, at = self._unmarked_ids, self._published_at
        self._unmarked_ids, self._published_at = [], None
        if not fusion_ids or at is None:
            return
        try:
            await self._submissions.mark_published(fusion_ids, at, self._store_id)
        except Transient as exc:
            # The sweep publishes them again, and the broker drops them by their message ids.
            log.warning("ingest.mark_failed", count=len(fusion_ids), fault=str(exc))

    async def _publish_one(self, prompt: Prompt, traceparent: str | None) -> str | None:
        """Publish a prompt; returns its fusion id, or None if it was not published."""
        if prompt.fusion_id in self._cancelled:
            return None
        headers = {"traceparent": traceparent} if traceparent else {}
        async with self._slots:
            try:
                await self._large_parts.publish(prompt)
                reach(CrashPoint.INGEST_PARTS_PUBLISHED)
                subject = prompt_subject(prompt.priority, prompt.tenant)
                await self._bus.publish(subject, prompt, msg_id=prompt.fusion_id, headers=headers)
                reach(CrashPoint.INGEST_PUBLISHED)
            except Transient as exc:
                log.warning("ingest.publish_failed", fusion_id=prompt.fusion_id, fault=str(exc))
                return None
        return prompt.fusion_id

    async def _sweep_loop(self) -> None:
        while True:
            for step in (self.sweep, self.settle, self._large_parts.tidy):
                try:
                    await step()
                except Transient as exc:
                    log.warning("ingest.sweep_failed", what=step.__name__, fault=str(exc))
                except Exception as exc:  # noqa: BLE001 - a sweep that ended would lose prompts in silence
                    log.error("ingest.sweep_broken", what=step.__name__, fault=fault(exc))  # noqa: TRY400 - no text of its
            await asyncio.sleep(SWEEP_EVERY_S)

    async def settle(self) -> int:
        """Settle the budgets of fusions that have ended; returns how many holds."""
        total = 0
        # Here and not in the judge, which has no business with money (docs/decisions/0025).
        while count := await self._submissions.settle(self._clock()):
            total += count
        return total

    async def sweep(self) -> int:
        """Publish what was committed and never published; returns how many prompts.

        Also repeats cancellations, and takes back the marks of prompts that the broker has lost.
        """
        if not self._bus.is_connected:
            return 0
        await self._notice_lost_store()
        await self._notice_lost_messages()
        cancelled_before = self._clock() - timedelta(seconds=NUDGE_AFTER_S)
        cancelled_ids = await self._submissions.find_cancelled(cancelled_before, SWEEP_BATCH)
        if cancelled_ids:
            await self.publish_cancellations(cancelled_ids)
        # Newer prompts are still in the queue.
        committed_before = self._clock() - timedelta(seconds=SWEEP_EVERY_S)
        waiting = await self._submissions.find_unpublished(committed_before, SWEEP_BATCH)
        metrics.UNPUBLISHED.set(len(waiting))
        if not waiting:
            return 0
        count = await self.publish(waiting)
        await self.mark()
        log.info("ingest.swept", found=len(waiting), published=count)
        return count

    async def _notice_lost_messages(self) -> None:
        """Take back the marks of open fusions that have no message in any stream.

        A stream has lost it, for example by a file that was removed. The sweep publishes their
        prompts again; ids, the ledger and stored rows keep calls from being made and paid twice.
        """
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < LOST_EVERY_S:
            return
        self._looked_at = now
        self._empty_looks = self._empty_looks + 1 if await self._are_streams_empty() else 0
        if self._empty_looks < LOST_LOOKS:
            return
        self._empty_looks = 0
        stalled_before = self._clock() - timedelta(seconds=STALLED_S)
        if count := await self._submissions.forget_stalled(stalled_before):
            log.warning("ingest.messages_lost", prompts=count)

    async def _are_streams_empty(self) -> bool:
        try:
            infos = [await self._bus.js.stream_info(name) for name in CARRIERS]
        except (APIError, NatsError, TimeoutError, OSError):
            return False
        return not any(info.state.messages for info in infos)

    async def _notice_lost_store(self) -> None:
        """Take back marks if the broker's store has a new id: the old one was lost."""
        store_id = await self._bus.store_id(afresh=True)
        # An id and not the stream's age, which a wrong clock deceives (docs/decisions/0044).
        if store_id == self._store_id:
            return
        # These may be in the old store; publishing them again costs nothing.
        self._unmarked_ids, self._published_at = [], None
        count = await self._submissions.publish_to(store_id)
        self._store_id = store_id
        if count:
            log.warning("ingest.broker_store_lost", prompts=count)
