"""A process is killed between every two critical statements, and nothing is lost or done twice.

`make test-crashes` kills at each point three times on each database (`CRASH_ROUNDS`); `make test`
at a few points together. `CHAOS_REPORT` names a file to which the figures of each kill are added.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.crash_points import CrashPoint
from fusewire.settings import Database
from fusewire.store.engine import Store
from fusewire.testing.command_line import FakeServer, background, bare
from fusewire.testing.crash_stack import PRODUCERS, CrashResult, CrashStack, crash_stack
from fusewire.testing.eventually import eventually, until
from fusewire.testing.large_parts import picture
from fusewire.testing.postgres import PostgresServer
from fusewire_cli.client import Client

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "0"))
REPORT = os.environ.get("CHAOS_REPORT")
PROMPTS = 3
"""How many of a kind are submitted around a kill."""
CONFIG = """
[log]
level = "warning"
[http]
port = 0
[limits]
call_drain_s = 2
{models}
[pools.default]
members = ["a", "b", "c"]
judge = "j"
control_share = 0.0
deadline_s = 250
[pools.merge]
members = ["a", "b", "c"]
judge = "j"
mode = "merge"
control_share = 0.0
deadline_s = 250
[pools.vote]
members = ["a", "b", "c"]
deadline_s = 250
[pools.solo]
members = ["streamed"]
deadline_s = 250
[pools.flaky]
members = ["flaky"]
deadline_s = 250
[pools.stalled]
members = ["slow"]
deadline_s = 250
[pools.quorum]
members = ["a", "b", "slow"]
quorum = 0.6
early_stop = 1.0
deadline_s = 250
[pools.late]
members = ["a", "slow"]
deadline_s = 12
"""
EDGE = """
[models.tiny]
kind = "edge"
path = "{folder}"
max_tokens = 4
threads = 1
[pools.edge]
members = ["tiny"]
deadline_s = 250
[pools.mixed]
members = ["a", "tiny"]
deadline_s = 250
"""
REMOTE = ("a", "b", "c", "j", "streamed", "flaky", "slow")
MODELS: dict[str, Any] = {
    "*": {"latency_ms": 60, "latency_sigma": 0.3},
    "streamed": {"token_ms": 40},
    # The first call of each fails, and the second is answered.
    "flaky": {"faults": [{"kind": "server_error"}, {"kind": "none"}], "repeat_faults": True},
    # Long after the deadline of `late`.
    "slow": {"latency_ms": 15_000},
}

Names = list[str]
Scenario = Callable[[CrashStack], Awaitable[Names]]


# -- prompts of a kind ------------------------------------------------------------------------


def question(name: str) -> str:
    return f"Say something of your own about {name}, in a sentence or two."


def submitting(pool: str, count: int = PROMPTS, **fields: Any) -> Scenario:
    """Prompts over HTTP, sent again where a connection breaks."""

    async def submit(stack: CrashStack) -> Names:
        names = [stack.name() for _ in range(count)]
        async with Client(stack.url) as client:
            for name in names:
                body = {"custom_id": name, "prompt": question(name), "pool": pool, **fields}
                await client.submit(body)
        return names

    return submit


async def show_image(stack: CrashStack, seed: int | None = None) -> Names:
    """A prompt with an image that no message of the bus holds."""
    name = stack.name()
    url = picture(60_000, seed=seed or int(name[2:]))
    content = [
        {"type": "text", "text": question(name)},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    messages = [{"role": "user", "content": content}]
    async with Client(stack.url) as client:
        await client.submit({"custom_id": name, "messages": messages, "pool": "vote"})
    return [name]


async def withdraw_image(stack: CrashStack) -> Names:
    """An image that the broker no longer has when it is shown again."""
    seed = time.time_ns()
    first = await show_image(stack, seed)
    await eventually(lambda: not any(stack.points.iterdir()))
    second = await show_image(stack, seed)
    query = f"SELECT status FROM answers WHERE {about(second[0])}"
    await eventually(lambda: column(stack, query))
    assert set(await column(stack, query)) == {"ok"}
    return first + second


async def stream(stack: CrashStack) -> Names:
    """A stream whose client sees the whole answer, or an error; never a piece twice."""
    name = stack.name()
    body = {
        "model": "fusewire/solo",
        "messages": [{"role": "user", "content": question(name)}],
        "stream": True,
    }
    async with (
        aiohttp.ClientSession(stack.url) as http,
        http.post("/v1/chat/completions", json=body) as response,
    ):
        lines = (await response.text()).splitlines()
        assert response.status == 200, lines
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    pieces = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
    (content,) = await column(stack, f"SELECT content FROM outcomes WHERE {about(name)}")
    assert "".join(pieces) == content or "error" in chunks[-1], chunks
    return [name]


async def cancel(stack: CrashStack) -> Names:
    """A cancellation that its client asks for once."""
    name = stack.name()
    async with Client(stack.url) as client:
        body = {"custom_id": name, "prompt": question(name), "pool": "stalled"}
        fusion_id = (await client.submit(body))["id"]
    await eventually(stack.calls)
    async with aiohttp.ClientSession(stack.url) as http:
        with contextlib.suppress(aiohttp.ClientError):
            await http.post(f"/v1/fusions/{fusion_id}/cancel")
    query = f"SELECT status FROM outcomes WHERE {about(name)}"
    assert await eventually(lambda: column(stack, query)) == ["cancelled"]
    return [name]


async def miss_deadline(stack: CrashStack) -> Names:
    """A deadline at which no message comes: a worker that runs says itself that it is over."""
    name = stack.name()
    async with Client(stack.url) as client:
        await client.submit({"custom_id": name, "prompt": question(name), "pool": "late"})
    await eventually(lambda: any(call["model"] == "slow" for call in stack.calls()))
    with stack.frozen("fusewire_worker_remote"):
        await eventually(lambda: not any(stack.points.iterdir()))
    return [name]


async def produce(stack: CrashStack) -> Names:
    """Prompts from a producer on the bus."""
    names = [stack.name() for _ in range(PROMPTS)]
    await stack.produce(PRODUCERS[0], *({"prompt": question(n), "pool": "vote"} for n in names))
    return names


async def produce_refused(stack: CrashStack) -> Names:
    """A prompt that is refused: it becomes one dead letter, and its body one sealed message."""
    streams = ("FW_DEAD", "FW_DEAD_EDGE")
    async with stack.bus() as bus:

        async def counts() -> list[int]:
            return [(await bus.js.stream_info(name)).state.messages for name in streams]

        before = await counts()
        body = {"prompt": stack.name(), "pool": "nowhere"}
        await stack.produce(PRODUCERS[0], body)
        await eventually(lambda: not any(stack.points.iterdir()))

        async def is_handled() -> bool:
            return (await bus.js.stream_info("FW_IN")).state.messages == 0

        await eventually(is_handled)
        assert await counts() == [count + 1 for count in before]
    return await submitting("vote", 1)(stack)


async def run_batch(stack: CrashStack) -> Names:
    """A batch, whose output line i answers input line i."""
    names = [stack.name() for _ in range(8)]
    file = stack.cli.folder / f"{names[0]}.jsonl"
    lines = [
        json.dumps({"custom_id": name, "prompt": question(name), "pool": "vote"}) for name in names
    ]
    file.write_text("\n".join(lines) + "\n")
    async with Client(stack.url) as client:
        body = {
            "input_file_id": await client.upload(file),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        batch_id = (await client.create_batch(body, key=names[0]))["id"]

        async def ended() -> Any:
            batch = await client.batch(batch_id)
            return batch if batch["status"] == "completed" else None

        batch = await eventually(ended)
        counts = batch["request_counts"]
        results = client.results(batch_id, order="line", after=0, form="outcome", limit=100)
        output = [json.loads(line) async for line in results]
    assert (counts["total"], counts["completed"], counts["failed"]) == (len(names), len(names), 0)
    assert [line["custom_id"] for line in output] == names
    return names


async def erase(stack: CrashStack) -> Names:
    """A tenant that is erased by a command that dies, and then by one that does not."""
    tenant = next(stack.erased_tenants)
    await stack.produce(tenant, {"prompt": question(stack.name()), "pool": "vote"})
    ended = f"SELECT fusion_id FROM outcomes WHERE tenant = '{tenant}'"
    (fusion_id,) = await eventually(lambda: column(stack, ended))
    for code in (-signal.SIGKILL, 0):
        command = await asyncio.to_thread(stack.cli.run, "erase", "--tenant", tenant, "--yes")
        assert command.returncode == code, command.stderr
        if code:
            await write_late_letter(stack, fusion_id)
    for table in ("prompts", "outcomes", "pool_days"):
        query = f"SELECT tenant FROM {table} WHERE tenant = '{tenant}'"
        assert await column(stack, query) == []
    async with stack.bus() as bus:
        info = await bus.js.stream_info("FW_OUTCOME", subjects_filter=f"fw.outcome.{tenant}.>")
        assert not info.state.subjects
        info = await bus.js.stream_info("FW_DEAD", subjects_filter="fw.dead.test.>")
        assert not info.state.subjects
    return await submitting("vote", 1)(stack)


async def write_late_letter(stack: CrashStack, fusion_id: str) -> None:
    """A dead letter with what a worker has answered, which comes after the command's death."""
    headers = {"Fw-Subject": f"fw.candidate.{fusion_id}.0.a", "Fw-Body": "whole"}
    async with stack.bus() as bus:
        await bus.publish("fw.dead.test.FW_CANDIDATE", b"an answer", headers=headers)


