"""The door on the bus: producers that already live there leave prompts at `fw.in.<tenant>`."""

import re

from fusewire.bus import Delivery
from fusewire.contracts import NAME
from fusewire.errors import Unacceptable
from fusewire_ingest.admission import RefusedError
from fusewire_ingest.door import Door


class Intake:
    """Takes submissions from FW_IN. A refused one goes to FW_DEAD with the reason."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def handle(self, delivery: Delivery) -> None:
        """Commit one submission. Its custom_id, where it has none, is its Nats-Msg-Id or its place in the stream."""
        tenant = delivery.subject.rpartition(".")[2]
        if not re.match(NAME, tenant):
            raise Unacceptable(f"tenant '{tenant[:63]}' must be of a-z, 0-9, '-' and '_'")
        fallback = delivery.headers.get("Nats-Msg-Id") or f"{delivery.stream}-{delivery.sequence}"
        try:
            prompt = self._door.read(delivery.data, tenant=tenant, fallback_id=fallback)
            await self._door.submit(prompt, door="nats")
        except RefusedError as exc:
            raise Unacceptable(f"{exc.code}: {exc.message}") from None
