"""For tests: services as processes of their own, in any number, as in a cluster.

They share one configuration, one NATS and one database, which the test brings along.
"""

import itertools
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fusewire.testing.command_line import Cli, Command, background, bare
from fusewire.testing.eventually import eventually

SERVICES = ("judge", "worker-remote", "dispatcher", "ingest")
"""All but worker-edge, which needs a model's folder."""
DRAIN_S = 60.0
"""How long a replica that was told to stop may take."""


@dataclass(frozen=True)
class Replica:
    """One process of a service."""

    service: str
    command: Command

    def events(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        lines = self.command.stderr.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    @property
    def url(self) -> str:
        """Where it listens; empty until it has started."""
        for event in self.events():
            if event["event"] == "service.started":
                return f"http://127.0.0.1:{event['port']}"
        return ""

    async def ready(self) -> str:
        """Wait until it has started; returns its address.

        Raises:
            AssertionError: it has ended.
        """

        def look() -> str | int | None:
            return self.url or self.command.returncode

        result = await eventually(look)
        assert isinstance(result, str), f"{self.service} ended: {self.command.stderr[-2000:]}"
        return result

    def terminate(self) -> None:
        """Tell it to stop, as Kubernetes does."""
        self.command.send_signal(signal.SIGTERM)

    async def end(self) -> int:
        """Tell it to stop, and wait for its end; returns its exit code."""
        self.terminate()
        await eventually(lambda: self.command.returncode is not None, timeout_s=DRAIN_S)
        return self.command.wait(0)


class Replicas:
    """Starts replicas, each with an address of its own; a context manager that ends them all.

    Args:
        folder: where they run; the configuration is written there.
        config: the body of the configuration file.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        (folder / "fusewire.json").write_text(json.dumps(config))
        variables = {"CONFIG": str(folder / "fusewire.json"), "LOG__LEVEL": "info"}
        env = {f"FUSEWIRE_{name}": value for name, value in variables.items()}
        self.cli: Cli = bare(folder, **env, FUSEWIRE_HTTP__PORT="0")
        """The `fusewire` command with the same configuration."""
        self._stack = ExitStack()
        self._running: list[Replica] = []

    def start(self, service: str, **extra_env: str) -> Replica:
        """Start a replica; returns before it is ready."""
        module = f"fusewire_{service.replace('-', '_')}"
        command = background(
            [sys.executable, "-m", module],
            cwd=self.cli.folder,
            env={**self.cli.env, **extra_env},
        )
        replica = Replica(service, self._stack.enter_context(command))
        self._running.append(replica)
        return replica

    async def start_all(
        self, services: Sequence[str] = SERVICES, **extra_env: str
    ) -> dict[str, Replica]:
        """Start one replica of each; returns when all are ready."""
        replicas = {service: self.start(service, **extra_env) for service in services}
        for replica in replicas.values():
            await replica.ready()
        return replicas

    def faults(self) -> list[dict[str, Any]]:
        """What the replicas, those that have ended too, have logged as errors."""
        events = itertools.chain.from_iterable(replica.events() for replica in self._running)
        return [event for event in events if event.get("level") == "error"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Side by side: one after the other each would drain by itself.
        for replica in self._running:
            replica.terminate()
        self._stack.close()
