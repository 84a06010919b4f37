"""For tests: a client of NATS that sends what it is told to, and notes what the server says.

nats-py writes what is published and the PING of a flush in no fixed order, and its errors are in
lower case. Here what was refused is known for sure once the PONG has come.
"""

import asyncio
import base64
import contextlib
import json
import re
from collections import Counter
from types import TracebackType
from typing import NamedTuple, Self

import nkeys

from fusewire.testing.eventually import PATIENCE_S

_REFUSAL = re.compile(r'Permissions Violation for (Publish|Subscription) to "([^"]*)"')


class WireMessage(NamedTuple):
    """A message as it came."""

    subscription: str
    """The subject that was subscribed to."""
    subject: str
    data: bytes


class WireClient:
    """One connection; an asynchronous context manager.

    Attributes:
        refusals: what the server has refused, by `Publish` or `Subscription` and subject.
        messages: what it has sent.
    """

    def __init__(self, url: str, seed: str) -> None:
        host, _, port = url.removeprefix("nats://").rpartition(":")
        self._address = host, int(port)
        self._seed = seed
        self._subscriptions: list[str] = []
        self._pong = asyncio.Event()
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.messages: list[WireMessage] = []

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(*self._address, limit=2**20)
        info = json.loads((await self._reader.readline()).removeprefix(b"INFO "))
        key = nkeys.from_seed(bytearray(self._seed.encode()))
        signature = base64.urlsafe_b64encode(key.sign(info["nonce"].encode())).rstrip(b"=")
        options = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "nkey": key.public_key.decode(),
            "sig": signature.decode(),
        }
        self._write(f"CONNECT {json.dumps(options)}")
        self._reading = asyncio.create_task(self._read())
        await self.flush()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    def publish(self, subject: str, data: bytes = b"", reply: str = "") -> None:
        """Publish; seen by the server at the next `flush`."""
        self._write(" ".join(filter(None, ("PUB", subject, reply, str(len(data))))), data)

    def subscribe(self, subject: str, queue: str = "") -> None:
        """Subscribe; seen by the server at the next `flush`."""
        self._subscriptions.append(subject)
        number = str(len(self._subscriptions) - 1)
        self._write(" ".join(filter(None, ("SUB", subject, queue, number))))

    async def flush(self) -> None:
        """Wait until the server has seen all that was sent before, and its refusals are here."""
        self._pong.clear()
        self._write("PING")
        async with asyncio.timeout(PATIENCE_S):
            await self._pong.wait()
        if self._reading.done():
            raise ConnectionError("the server has closed the connection")

    def _write(self, line: str, data: bytes | None = None) -> None:
        self._writer.write(f"{line}\r\n".encode() + (b"" if data is None else data + b"\r\n"))

    async def _read(self) -> None:
        try:
            while line := (await self._reader.readline()).decode().strip():
                await self._take(line)
        finally:
            self._pong.set()

    async def _take(self, line: str) -> None:
        kind, _, rest = line.partition(" ")
        match kind:
            case "PING":
                self._write("PONG")
            case "PONG":
                self._pong.set()
            case "-ERR":
                for refusal in _REFUSAL.findall(rest):
                    self.refusals[refusal] += 1
            case "MSG" | "HMSG":
                subject, number, *sizes = rest.split()
                # With headers: their size, and that of all; a reply's subject may come first.
                header = int(sizes[-2]) if kind == "HMSG" else 0
                data = (await self._reader.readexactly(int(sizes[-1]) + 2))[header:-2]
                self.messages.append(WireMessage(self._subscriptions[int(number)], subject, data))
