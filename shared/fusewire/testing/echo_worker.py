"""An edge worker without a model, on the real bus: it is a fake, for tests only."""

import inspect
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from fusewire.bus_service import BusService
from fusewire.contracts import Candidate, Task
from fusewire.settings import Settings
from fusewire.testing.factories import make_candidate
from fusewire.testing.model_script import last_user_message, satisfying
from fusewire.worker import FreeCalls, TokenPublisher, Worker


def echo(task: Task) -> str:
    """Name the model and repeat the prompt, or return JSON that fits the schema."""
    schema = task.sampling.response_schema
    if schema:
        return json.dumps(satisfying(schema, schema))
    prompt = last_user_message({"messages": [m.model_dump() for m in task.messages]})
    return f"{task.model} says {task.round}: {prompt}"


Say = Callable[[Task], str | Awaitable[str]]


class EchoEngine(FreeCalls):
    """An edge engine in name."""

    def __init__(self, answer: Say) -> None:
        self.tasks: list[Task] = []
        self._answer = answer

    async def generate(self, task: Task, tell: TokenPublisher | None = None) -> Candidate:
        """See Generate. It publishes its answer word by word."""
        self.tasks.append(task)
        now = datetime.now(UTC)
        reply = self._answer(task)
        answer = await reply if inspect.isawaitable(reply) else reply
        if tell:
            for word in re.findall(r"\S+\s*|\s+", answer):
                await tell(word)
        return make_candidate(
            answer,
            task.call,
            task_id=task.task_id,
            fusion_id=task.fusion_id,
            round=task.round,
            member=task.member,
            model=task.model,
            tier="edge",
            provider="echo",
            cost_usd=0.0,
            # It likes what stands first best.
            choice_logprobs=tuple(-1.0 - place for place, _ in enumerate(task.choices)),
            started_at=now,
            finished_at=now,
        )

    def cancel(self, fusion_id: str) -> None:
        """Its answers are not aborted."""

    async def aclose(self) -> None:
        """Nothing to end."""


class EchoWorker(BusService):
    """The edge worker's wiring around that engine, for all configured edge models."""

    name = "worker-edge"

    def __init__(self, settings: Settings, answer: Say = echo) -> None:
        super().__init__(settings, drain_s=2.0)
        self.engine = EchoEngine(answer)
        models = {name: 2 for name, model in settings.models.items() if model.kind == "edge"}
        self.worker = Worker(
            self.bus, self.engine, models, tier="edge", clock=lambda: datetime.now(UTC)
        )
        self.loops = [self.worker]

    async def start(self) -> None:
        """See Service."""
        await self.bus.connect()
        await self.worker.start()
