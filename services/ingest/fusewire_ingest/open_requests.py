"""Tracks which fusions have a client waiting, at this or another process of ingest."""

import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from fusewire.bus import Bus
from fusewire.topology import held_subject

ASK_S = 1.0
"""How long another process may take to answer whether a client waits there."""
_YES, _NO = b"1", b"0"


class OpenRequests:
    """The open requests of this process, and queries to other processes about theirs."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._open: Counter[str] = Counter()
        self.name = secrets.token_hex(8)
        """Name of this process; new at each start."""

    async def start(self) -> None:
        """Start to answer the queries of other processes."""
        await self._bus.client.subscribe(held_subject(self.name), cb=self._answer)

    @contextmanager
    def hold(self, fusion_id: str) -> Iterator[None]:
        """Note that a client waits for this fusion while the context is open."""
        self._open[fusion_id] += 1
        try:
            yield
        finally:
            self._open[fusion_id] -= 1
            # Removes the counts of zero.
            self._open += Counter()

    def is_held(self, fusion_id: str) -> bool:
        """Whether a client waits for a fusion at this process."""
        return self._open[fusion_id] > 0

    async def is_held_by(self, holder: str, fusion_id: str) -> bool:
        """Whether a client waits for a fusion at a process; False if that process no longer exists.

        True if the process does not answer: as two clients that wait at once, they get two fusions
        (docs/decisions/0018).
        """
        if holder == self.name:
            return self.is_held(fusion_id)
        try:
            reply = await self._bus.client.request(
                held_subject(holder), fusion_id.encode(), timeout=ASK_S
            )
        except NoRespondersError:
            return False
        except (NatsError, OSError, TimeoutError):
            return True
        return reply.data != _NO

    async def _answer(self, msg: Msg) -> None:
        await msg.respond(_YES if self.is_held(msg.data.decode(errors="replace")) else _NO)
