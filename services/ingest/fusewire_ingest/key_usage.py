"""When API keys were last used, in SQL."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from fusewire.errors import Transient
from fusewire.tasks import BackgroundTasks
from fusewire_ingest.repository.keys import ApiKeys

log = structlog.get_logger(__name__)

WRITE_EVERY_S = 60.0
LEAST_APART = timedelta(seconds=50)
"""A use is not written where another replica has written one of so short a time ago. Less than
`WRITE_EVERY_S`, so that clocks which are not quite even skip no minute."""


class KeyUsage:
    """Collects which keys are used, and writes it every `WRITE_EVERY_S`, away from any request.

    The time that is written is that of the writing, so it is right to a minute or two.
    """

    def __init__(self, api_keys: ApiKeys, clock: Callable[[], datetime]) -> None:
        self._api_keys = api_keys
        self._clock = clock
        self._key_ids: set[str] = set()
        self._background = BackgroundTasks()

    def note(self, key_id: str) -> None:
        """A key was used now."""
        self._key_ids.add(key_id)

    def start(self) -> None:
        """Start to write."""
        self._background.start("ingest-key-usage", self._run())

    async def stop(self) -> None:
        """Stop, and write what is not yet written."""
        await self._background.stop()
        await self.write()

    def faults(self) -> list[str]:
        """Name the loop if it has ended."""
        return self._background.faults()

    async def write(self) -> None:
        """Write which keys were used since the last call."""
        key_ids, self._key_ids = self._key_ids, set()
        if not key_ids:
            return
        now = self._clock()
        try:
            await self._api_keys.note_use(key_ids, now, unless_since=now - LEAST_APART)
        except Transient as exc:
            # A use that is lost is found again with the next one.
            log.warning("ingest.key_usage_not_written", fault=str(exc))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.write()
