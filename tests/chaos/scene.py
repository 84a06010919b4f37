"""One run of a stack under load and faults: what stands where, what is asked, what is written down.

Everything is real but the hosted models, which are the fake server's. The stack is a `fusewire up
--processes`; keys are required, and there are four tenants: one with a budget that does not last,
one whose content must stay at the edge.
"""

import asyncio
import contextlib
import functools
import itertools
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
from sqlalchemy import text

from fusewire.settings import Database, Nats
from fusewire.store.engine import Store
from fusewire.testing.chaos import Fault, StackParts, StackProcess
from fusewire.testing.command_line import Cli, Command, FakeServer, background, bare
from fusewire.testing.eventually import eventually, until
from fusewire.testing.history import (
    Acceptance,
    AccountCost,
    BatchLines,
    History,
    LeakCheck,
    QueueCount,
)
from fusewire.testing.link import Link
from fusewire.testing.model_script import Fault as ModelFault
from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.nats_accounts import embedded_broker
from fusewire.testing.nats_cluster import NatsCluster
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import PostgresServer
from fusewire.testing.stack_events import (
    Watch,
    control,
    model_calls,
    occurrences,
    queue_counts,
    queue_details,
    stored_events,
)
from fusewire.testing.tiny_gguf import write_gguf
from fusewire_cli.client import ApiError, Client
from fusewire_worker_edge.importers.convert import import_model

CANARY = "zebracanary78"
"""In prompts that must stay at the edge, and in no other."""
TENANTS = ("acme", "other", "small", "house")
SHARES = (0.55, 0.25, 0.1, 0.1)
MODES = ("best-of", "merge", "debate")
MODE_SHARES = (0.7, 0.2, 0.1)
EDGE_ONLY_SHARE = 0.1
BATCH_SHARE = 0.15
BUDGET_USD = 0.02
DEADLINE_S = 60
"""Of each prompt: whoever hangs is waited for so long at most."""
END_S = 240.0
"""How long the last prompts may take after the last fault, and streams to become empty."""
MOST_OPEN = 60
"""Prompts that are under way; more wait until the stack has caught up."""
PACE_S = 45.0
"""How long the next fault waits for the recovery from most of them."""
CYCLE = 97
"""After so many calls of a model its faults begin again: a prime, to meet all prompts."""
MODEL_FAULTS: dict[int, ModelFault] = {
    3: ModelFault(kind="rate_limited", headers={"retry-after": "1"}),
    17: ModelFault(kind="server_error"),
    29: ModelFault(kind="truncate"),
    41: ModelFault(kind="stream_close", tokens=2),
    53: ModelFault(kind="garbage"),
    61: ModelFault(kind="content_policy"),
    73: ModelFault(kind="overloaded"),
    89: ModelFault(kind="hang"),
}

Kind = Literal["embedded", "server", "cluster"]


@dataclass(frozen=True)
class Scene:
    """What stands, and what befalls it.

    Attributes:
        broker: `embedded` is the runner's own; `server` one of the test's behind a link; `cluster`
            three.
        is_postgres: behind a link where the broker is not the runner's own.
        env: of the stack, such as what makes its clock another one.
        clock: the file that libfaketime reads.
        disks: small file systems for the broker's store or the database.
    """

    name: str
    prompts: int
    faults: Sequence[Fault]
    seed: int
    broker: Kind = "embedded"
    is_postgres: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    clock: Path | None = None
    disks: Mapping[str, Path] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The faults' schedule is over after so long, and the load with it."""
        return max((fault.at_s + fault.for_s for fault in self.faults), default=0.0) + 2


@dataclass(frozen=True)
class Stack:
    """A stack that runs."""

    cli: Cli
    command: Command
    url: str
    nats: Nats
    database: str
    models: FakeServer
    keys: Mapping[str, str]
    victim: StackProcess
    logs: Sequence[Path]


def script(models: Sequence[str]) -> Script:
    """Models that answer after a third of a second, and now and then do not."""
    cycle = tuple(MODEL_FAULTS.get(index, ModelFault(kind="none")) for index in range(CYCLE))
    return Script(
        models={
            name: ModelScript(
                latency_ms=300,
                latency_sigma=0.5,
                faults=cycle[shift:] + cycle[:shift],
                repeat_faults=True,
            )
            for name, shift in zip(models, range(0, CYCLE, 11), strict=False)
        },
        recording=True,
    )


