"""The edge worker while its engine's process is killed: real broker, worker, process and model.

`make test-edge-kills` kills it 50 times, `make test` a few.
"""

import asyncio
import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.contracts import Candidate, Task, Token
from fusewire.settings import EdgeModel
from fusewire.testing.edge_tasks import edge_task, publish_task
from fusewire.testing.eventually import eventually
from fusewire.worker import Worker
from fusewire_worker_edge.engine.load import OnLoad
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.process import ProcessEngine
from fusewire_worker_edge.generate import ATTEMPTS, SHARED_ATTEMPTS, EdgeGenerate
from fusewire_worker_edge.pull import pull

KILLS = int(os.environ.get("KILLS", "3"))
SLOTS = 4
OPEN_TASKS = 6
"""Tasks that are published and not answered while the process is killed."""
QUESTIONS = {
    "Tell a long story about a lighthouse.": 20,
    "List the planets, each with three facts.": 40,
    "Explain how bread is made, step by step.": 60,
    "Write a letter from a sailor to his sister.": 80,
}
"""By question, the tokens of its answer."""

MakeBus = Callable[..., Awaitable[Bus]]


@pytest.fixture(scope="module")
def folder() -> Path:
    root = os.environ.get("FUSEWIRE_MODELS")
    return pull("smollm2-135m", Path(root) if root else None)


@dataclass
class EdgeSite:
    """A worker with its engine, and what it publishes."""

    bus: Bus
    engine: ProcessEngine
    tokens: asyncio.Queue[Token] = field(default_factory=asyncio.Queue)
    candidates: list[Candidate] = field(default_factory=list)
    """Each that was published, whether the stream took it or not."""

    async def listen(self) -> None:
        async def on_token(msg: Msg) -> None:
            self.tokens.put_nowait(Token.decode(msg.data))

        async def on_candidate(msg: Msg) -> None:
            self.candidates.append(Candidate.decode(msg.data))

        await self.bus.client.subscribe("fw.token.>", cb=on_token)
        await self.bus.client.subscribe("fw.candidate.>", cb=on_candidate)
        await self.bus.confirm_subscriptions()

    async def stored_candidates(self) -> int:
        return (await self.bus.js.stream_info("FW_CANDIDATE")).state.messages

    async def open_tasks(self) -> int:
        return (await self.bus.js.stream_info("FW_TASK_EDGE")).state.messages

    def kill(self) -> None:
        assert self.engine.pid
        os.kill(self.engine.pid, signal.SIGKILL)


@pytest.fixture
async def site(make_bus: MakeBus, folder: Path) -> AsyncIterator[EdgeSite]:
    engines: list[ProcessEngine] = []

    def open_engine(path: Path, options: EngineOptions, on_load: OnLoad) -> ProcessEngine:
        engines.append(ProcessEngine(path, options, on_load))
        return engines[-1]

    def clock() -> datetime:
        return datetime.now(UTC)

    ops = await make_bus("ops", {"small": "edge"})
    bus = await make_bus("worker-edge")
    model = EdgeModel(kind="edge", path=folder, slots=SLOTS, threads=1)
    generate = EdgeGenerate({"small": model}, clock, open_engine)
    worker = Worker(
        bus, generate, {"small": SLOTS}, tier="edge", clock=clock, on_cancel=generate.cancel
    )
    site = EdgeSite(ops, engines[0])
    await site.listen()
    await worker.start()
    yield site
    await worker.stop(5)


async def kill_in_mid_generation(site: EdgeSite, chance: random.Random) -> None:
    """Kill the process after it has written some tokens, more of them at times."""
    for _ in range(chance.choice([5, 20, 60, 120])):
        await site.tokens.get()
    before = site.engine.pid
    site.kill()
    await eventually(lambda: site.engine.pid not in (None, before))
    while not site.tokens.empty():
        site.tokens.get_nowait()


@pytest.mark.slow
@pytest.mark.timeout(300 + 30 * KILLS)
async def test_each_task_is_answered_once_however_often_the_process_is_killed(
    site: EdgeSite,
) -> None:
    """With several under way at each kill; what is answered is what it would have been."""
    chance = random.Random(20)
    questions = itertools.cycle(QUESTIONS.items())
    tasks: list[Task] = []

    async def publish(count: int) -> None:
        for question, tokens in itertools.islice(questions, count):
            sampling = {"max_tokens": tokens, "temperature": 0.0}
            task = edge_task(f"t{len(tasks)}", question, sampling=sampling, is_streamed=True)
            tasks.append(task)
            await publish_task(site.bus, task)

    for kill in range(1, KILLS + 1):
        await publish(OPEN_TASKS - (len(tasks) - len(site.candidates)))
        await kill_in_mid_generation(site, chance)
        # No task sees more deaths than leave it an attempt.
        if kill % (ATTEMPTS - 1) == 0 or kill == KILLS:
            await eventually(lambda: len(site.candidates) >= len(tasks))

    async def is_acknowledged() -> bool:
        return await site.open_tasks() == 0

    await eventually(is_acknowledged)
    published = Counter(candidate.task_id for candidate in site.candidates)
    assert published == Counter(task.task_id for task in tasks)
    assert await site.stored_candidates() == len(tasks)
    attempts = Counter(candidate.attempts for candidate in site.candidates)
    print(f"{KILLS} kills, {len(tasks)} tasks, by attempts {dict(sorted(attempts.items()))}")
    assert {candidate.error for candidate in site.candidates} == {None}
    assert max(attempts) > 1
    question_of = {task.task_id: task.messages[0].content for task in tasks}
    answers = {(question_of[c.task_id], c.content) for c in site.candidates}
    assert len(answers) == len(QUESTIONS)


@pytest.mark.slow
async def test_a_prompt_that_ends_the_process_fails_alone(site: EdgeSite) -> None:
    """The process is killed whenever it begins to answer that prompt, as a crash would end it."""
    neighbours = [
        edge_task(f"n{number}", question, sampling={"max_tokens": 60})
        for number, question in enumerate(list(QUESTIONS)[: SLOTS - 1])
    ]
    poison = edge_task("poison", "What is the capital of France?", is_streamed=True)
    for task in (*neighbours, poison):
        await publish_task(site.bus, task)

    deaths = 0
    while len(site.candidates) < len(neighbours) + 1:
        try:
            async with asyncio.timeout(0.05):
                token = await site.tokens.get()
        except TimeoutError:
            continue
        if token.attempt > deaths:
            deaths = token.attempt
            site.kill()

    by_task = {candidate.task_id: candidate for candidate in site.candidates}
    error = by_task[poison.task_id].error
    assert error
    assert (error.code, error.retryable, deaths) == ("engine_failed", True, ATTEMPTS)
    assert [by_task[task.task_id].error for task in neighbours] == [None] * len(neighbours)
    assert {by_task[task.task_id].attempts for task in neighbours} == {SHARED_ATTEMPTS + 1}
