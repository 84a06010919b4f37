"""Messages in, messages out."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime

import structlog

from fusewire import telemetry
from fusewire.bus import Bus, Delivery
from fusewire.cancel import CancelledFusions
from fusewire.contracts import Prompt, Round, Task
from fusewire.topology import REPEATED, plan_subject, task_subject
from fusewire_dispatcher.planning import Catalogue, by_queue, expand, plan

log = structlog.get_logger(__name__)


class Handlers:
    """What dispatcher does with a prompt and with a round."""

    def __init__(
        self, bus: Bus, book: Catalogue, clock: Callable[[], datetime], cancelled: CancelledFusions
    ) -> None:
        self._bus = bus
        self._book = book
        self._clock = clock
        self._cancelled = cancelled

    async def on_prompt(self, delivery: Delivery) -> None:
        """Plan it, and publish plan and tasks."""
        prompt = Prompt.decode(delivery.data)
        telemetry.bind_fusion(prompt.fusion_id)
        if prompt.fusion_id in self._cancelled:
            log.info("dispatcher.cancelled", round=0)
            return
        made, tasks = plan(prompt, self._book, self._clock())
        await asyncio.gather(
            self._bus.publish(plan_subject(prompt.fusion_id), made, only_if_new=True),
            self._publish(prompt.pool, tasks, prompt.store_id),
        )
        log.debug(
            "dispatcher.planned",
            members=len(made.members),
            excluded=len(made.excluded),
            residency=prompt.residency,
        )

    async def on_round(self, delivery: Delivery) -> None:
        """Publish the tasks that the judge asks for."""
        asked = Round.decode(delivery.data)
        if asked.fusion_id in self._cancelled:
            log.info("dispatcher.cancelled", round=asked.round)
            return
        tasks = expand(asked, self._book)
        await self._publish(asked.pool, tasks, asked.store_id)
        log.debug("dispatcher.round_expanded", round=asked.round, calls=len(tasks))

    async def _publish(self, pool: str, tasks: Iterable[Task], store_id: str) -> None:
        """Publish tasks. Where they were asked for in another store of the broker, calls may have been made already."""
        is_repeated = bool(store_id) and store_id != await self._bus.store_id()
        headers = {REPEATED: "1"} if is_repeated else {}
        await asyncio.gather(
            *(
                self._bus.publish(
                    task_subject(t.tier, t.queue, t.priority), t, msg_id=t.key, headers=headers
                )
                for t in by_queue(pool, tasks)
            )
        )
