"""In-memory set of cancelled fusion ids, fed by `fw.cancel.*`."""

from collections import OrderedDict
from collections.abc import Callable

from nats.aio.msg import Msg

from fusewire.bus import Bus
from fusewire.topology import cancel_subject

REMEMBERED = 100_000


class CancelledFusions:
    """The newest cancelled fusions.

    Cancellations come on core NATS and may be lost. A worker that misses one makes a call that
    nobody reads; the judge uses the mark in SQL and ends the fusion all the same
    (docs/decisions/0019).
    """

    def __init__(self, on_cancel: Callable[[str], None] | None = None) -> None:
        self._fusion_ids: OrderedDict[str, None] = OrderedDict()
        self._on_cancel = on_cancel

    def __contains__(self, fusion_id: str) -> bool:
        return fusion_id in self._fusion_ids

    async def listen(self, bus: Bus) -> None:
        """Subscribe; call after `bus.connect`.

        On return the server knows the subscription, if it answers.
        """
        await bus.client.subscribe(cancel_subject("*"), cb=self._on_message)
        await bus.confirm_subscriptions()

    async def _on_message(self, msg: Msg) -> None:
        self.add(msg.subject.rpartition(".")[2])

    def add(self, fusion_id: str) -> None:
        """Add a fusion, and call `on_cancel`."""
        self._fusion_ids[fusion_id] = None
        # One that is forgotten costs a call that nobody reads, no more.
        if len(self._fusion_ids) > REMEMBERED:
            self._fusion_ids.popitem(last=False)
        if self._on_cancel:
            self._on_cancel(fusion_id)