def configuration(models: int, nats: str, database: str, edge: Path, disk: Path | None) -> Any:
    hosted = {"kind": "remote", "base_url": f"http://127.0.0.1:{models}/v1"}
    prices = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 4}
    # A small cache, which is soon full: until then the engine's process grows with each prompt.
    cache = {"kv_cache_mb": 16}
    edge_model = {"kind": "edge", "path": str(edge), "threads": 1, "max_tokens": 12, **cache}
    return {
        "log": {"level": "warning"},
        "http": {"port": 0, "keys": "required"},
        "console": {"enabled": False},
        "nats": {"url": nats},
        "database": {"url": database},
        # Shorter than most calls: a worker that is told to stop leaves some to the next.
        "limits": {"call_drain_s": 0.2, "drain_s": 5, "batch_window": 32},
        "models": {
            **{name: {**hosted, "model": name, "max_tokens": 100, **prices} for name in "abcj"},
            "tiny": edge_model,
        },
        "pools": {
            "default": {
                "members": ["a", "b", "c", "tiny"],
                "judge": "j",
                "deadline_s": DEADLINE_S,
                "batch_deadline_s": 4 * DEADLINE_S,
                "debate_rounds": 1,
            }
        },
        "tenants": {
            "small": {"budget_usd": BUDGET_USD, "budget_period": "total"},
            "house": {"residency": "edge-only"},
        },
    } | ({"data_dir": str(disk)} if disk else {})


@contextmanager
def model_server() -> Iterator[FakeServer]:
    command = [sys.executable, "-m", "fusewire.testing.model_server", "--port", "0"]
    with background(command, cwd=Path.cwd()) as process:
        until(lambda: process.stdout.endswith("\n"), "the fake's port")
        yield FakeServer(json.loads(process.stdout)["port"])


def edge_model(folder: Path) -> Path:
    """A model with random weights: its answers mean nothing, and it is a real one else."""
    file, model = folder / "tiny.gguf", folder / "tiny"
    types = {"token_embd": "Q8_0", "": "Q4_1"}
    write_gguf(file, types, is_tied=True, metadata={}, drop="", add="")
    import_model(file, model)
    return model


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


@asynccontextmanager
async def running(scene: Scene, folder: Path) -> AsyncIterator[Stack]:
    """The stack of a scene; it has ended with all that belongs to it after the block."""
    data = folder / ".fusewire"
    async with AsyncExitStack() as stack:
        models = stack.enter_context(model_server())
        control(models.port, "script", script("abcj").model_dump_json().encode())
        links = {"models": await stack.enter_async_context(Link(models.port, seed=scene.seed))}
        nats = "embedded"
        broker: NatsCluster | NatsServer | None = None
        if scene.broker == "cluster":
            nodes = await stack.enter_async_context(NatsCluster(folder / "nats"))
            broker, nats = nodes, nodes.url
        elif scene.broker == "server":
            server = broker = await stack.enter_async_context(NatsServer(folder / "nats"))
            links["nats"] = await stack.enter_async_context(Link(port_of(server.url)))
            nats = f"nats://127.0.0.1:{links['nats'].port}"
        postgres = stack.enter_context(PostgresServer()) if scene.is_postgres else None
        database_file = scene.disks.get("database", data) / "fusewire.db"
        url = direct = f"sqlite+aiosqlite:///{database_file}"
        if postgres:
            url = direct = postgres.url()
            if scene.broker == "server":
                links["database"] = await stack.enter_async_context(Link(port_of(direct)))
                url = direct.replace(f":{port_of(direct)}/", f":{links['database'].port}/")
        config = configuration(
            links["models"].port, nats, url, edge_model(folder), scene.disks.get("nats-server")
        )
        config["nats"]["replicas"] = 3 if scene.broker == "cluster" else 1
        data = Path(config.get("data_dir", data))
        (folder / "fusewire.json").write_text(json.dumps(config))
        cli = bare(folder, FUSEWIRE_CONFIG=str(folder / "fusewire.json"), **scene.env)
        keys = await make_keys(cli)
        command, run_file = await start(cli, stack), data / "up.json"
        if not run_file.exists():
            # As whoever supervises it would, where a database was not there within 5 s.
            command = await start(cli, stack)
        assert run_file.exists(), f"the stack did not start: {command.stderr[-3000:]}"
        told = json.loads(run_file.read_text())
        parts = StackParts(broker, links, scene.clock, scene.disks, random.Random(scene.seed))
        victim = StackProcess(command.pid, data, postgres, parts)
        queues = Nats(url=broker.url) if broker else embedded_broker(data)
        logs = [data, folder / "nats"]
        yield Stack(cli, command, told["url"], queues, direct, models, keys, victim, logs)


