"""Runs a batch through containers of all images, a real NATS and a real PostgreSQL."""

import asyncio
import contextlib
import json
import os
import socket
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from containers import CheckError, Container, Store
from images import SERVICES

from fusewire.testing.command_line import write_lines
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import PostgresServer
from fusewire.testing.tiny_gguf import write_gguf
from fusewire_worker_edge.importers.convert import import_model

LINES = 200
MEMBERS = ("large", "small", "tiny")
_USER = 10001
_PATIENCE_S = 240.0


@dataclass
class Stack:
    """The containers of one run, and what they need."""

    store: Store
    folder: Path
    env: dict[str, str]
    containers: dict[str, Container] = field(default_factory=dict)

    async def tools(self, *args: str, **env: str) -> str:
        """Run the `fusewire` command to its end; returns what it prints.

        Raises:
            CheckError: its exit code is not 0.
        """
        container = await self._start("tools", *args, **env)
        code = await container.end(_PATIENCE_S)
        if code:
            raise CheckError(f"fusewire {' '.join(args)}: exit {code}\n{container.last_lines()}")
        container.remove()
        return container.output

    async def start_service(self, service: str, port: int, **env: str) -> None:
        """Start a service, and wait until it is ready and healthy."""
        container = await self._start(service, FUSEWIRE_HTTP__OPERATIONS_PORT=str(port), **env)
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE_S
        while not await asyncio.to_thread(_answers, f"http://127.0.0.1:{port}/readyz"):
            if container.process.returncode is not None or loop.time() > until:
                raise CheckError(f"{service} is not ready:\n{container.last_lines()}")
            await asyncio.sleep(0.2)
        if not await asyncio.to_thread(container.is_healthy):
            raise CheckError(f"{service} is ready, and its HEALTHCHECK fails")

    async def _start(self, image: str, *args: str, **env: str) -> Container:
        container = await self.store.start(
            f"localhost/fusewire-{image}",
            *args,
            env={**self.env, **env},
            mounts=[
                f"{self.folder}/etc:/etc/fusewire:ro",
                f"{self.folder}/models:/models:ro",
                f"{self.folder}/batch:/batch",
            ],
            log=self.folder / f"{image}-{len(self.containers)}.log",
        )
        self.containers[f"{image} {' '.join(args)}"] = container
        return container

    async def stop(self) -> None:
        """Stop the services, each of which must end well."""
        for name, container in self.containers.items():
            if (code := await container.stop()) != 0:
                raise CheckError(f"{name} was told to stop: exit {code}\n{container.last_lines()}")


@contextlib.asynccontextmanager
async def _running(store: Store, folder: Path) -> AsyncIterator[Stack]:
    """NATS, PostgreSQL, a fake of hosted models, and a stack that is to be started on them."""
    for name in ("etc", "models", "batch", "nats"):
        (folder / name).mkdir()
    os.chown(folder / "batch", _USER, _USER)
    with PostgresServer() as postgres:
        async with NatsServer(folder / "nats") as nats, ModelServer() as models:
            _configure(folder, models.base_url)
            stack = Stack(
                store,
                folder,
                {
                    "FUSEWIRE_NATS__URL": nats.url,
                    "FUSEWIRE_DATABASE__URL": postgres.url(),
                    "FUSEWIRE_HTTP__HOST": "127.0.0.1",
                    "FUSEWIRE_HTTP__KEYS": "required",
                    "FUSEWIRE_KEY_PEPPER": os.urandom(16).hex(),
                },
            )
            try:
                yield stack
            finally:
                for container in stack.containers.values():
                    container.remove()


def _configure(folder: Path, base_url: str) -> None:
    remote = {"kind": "remote", "base_url": base_url}
    models = {
        "large": {**remote, "model": "large"},
        "small": {**remote, "model": "small"},
        "tiny": {"kind": "edge", "path": "/models/tiny", "max_tokens": 8},
    }
    # All are waited for, so that a batch that ends well has been through every service.
    members = [{"name": name, "model": name, "required": True} for name in MEMBERS]
    config = {"models": models, "pools": {"default": {"members": members}}}
    (folder / "etc" / "fusewire.json").write_text(json.dumps(config))
    write_gguf(
        folder / "tiny.gguf",
        {"token_embd": "Q8_0", "": "Q4_1"},
        is_tied=True,
        metadata={},
        drop="",
        add="",
    )
    import_model(folder / "tiny.gguf", folder / "models" / "tiny")


async def run_batch(store: Store, folder: Path) -> None:
    """Start everything, run the batch, and check what came of it; prints what it does.

    Raises:
        CheckError: something is not as it must be.
    """
    async with _running(store, folder) as stack:
        await stack.tools("db", "upgrade")
        await stack.tools("topology", "apply")
        key = await stack.tools("keys", "create", "--tenant", "default", "--name", "image-check")
        port, console_port, *operations_ports = _free_ports(2 + len(SERVICES))
        url = f"http://127.0.0.1:{port}"
        stack.env |= {"FUSEWIRE_HTTP__PORT": str(port), "FUSEWIRE_CONSOLE__API_URL": url}
        for service, operations_port in zip(SERVICES, operations_ports, strict=True):
            # They share the host's network.
            own_port = console_port if service == "console" else port
            await stack.start_service(service, operations_port, FUSEWIRE_HTTP__PORT=str(own_port))
        print(f"{len(SERVICES)} services are ready and healthy", flush=True)
        names = write_lines(folder / "batch" / "in.jsonl", LINES)
        if not _answers(f"http://127.0.0.1:{console_port}/sign-in"):
            raise CheckError("the console asks nobody to sign in")
        await stack.tools(
            *("batch", "run", "/batch/in.jsonl", "--out", "/batch/out.jsonl", "--progress", "none"),
            FUSEWIRE_URL=url,
            FUSEWIRE_API_KEY=key.strip(),
        )
        _check_results(folder / "batch" / "out.jsonl", names)
        await _check_stored(stack)
        # On the host's network the API's port is ingest's, so that it cannot be free.
        await stack.tools("doctor", FUSEWIRE_HTTP__PORT="0")
        await stack.stop()
    print(f"a batch of {LINES} lines was answered by {', '.join(MEMBERS)}; all ended with 0")


def _check_results(file: Path, names: list[str]) -> None:
    results = [json.loads(line) for line in file.read_text().splitlines()]
    failures = [line for line in results if line["error"] or line["response"]["status_code"] != 200]
    if failures or [line["custom_id"] for line in results] != names:
        raise CheckError(
            f"of {len(names)} lines {len(results)} ended, {len(failures)} of them in an error"
        )


async def _check_stored(stack: Stack) -> None:
    sql = "select member, count(*) n from v_answer where error_code is null group by 1"
    text = await stack.tools("query", "--as-owner", "--format", "json", sql)
    counts = {row["member"]: row["n"] for row in json.loads(text)}
    if counts != dict.fromkeys(MEMBERS, LINES):
        raise CheckError(f"each member has {LINES} answers, but there are {counts}")


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]