def about(name: str) -> str:
    """The SQL condition for the fusion of a prompt."""
    return f"fusion_id IN (SELECT fusion_id FROM prompts WHERE body LIKE '%{name}%')"


async def column(stack: CrashStack, query: str) -> list[Any]:
    store = Store(Database(url=stack.database))
    try:
        async with store.read() as connection:
            return list((await connection.execute(text(query))).scalars())
    finally:
        await store.close()


# -- where it crashes -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """Points, which are taken one after the other, and prompts of a kind that passes them.

    Attributes:
        is_command: whether a command dies there, and no service.
    """

    points: tuple[CrashPoint, ...]
    scenario: Scenario
    tier: str = "remote"
    is_command: bool = False

    def __str__(self) -> str:
        names = "+".join(self.points)
        return names if self.tier == "remote" else f"{names}-{self.tier}"

    @property
    def may_repeat(self) -> bool:
        """Whether calls are under way where it dies, whose results are then unknowable."""
        return self.tier == "remote" and any(
            point.startswith(("worker.", "worker-remote.")) for point in self.points
        )


P = CrashPoint
BEST, MERGE, VOTE = submitting("default"), submitting("merge"), submitting("vote")
TIMED = submitting("quorum")
EDGE_ONLY = submitting("edge", residency="edge-only")
CASES = [
    *(
        Case((point,), VOTE)
        for point in (P.INGEST_STORED, P.INGEST_COMMITTED, P.INGEST_PUBLISHED, P.DISPATCHER_PLANNED)
    ),
    *(
        Case((point,), show_image)
        for point in (P.PARTS_COMMITTED, P.PARTS_MARKED, P.INGEST_PARTS_PUBLISHED)
    ),
    Case((P.PARTS_WITHDRAWN,), withdraw_image),
    Case((P.INGEST_CANCELLED,), cancel),
    Case((P.INTAKE_COMMITTED,), produce),
    Case((P.INTAKE_REPLIED,), produce),
    Case((P.BUS_BODY_SEALED,), produce_refused),
    Case((P.BUS_DEAD_LETTERED,), produce_refused),
    *(
        Case((point,), run_batch)
        for point in (
            P.BATCH_CHECKED,
            P.BATCH_LINES_STORED,
            P.BATCH_LINES_COMMITTED,
            P.BATCH_SETTLED,
            P.BATCH_RENDERED,
        )
    ),
    *(
        Case((point,), submitting("mixed"))
        for point in (
            P.DISPATCHER_PLAN_PUBLISHED,
            P.DISPATCHER_TASKS_PUBLISHED,
            P.DISPATCHER_PROMPT_DONE,
        )
    ),
    Case((P.DISPATCHER_ROUND_DONE,), BEST),
    Case((P.REMOTE_SENT,), VOTE),
    Case((P.REMOTE_CALLED,), MERGE),
    Case((P.REMOTE_PAUSED,), submitting("flaky", 1)),
    Case((P.REMOTE_SENT, P.REMOTE_TAKEN_OVER), VOTE),
    Case((P.REMOTE_CALLED, P.REMOTE_TAKEN_OVER), VOTE),
    Case((P.WORKER_PIECE_PUBLISHED,), stream),
    *(Case((point,), BEST) for point in (P.WORKER_ANSWERED, P.WORKER_PUBLISHED, P.WORKER_DONE)),
    *(
        Case((point,), EDGE_ONLY, tier="edge")
        for point in (P.WORKER_ANSWERED, P.WORKER_PUBLISHED, P.WORKER_DONE)
    ),
    Case((P.JUDGE_LOADED,), VOTE),
    Case((P.JUDGE_STORED,), BEST),
    Case((P.JUDGE_COMMITTED,), BEST),
    Case((P.JUDGE_ANNOUNCED,), MERGE),
    Case((P.JUDGE_PUBLISHED,), MERGE),
    Case((P.JUDGE_COMMITTED, P.JUDGE_REPEATS_READ), BEST),
    Case((P.JUDGE_TIMER_SET,), TIMED),
    Case((P.JUDGE_TIMER_DONE,), TIMED),
    Case((P.JUDGE_SWEPT,), miss_deadline),
    Case((P.LOOP_ACKNOWLEDGED,), BEST),
    *(
        Case((point,), erase, is_command=True)
        for point in (
            P.ERASE_ENTERED,
            P.ERASE_STREAM_ERASED,
            P.ERASE_MESSAGES_ERASED,
            P.ERASE_FUSIONS_ERASED,
            P.ERASE_ROWS_ERASED,
            P.ERASE_FILES_REWRITTEN,
        )
    ),
]
OF_SITES = {P.FORWARDER_FORWARDED}
FEW = [
    Case((P.INGEST_COMMITTED,), VOTE),
    Case((P.DISPATCHER_TASKS_PUBLISHED,), VOTE),
    Case((P.REMOTE_CALLED,), VOTE),
    Case((P.JUDGE_COMMITTED,), BEST),
]
"""The guards that all others rest on: committed before told, the ledger, marks in SQL."""


def test_each_point_has_a_case() -> None:
    points = {point for case in CASES for point in case.points}

    assert points | OF_SITES == set(CrashPoint)


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    command = [sys.executable, "-m", "fusewire.testing.model_server", "--port", "0"]
    with background(command, cwd=Path.cwd()) as process:
        until(lambda: process.stdout.endswith("\n"), "the fake's port")
        yield FakeServer(json.loads(process.stdout)["port"])


@pytest.fixture(scope="module", params=["sqlite", "postgresql"] if ROUNDS else ["sqlite"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, server: FakeServer
) -> Iterator[CrashStack]:
    folder = tmp_path_factory.mktemp("crash")
    models = "".join(
        f'[models.{name}]\nkind = "remote"\nbase_url = "{server.base_url}"\nmodel = "{name}"\n'
        "images = true\n"
        for name in REMOTE
    )
    if ROUNDS:
        models += EDGE.format(folder=request.getfixturevalue("tiny_folder"))
    (folder / "fusewire.toml").write_text(CONFIG.format(models=models))
    with contextlib.ExitStack() as resources:
        postgres = None
        if request.param == "postgresql":
            postgres = resources.enter_context(PostgresServer())
        yield resources.enter_context(crash_stack(bare(folder), server, postgres))


def label(cases: list[Case]) -> str:
    return ",".join(map(str, cases))


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(max(1, ROUNDS)))
@pytest.mark.parametrize("cases", [[case] for case in CASES] if ROUNDS else [FEW], ids=label)
async def test_whatever_point_is_reached_nothing_is_lost_or_done_twice(
    stack: CrashStack, cases: list[Case], turn: int
) -> None:
    stack.script(MODELS)
    points = [point for case in cases for point in case.points]
    stack.plant(points)

    crash = asyncio.create_task(stack.crash(points, is_command=cases[0].is_command))
    results = await asyncio.gather(*(case.scenario(stack) for case in cases))
    names = [name for result in results for name in result]
    figures = await stack.figures(names, await crash)

    # What failed costs nothing, and is called again.
    repeats = Counter({key: count for key, count in figures.repeats.items() if key[1] != "flaky"})
    report(stack, cases, names, figures)
    assert sorted(figures.outcomes) == sorted(names), "each prompt was stored once, and has ended"
    assert {len(keys) for keys in figures.outcomes.values()} == {1}, figures
    assert set(figures.announcements.values()) == {1}, "each end is announced once"
    assert repeats <= figures.marks, "calls made again that nobody was told of"
    assert max(figures.calls.values(), default=0) <= 2, figures
    if not any(case.may_repeat for case in cases):
        assert (repeats, figures.marks) == ({}, {}), "a call made again without need"


def report(stack: CrashStack, cases: list[Case], names: Names, figures: CrashResult) -> None:
    """Add the figures of a kill to the report."""
    if not REPORT:
        return
    ended = [key for keys in figures.outcomes.values() for key in keys]
    line = {
        "point": label(cases),
        "database": stack.database.partition("+")[0],
        "taken": True,
        "prompts": len(names),
        "lost": len(set(names) - figures.outcomes.keys()),
        "duplicate_outcomes": len(ended) - len(figures.outcomes)
        + sum(count - 1 for count in figures.announcements.values()),
        "paid_calls": figures.calls.total(),
        "paid_duplicates": figures.repeats.total(),
        "marked": figures.marks.total(),
        "recovery_s": figures.first_end and round(figures.first_end, 2),
    }  # fmt: skip
    with Path(REPORT).open("a") as file:
        file.write(json.dumps(line) + "\n")
