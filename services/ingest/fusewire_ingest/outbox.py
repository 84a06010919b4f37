"""The outbox: gets what is committed onto the bus, and notices when the bus has lost it."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog
from nats.errors import Error as NatsError
from nats.js.errors import APIError

from fusewire import telemetry
from fusewire.bus import Bus, fault
from fusewire.cancel import CancelledFusions
from fusewire.contracts import Prompt
from fusewire.errors import Transient
from fusewire.topology import CARRIERS, cancel_subject, due_subject, prompt_subject
from fusewire_ingest.large_parts import LargeParts
from fusewire_ingest.repository.submissions import Submissions

log = structlog.get_logger(__name__)

SWEEP_EVERY_S = 2.0
SWEEP_BATCH = 500
IN_FLIGHT = 64
MARK_EVERY_S = 0.5
"""How long what is published waits to be marked as such together with others: a commit for each would be in the way of
the judge's, and who dies meanwhile publishes again what the broker knows."""
STALLED_S = 30.0
"""A prompt published so long ago is open only while something of it lies in a stream."""
LOST_EVERY_S = 5.0
LOST_LOOKS = 4
"""So many looks in a row have to find all streams empty: between two of its steps a fusion is in none for a moment."""
NUDGE_AFTER_S = 5.0
"""How long the judge may take to end a cancelled fusion before it is told again."""


class Outbox:
    """Publishes prompts right after their commit; a sweep catches whatever that missed."""

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
        self._queue: asyncio.Queue[tuple[Prompt, str | None]] = asyncio.Queue(maxsize=10_000)
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._published: list[str] = []
        """Not marked yet."""
        self._published_at: datetime | None = None
        """Before the first of them was."""
        self._tasks: list[asyncio.Task[None]] = []
        self._store_id = ""
        """The broker's store that is published to; empty until it is known."""
        self._empty_looks = 0
        self._looked_at = -math.inf
        self._cancelled = CancelledFusions()

    def start(self) -> None:
        """Begin to publish and to sweep."""
        self._tasks = [
            asyncio.create_task(self._publish_loop(), name="ingest-outbox"),
            asyncio.create_task(self._mark_loop(), name="ingest-mark"),
            asyncio.create_task(self._sweep_loop(), name="ingest-sweep"),
        ]

    async def stop(self) -> None:
        """End; what was not published yet is committed, and the next sweep finds it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.mark()

    def faults(self) -> list[str]:
        """Names of loops that have ended."""
        return [f"{t.get_name()} has ended" for t in self._tasks if t.done()]

    def offer(self, prompt: Prompt, traceparent: str | None = None) -> None:
        """Publish soon. When there is more than fits in memory, the sweep will take it from SQL."""
        if not self._queue.full():
            self._queue.put_nowait((prompt, traceparent))

    async def _publish_loop(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty() and len(batch) < SWEEP_BATCH:
                batch.append(self._queue.get_nowait())
            await self.publish(batch)

    async def tell_cancelled(self, fusion_ids: Sequence[str]) -> None:
        """Tell whoever works on them, and the judge, which ends them. Those that are not heard are told again."""
        for fusion in fusion_ids:
            self._cancelled.add(fusion)
            with contextlib.suppress(NatsError, OSError):
                await self._bus.client.publish(cancel_subject(fusion), b"")
        await asyncio.gather(*(self._nudge(fusion) for fusion in fusion_ids))

    async def _nudge(self, fusion: str) -> None:
        async with self._slots:
            try:
                # With an id: while no judge runs, they must not pile up.
                await self._bus.publish(due_subject(fusion), b"{}", msg_id=f"cancel-{fusion}")
            except Transient as exc:
                log.warning("ingest.cancel_not_told", fusion_id=fusion, fault=str(exc))

    async def publish(self, batch: Sequence[tuple[Prompt, str | None]]) -> int:
        """Publish; returns how many the broker now has. They are marked soon."""
        at = self._clock()
        results = await asyncio.gather(*(self._publish_one(p, t) for p, t in batch))
        done = [fusion for fusion in results if fusion]
        self._published += done
        self._published_at = min(at, self._published_at or at)
        return len(done)

    async def _mark_loop(self) -> None:
        while True:
            await asyncio.sleep(MARK_EVERY_S)
            await self.mark()

    async def mark(self) -> None:
        """Mark what is published."""
        done, at = self._published, self._published_at
        self._published, self._published_at = [], None
        if not done or at is None:
            return
        try:
            await self._submissions.mark_published(done, at, self._store_id)
        except Transient as exc:
            # Published and not marked: the sweep publishes again, and the message id makes it one.
            log.warning("ingest.mark_failed", count=len(done), fault=str(exc))

    async def _publish_one(self, prompt: Prompt, traceparent: str | None) -> str | None:
        if prompt.fusion_id in self._cancelled:
            return None
        headers = {"traceparent": traceparent} if traceparent else {}
        async with self._slots:
            try:
                await self._large_parts.publish(prompt)
                subject = prompt_subject(prompt.priority, prompt.tenant)
                await self._bus.publish(subject, prompt, msg_id=prompt.fusion_id, headers=headers)
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
        """Settle the budgets of what has ended; returns how many."""
        settled = 0
        while found := await self._submissions.settle():
            settled += found
        return settled

    async def sweep(self) -> int:
        """Publish what was committed and never published; returns how many."""
        if not self._bus.is_connected:
            return 0
        await self._notice_lost_store()
        await self._notice_lost_messages()
        late = self._clock() - timedelta(seconds=NUDGE_AFTER_S)
        if undecided := await self._submissions.cancelled(late, SWEEP_BATCH):
            await self.tell_cancelled(undecided)
        before = self._clock() - timedelta(seconds=SWEEP_EVERY_S)
        waiting = await self._submissions.unpublished(before, SWEEP_BATCH)
        telemetry.UNPUBLISHED.set(len(waiting))
        if not waiting:
            return 0
        published = await self.publish(waiting)
        await self.mark()
        log.info("ingest.swept", found=len(waiting), published=published)
        return published

    async def _notice_lost_messages(self) -> None:
        """Open fusions of which nothing is in any stream: a stream has lost it, as by a file that was removed.

        Their prompts are published again. Ids, the ledger and what is stored keep that from asking or paying twice.
        """
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < LOST_EVERY_S:
            return
        self._looked_at = now
        self._empty_looks = self._empty_looks + 1 if await self._are_streams_empty() else 0
        if self._empty_looks < LOST_LOOKS:
            return
        self._empty_looks = 0
        if count := await self._submissions.forget_stalled(
            self._clock() - timedelta(seconds=STALLED_S)
        ):
            log.warning("ingest.messages_lost", prompts=count)

    async def _are_streams_empty(self) -> bool:
        try:
            infos = [await self._bus.js.stream_info(name) for name in CARRIERS]
        except (APIError, NatsError, TimeoutError, OSError):
            return False
        return not any(info.state.messages for info in infos)

    async def _notice_lost_store(self) -> None:
        """Another id of the broker's store means that it was lost, and what was published with it."""
        store_id = await self._bus.store_id(afresh=True)
        if store_id == self._store_id:
            return
        # What was published so far may have gone to the old one; that it is published again costs nothing.
        self._published, self._published_at = [], None
        count = await self._submissions.publish_to(store_id)
        self._store_id = store_id
        if count:
            log.warning("ingest.broker_store_lost", prompts=count)
