"""Which fusions nobody wants any more, as far as this process has heard."""

import contextlib
from collections import OrderedDict
from collections.abc import Callable

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from fusewire.bus import Bus
from fusewire.topology import cancel_subject

REMEMBERED = 100_000


class CancelledFusions:
    """The newest cancelled fusions.

    Heard on core NATS and kept in memory: whoever misses one makes a call that nobody reads, and the judge, which
    goes by the mark in SQL, ends the fusion all the same.
    """

    def __init__(self, on_cancel: Callable[[str], None] | None = None) -> None:
        self._known: OrderedDict[str, None] = OrderedDict()
        self._on_cancel = on_cancel

    def __contains__(self, fusion_id: str) -> bool:
        return fusion_id in self._known

    async def listen(self, bus: Bus) -> None:
        """Begin to listen; call after `bus.connect`. On return the server knows of it, if it answers."""
        await bus.client.subscribe(cancel_subject("*"), cb=self._heard)
        # The client sends a subscription later, with whatever comes next, and even its ping before it: only the second
        # ping is answered by a server that knows of the subscription.
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            await bus.client.flush()
            await bus.client.flush()

    async def _heard(self, msg: Msg) -> None:
        self.add(msg.subject.rpartition(".")[2])

    def add(self, fusion_id: str) -> None:
        """Note one, and tell whoever wants to know at once."""
        self._known[fusion_id] = None
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        if self._on_cancel:
            self._on_cancel(fusion_id)