async def start(cli: Cli, stack: AsyncExitStack) -> Command:
    """Start a stack; returns when it runs, or has ended."""
    command = stack.enter_context(cli.start("up", "--processes"))
    await eventually(lambda: "Services  " in command.stdout or command.returncode is not None)
    return command


async def output_of(cli: Cli, *arguments: str) -> str:
    """Run a command to its end; the event loop, in which the links live, goes on."""
    with cli.start(*arguments) as command:
        await eventually(lambda: command.returncode is not None)
        assert command.returncode == 0, command.stderr
        return command.stdout


async def make_keys(cli: Cli) -> dict[str, str]:
    await output_of(cli, "db", "upgrade")
    keys = {}
    for tenant in TENANTS:
        told = await output_of(
            cli, "keys", "create", "--tenant", tenant, "--name", "chaos", "--json"
        )
        keys[tenant] = json.loads(told)["key"]
    return keys


# -- the load ---------------------------------------------------------------------------------


class Load:
    """Clients of all tenants, which submit prompts until each is accepted or refused for good."""

    def __init__(self, scene: Scene, history: History) -> None:
        self._scene = scene
        self._history = history
        self._rng = random.Random(scene.seed)
        self._open: set[asyncio.Task[None]] = set()
        self.refused: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    async def run(
        self, clients: Mapping[str, Client], watches: Mapping[str, Watch], faults: asyncio.Event
    ) -> None:
        """Submit the prompts of a scene, evenly over its time, and more until `faults` are over."""
        pause = self._scene.seconds / self._scene.prompts
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                if number >= self._scene.prompts and faults.is_set():
                    return
                await asyncio.sleep(pause)
                await eventually(lambda: self._has_room(watches), timeout_s=2 * END_S)
                (tenant,) = self._rng.choices(TENANTS, SHARES)
                body = self._body(f"q{number:05}", tenant)
                task = group.create_task(
                    self._submit(clients[tenant], watches[tenant], tenant, body)
                )
                self._open.add(task)
                task.add_done_callback(self._open.discard)

    def _has_room(self, watches: Mapping[str, Watch]) -> bool:
        watched = sum(watch.open_count for watch in watches.values())
        return len(self._open) + watched <= MOST_OPEN

    def _body(self, name: str, tenant: str) -> dict[str, Any]:
        is_secret = tenant == "house" or self._rng.random() < EDGE_ONLY_SHARE
        (mode,) = self._rng.choices(MODES, MODE_SHARES)
        subject = CANARY if is_secret else "weather"
        body = {"custom_id": name, "mode": mode, "prompt": f"What is {name} to the {subject}?"}
        # The tenant's own rule is enough for one of them.
        return body | ({"residency": "edge-only"} if is_secret and tenant != "house" else {})

    async def _submit(
        self, client: Client, watch: Watch, tenant: str, body: dict[str, Any]
    ) -> None:
        while True:
            try:
                fusion = (await client.submit(body))["id"]
            except ApiError as error:
                if error.status < 500 and error.code != "rate_limited":
                    self.refused[error.code] += 1
                    return
                self.errors[error.code] += 1
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self.errors[type(error).__name__] += 1
            else:
                break
            await asyncio.sleep(0.2)
        residency = "edge-only" if CANARY in body["prompt"] else "any"
        self._history.add(Acceptance(time.time(), fusion, body["custom_id"], tenant, residency))
        watch.add(fusion)


async def run_batch(stack: Stack, lines: int) -> BatchLines:
    """Run a batch through all that happens; returns its input's and its output's order."""
    folder = stack.cli.folder
    names = [f"b{number:05}" for number in range(lines)]
    rows = [{"custom_id": name, "prompt": f"What is {name} to the sea?"} for name in names]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli = Cli(folder, {**stack.cli.env, "FUSEWIRE_API_KEY": stack.keys["other"]})
    output = folder / "out.jsonl"
    arguments = ["batch", "run", "in.jsonl", "-o", "out.jsonl", "--output-format", "outcome"]
    for _ in range(10):
        with cli.start(*arguments) as command:
            await eventually(functools.partial(has_ended, command), timeout_s=3 * END_S)
            stderr = command.stderr
        resumable = re.search(r"fusewire batch resume (\S+)", stderr)
        if command.returncode == 0 or not resumable:
            break
        arguments = ["batch", "resume", resumable[1], "-o", "out.jsonl"]
    read = [json.loads(line)["custom_id"] for line in output.read_text().splitlines()]
    if read != names:
        sys.stderr.write(f"the batch ended with: {stderr[-1500:]}\n")
    return BatchLines(time.time(), "batch", tuple(names), tuple(read))


