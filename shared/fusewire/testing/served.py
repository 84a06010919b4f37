"""For tests: a running `fusewire up`, and what may befall a client of it."""

import asyncio
import contextlib
import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusewire.contracts import Token
from fusewire.testing.command_line import FakeServer
from fusewire.testing.model_script import Script
from fusewire.testing.nats_accounts import connect
from fusewire.topology import token_subject


def code_of(error: object) -> str:
    """The code of an `error` object in our words; at OpenRouter's address `code` is the status."""
    assert isinstance(error, dict)
    return str(error.get("metadata", error)["code"])


@dataclass(frozen=True)
class RunningStack:
    """A running stack, and the fake models behind it."""

    url: str
    data_dir: Path
    server: FakeServer

    def script(self, script: Script) -> None:
        """Tell the models what to do; forgets what was counted."""
        self._control("script", script.model_dump_json().encode())

    def calls(self) -> dict[str, int]:
        """Calls by model."""
        return dict(json.loads(self._control("stats"))["by_model"])

    def requests(self, model: str) -> list[dict[str, Any]]:
        """The bodies of a model's requests, where the script has them recorded."""
        return [
            request["body"]
            for request in json.loads(self._control("stats"))["recorded"]
            if request["model"] == model
        ]

    def _control(self, what: str, body: bytes | None = None) -> bytes:
        address = f"http://127.0.0.1:{self.server.port}/_control/{what}"
        with urllib.request.urlopen(address, body, timeout=30) as response:
            reply: bytes = response.read()
        return reply

    def write(self, fusion_id: str, text: str) -> None:
        """Tell, as a worker does, that it has begun to write this."""

        async def publish() -> None:
            client = await connect(self.data_dir, "worker-remote")
            token = Token(fusion_id=fusion_id, round=1, call="write", offset=0, text=text)
            await client.publish(token_subject(fusion_id), token.encode())
            await client.drain()

        asyncio.run(publish())

    @contextlib.contextmanager
    def cutting(self, replies: int) -> Iterator[str]:
        """A proxy to the stack that loses the first replies when they come; yields its address."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(
                target=_cut, args=(listener, (host, int(port)), replies), daemon=True
            ).start()
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                # Closing alone would leave the thread in accept.
                listener.shutdown(socket.SHUT_RDWR)


def _cut(listener: socket.socket, server: tuple[str, int], replies: int) -> None:
    """Pass connections on, one after the other."""
    for number in range(1_000):
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, socket.create_connection(server) as upstream:
            asking = threading.Thread(target=_pass, args=(client, upstream), daemon=True)
            asking.start()
            first = upstream.recv(65_536)
            if number >= replies:
                client.sendall(first)
                _pass(upstream, client)
            for side in (client, upstream):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
            asking.join()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
