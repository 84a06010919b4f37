"""How much waits on the bus, as the broker tells it."""

import asyncio
import itertools

from nats.errors import Error as NatsError
from nats.js.api import ConsumerInfo
from nats.js.errors import APIError

from fusewire.bus import Bus
from fusewire.errors import Transient
from fusewire.replies.console import QueueStatus
from fusewire.topology import CARRIERS, INGEST

STREAMS = (*CARRIERS, INGEST.stream)
"""Those that every prompt passes, and that of producers on the bus."""
WITHIN_S = 2.0
"""How long the broker may take."""
PAGE = 256
"""The most durables in a reply of the broker."""


class QueueReader:
    """Reads the lengths of all queues of tasks, prompts, rounds and candidates."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def read(self) -> list[QueueStatus]:
        """Ask the broker: by stream, then by the name of the durable.

        Raises:
            Transient: it does not answer within `WITHIN_S`, or has not all of the streams.
        """
        if not self._bus.is_connected:
            raise Transient("NATS does not answer")
        try:
            async with asyncio.timeout(WITHIN_S):
                by_stream = await asyncio.gather(*map(self._durables, STREAMS))
        except APIError as exc:
            raise Transient(f"NATS does not tell: {exc.description}") from None
        except (NatsError, TimeoutError, OSError):
            raise Transient(f"NATS does not answer within {WITHIN_S:g} s") from None
        return [_status(info) for info in itertools.chain.from_iterable(by_stream)]

    async def _durables(self, stream: str) -> list[ConsumerInfo]:
        durables: list[ConsumerInfo] = []
        while True:
            page = await self._bus.js.consumers_info(stream, offset=len(durables))
            durables += page
            if len(page) < PAGE:
                return sorted(durables, key=lambda info: info.name)


def _status(info: ConsumerInfo) -> QueueStatus:
    return {
        "stream": info.stream_name,
        "durable": info.name,
        "waiting": info.num_pending or 0,
        "in_flight": info.num_ack_pending or 0,
        "redelivered": info.num_redelivered or 0,
    }
