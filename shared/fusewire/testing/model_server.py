"""A fake of hosted models' servers over a real socket, for tests and benchmarks only.

In a process of its own: `python -m fusewire.testing.model_server --port 0 --script script.json`
prints `{"port": N}` on one line and serves until SIGTERM. In process: `async with
ModelServer(script)`.

| route | does |
|---|---|
| `POST …/chat/completions` | answers or fails by the script, as an OpenAI-compatible server |
| `POST /mistral/…/chat/completions` | the same as Mistral's |
| `POST /deepseek/…/chat/completions` | the same as DeepSeek's |
| `POST …/messages` | the same as Anthropic's |
| `POST …/models/<model>:generateContent`, `:streamGenerateContent` | the same as Gemini's |
| `GET /_control/stats` | counts, times of first tokens; with recording on, the requests too |
| `GET /_control/received` | with recording on, every byte that arrived |
| `POST /_control/script` | replaces the script and clears the counts |

Whoever asks for a stream gets one, a token at a time. Written on `asyncio.Protocol`, so that a
benchmark measures its client and not this.
"""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from fusewire.testing.model_connection import Connection, ServerState
from fusewire.testing.model_script import Script


class ModelServer(ServerState):
    """The server; an asynchronous context manager. Models are configured with its `base_url`."""

    def __init__(
        self, script: Script | None = None, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._host = host
        self._port = port
        self._server: asyncio.Server | None = None
        super().__init__(script or Script())

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._server is None:
            raise RuntimeError("not started")
        return cast("int", self._server.sockets[0].getsockname()[1])

    @property
    def base_url(self) -> str:
        """Such as `http://127.0.0.1:40123/v1`.

        For all protocols but Mistral's and DeepSeek's, whose paths are also OpenAI's.
        """
        return f"http://{self._host}:{self.port}/v1"

    def base_url_of(self, provider: str) -> str:
        """The address for a provider's protocol."""
        return (
            self.base_url.replace("/v1", f"/{provider}/v1")
            if provider in ("mistral", "deepseek")
            else self.base_url
        )

    async def wait_for_requests(self, requests: int) -> None:
        """Wait until so many chat requests have arrived since the script was set."""
        while self.stats.requests < requests:
            self.arrival.clear()
            await self.arrival.wait()

    async def start(self) -> None:
        """Begin to listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self, loop), self._host, self._port
        )

    async def stop(self) -> None:
        """Stop listening and drop every connection, answered or not."""
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.abort()
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()


async def _serve(script: Script, host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with ModelServer(script, host=host, port=port) as server:
        sys.stdout.write(json.dumps({"port": server.port}) + "\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Serve in a process of its own."""
    parser = argparse.ArgumentParser(
        prog="fusewire.testing.model_server", description="A fake model server."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--script", type=Path, help="a JSON file; it may also be posted later")
    parser.add_argument(
        "--latency-ms", type=float, default=0.0, help="of every model, where no script is given"
    )
    options = parser.parse_args()
    if options.script:
        script = Script.model_validate_json(options.script.read_bytes())
    else:
        script = Script.of(latency_ms=options.latency_ms)
    asyncio.run(_serve(script, options.host, options.port))


if __name__ == "__main__":
    main()