def has_ended(command: Command) -> bool:
    return command.returncode is not None


# -- a whole run ------------------------------------------------------------------------------


async def perform(scene: Scene, folder: Path, history: History, log: Path) -> dict[str, Any]:
    """Run a scene, and keep the stack's log; returns what is no event."""
    async with running(scene, folder) as stack, AsyncExitStack() as clients_stack:
        clients_stack.callback(lambda: log.write_text(stack.command.stderr))
        clients = {
            tenant: await clients_stack.enter_async_context(Client(stack.url, key))
            for tenant, key in stack.keys.items()
        }
        watches = {tenant: Watch(client, history) for tenant, client in clients.items()}
        load, are_all_accepted = Load(scene, history), asyncio.Event()
        batch = asyncio.create_task(run_batch(stack, max(2, int(scene.prompts * BATCH_SHARE))))
        watching = [asyncio.create_task(watch.run(are_all_accepted)) for watch in watches.values()]
        are_faults_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(clients, watches, are_faults_over))
            await stack.victim.befall_all(scene.faults, history, pace_s=PACE_S)
            are_faults_over.set()
        are_all_accepted.set()
        _, late = await asyncio.wait(watching, timeout=END_S)
        for task in late:
            task.cancel()
        history.add(await batch)
        for watch in watches.values():
            if watch.final:
                await watch.look_again()
        await note_end(stack, history)
        assert stack.command.returncode is None, stack.command.stderr[-3000:]
    statuses = Counter(
        str(final["status"]) for watch in watches.values() for final in watch.final.values()
    )
    return {
        "schedule": [asdict(fault) for fault in scene.faults],
        "statuses": statuses,
        "unfinished": sum(watch.open_count for watch in watches.values()),
        "refused": load.refused,
        "errors_seen_by_clients": load.errors,
        "load_average": os.getloadavg(),
    }


async def note_end(stack: Stack, history: History) -> None:
    """Write down all that can be read when nothing is under way any more."""
    with contextlib.suppress(AssertionError):
        await eventually(lambda: are_empty(stack.nats), timeout_s=END_S)
    counts = await queue_counts(stack.nats)
    history.add(*counts)
    if any(event.count for event in counts if isinstance(event, QueueCount)):
        sys.stderr.write("left: " + "\n".join(await queue_details(stack.nats)) + "\n")
    store = Store(Database(url=stack.database))
    try:
        history.add(*await stored_events(store))
        async with store.read() as connection:
            lines = await connection.execute(
                text("SELECT fusion_id, custom_id FROM prompts WHERE batch_id IS NOT NULL")
            )
            # Of what a batch holds nobody was shown a state: its file is what its client gets.
            history.add(*(Acceptance(time.time(), fusion, name) for fusion, name in lines))
    finally:
        await store.close()
    recorded = json.loads(control(stack.models.port, "stats"))["recorded"]
    history.add(*model_calls(recorded))
    for row in json.loads(await output_of(stack.cli, "budget", "show", "--json")):
        history.add(AccountCost(time.time(), row["account"], row["spent_usd"], row["limit_usd"]))
    places = {
        "bytes received by the hosted models": control(stack.models.port, "received"),
        "logs": (stack.command.stderr + stack.command.stdout).encode(),
        "logs of the broker": contents(stack.logs, "nats.log"),
        "files of FW_TASK_REMOTE": contents(stack.logs, "streams/FW_TASK_REMOTE/**/*"),
        "files of the ledger": contents(stack.logs, "streams/KV_fw_calls/**/*"),
    }
    for place, hits in occurrences(CANARY, places).items():
        history.add(LeakCheck(time.time(), place, len(places[place]), hits))


def contents(folders: Sequence[Path], pattern: str) -> bytes:
    """The bytes of all files that match, below any of the folders."""
    paths = {path for folder in folders for path in folder.rglob(pattern) if path.is_file()}
    return b"".join(path.read_bytes() for path in paths)


async def are_empty(nats: Nats) -> bool:
    return not any(e.count for e in await queue_counts(nats) if isinstance(e, QueueCount))
