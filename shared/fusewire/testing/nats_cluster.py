"""A real NATS cluster of three servers on this machine, for tests only."""

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import nats
from nats.errors import Error as NatsError

from fusewire.testing.eventually import eventually
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import free_port

SIZE = 3
DOWN_S = 1.0
"""How long a server that was killed is away before it is started again, s."""

_CONFIG = """\
server_name: n{number}
jetstream {{
  store_dir: {store}
  max_file_store: 1TB
  sync_interval: always
}}
cluster {{
  name: fusewire
  listen: "127.0.0.1:{port}"
  routes: [{routes}]
}}
"""


class NatsCluster:
    """Three servers with JetStream, each with a store of its own; an asynchronous context manager.

    Args:
        folder: for what the servers write.
    """

    def __init__(self, folder: Path) -> None:
        ports = [free_port() for _ in range(SIZE)]
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in ports)
        self._stack = AsyncExitStack()
        self.servers: list[NatsServer] = []
        for number, port in enumerate(ports):
            home = folder / f"n{number}"
            home.mkdir(parents=True)
            config = home / "nats.conf"
            store = json.dumps(str(home / "store"))
            config.write_text(_CONFIG.format(number=number, store=store, port=port, routes=routes))
            self.servers.append(NatsServer(home, config))

    @property
    def url(self) -> str:
        """The address of one of them, which tells those of the others."""
        return self.servers[0].url

    async def leader(self, stream: str) -> NatsServer:
        """The server that leads a stream.

        Raises:
            AssertionError: none does for long.
        """

        async def look() -> str | None:
            leader = None
            try:
                client = await nats.connect(
                    [server.url for server in self.servers], connect_timeout=1,
                    allow_reconnect=False,
                )  # fmt: skip
            except (NatsError, OSError, TimeoutError):
                return None
            with contextlib.suppress(NatsError, TimeoutError):
                info = await client.jetstream(timeout=2).stream_info(stream)
                leader = info.cluster.leader if info.cluster else None
            await client.close()
            return leader

        name: str = await eventually(look)
        return self.servers[int(name.removeprefix("n"))]

    async def kill_leader(self, stream: str) -> None:
        """Kill the server that leads a stream; start it again after a moment."""
        server = await self.leader(stream)
        await server.kill()
        await asyncio.sleep(DOWN_S)
        await server.start()

    async def __aenter__(self) -> Self:
        # The first is not ready before it has a majority.
        for server in self.servers:
            await self._stack.enter_async_context(server)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
