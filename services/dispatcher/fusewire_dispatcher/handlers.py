"""Prompts in, plans and tasks out; rounds in, tasks out."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import structlog

from fusewire import telemetry
from fusewire.bus import Bus, Delivery
from fusewire.cancel import CancelledFusions
from fusewire.contracts import Plan, Prompt, Round, Task, Tasks
from fusewire.crash_points import CrashPoint, reach
from fusewire.topology import PRIORITY, REPEATED, plan_subject, task_subject
from fusewire_dispatcher.planning.catalogue import Catalogue
from fusewire_dispatcher.planning.plan import plan_prompt
from fusewire_dispatcher.planning.tasks import expand_round, group_by_queue

log = structlog.get_logger(__name__)


class Handlers:
    """What the dispatcher does with a prompt and with a round."""

    def __init__(
        self,
        bus: Bus,
        catalogue: Catalogue,
        clock: Callable[[], datetime],
        cancelled: CancelledFusions,
    ) -> None:
        self._bus = bus
        self._catalogue = catalogue
        self._clock = clock
        self._cancelled = cancelled

    async def on_prompt(self, delivery: Delivery) -> None:
        """Plan a prompt, and publish the plan and its first tasks."""
        prompt = Prompt.decode(delivery.data)
        telemetry.bind_fusion(prompt.fusion_id)
        if prompt.fusion_id in self._cancelled:
            log.info("dispatcher.cancelled", round=0)
            return
        plan, tasks = plan_prompt(prompt, self._catalogue, self._clock())
        reach(CrashPoint.DISPATCHER_PLANNED)
        # In any order: the judge stores a candidate whose plan has not come yet.
        await asyncio.gather(
            self._publish_plan(prompt, plan), self._publish(prompt.pool, tasks, prompt.store_id)
        )
        reach(CrashPoint.DISPATCHER_PROMPT_DONE)
        log.debug(
            "dispatcher.planned",
            members=len(plan.members),
            excluded=len(plan.excluded),
            residency=prompt.residency,
        )

    async def on_round(self, delivery: Delivery) -> None:
        """Publish the tasks of a round that the judge asks for."""
        round_ = Round.decode(delivery.data)
        if round_.fusion_id in self._cancelled:
            log.info("dispatcher.cancelled", round=round_.round)
            return
        tasks = expand_round(round_, self._catalogue)
        await self._publish(round_.pool, tasks, round_.store_id)
        reach(CrashPoint.DISPATCHER_ROUND_DONE)
        log.debug("dispatcher.round_expanded", round=round_.round, calls=len(tasks))

    async def _publish_plan(self, prompt: Prompt, plan: Plan) -> None:
        await self._bus.publish(
            plan_subject(prompt.fusion_id),
            plan,
            headers={PRIORITY: prompt.priority},
            only_if_new=True,
        )
        reach(CrashPoint.DISPATCHER_PLAN_PUBLISHED)

    async def _publish(self, pool: str, tasks: Iterable[Task], store_id: str) -> None:
        """Publish tasks, marked as repeated if they were first published to a lost store.

        Their calls may have been made already, and a new store does not know of that.
        """
        is_repeated = bool(store_id) and store_id != await self._bus.store_id()
        headers = {REPEATED: "1"} if is_repeated else {}
        groups = group_by_queue(pool, tasks)
        await asyncio.gather(*(self._publish_group(group, headers) for group in groups))

    async def _publish_group(self, group: Tasks, headers: Mapping[str, str]) -> None:
        subject = task_subject(group.tier, group.queue, group.priority)
        await self._bus.publish(subject, group, msg_id=group.key, headers=headers)
        reach(CrashPoint.DISPATCHER_TASKS_PUBLISHED)
