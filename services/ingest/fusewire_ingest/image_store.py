"""Large images of prompts: in SQL from when a request is read, in the broker's object store from when it is published.

SQL is what counts: a broker whose store was lost is given them again. Workers have no database, so they read the
broker's. What is of an edge-only prompt is never put there: no model at the edge sees images, and others may not.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from fusewire import image_refs
from fusewire.bus import Bus
from fusewire.contracts import Message, Prompt
from fusewire.errors import Transient
from fusewire.settings import Limits
from fusewire.topology import BLOB_STORE
from fusewire_ingest.refusal import RefusedError
from fusewire_ingest.repository.images import Images

log = structlog.get_logger(__name__)

TIDY_EVERY = timedelta(minutes=1)
IDLE = timedelta(minutes=1)
"""How long the broker keeps an image that no fusion waits for: its prompt may be about to be committed."""
WITHDRAWAL_S = 2.0
"""How long the broker may take to erase one: others wait for the database meanwhile."""


class ImageStore:
    """Where large images are while their prompts are worked on.

    Args:
        bus: the connection.
        images: the table.
        limits: how large they may be, and how long they stay.
        clock: the time now.
    """

    def __init__(self, bus: Bus, images: Images, limits: Limits, clock: Callable[[], datetime]) -> None:
        self._bus = bus
        self._images = images
        self._limits = limits
        self._clock = clock
        self._commit = asyncio.Lock()
        self._publication = asyncio.Lock()
        self._tidied_at: datetime | None = None

    async def put_aside(self, prompt: Prompt, written: int = 0) -> Prompt:
        """The prompt with references in place of its large images, which are committed.

        Args:
            prompt: it.
            written: bytes of the body that it came in; 0 where they are few enough without a look at its images.

        Raises:
            RefusedError: they are too large, or the rest is.
            Transient: they could not be committed.
        """
        messages, apart = image_refs.put_aside(prompt.tenant, prompt.messages)
        size, most = sum(map(len, apart.values())) * 3 // 4, self._limits.image_bytes
        if size > most:
            raise RefusedError(
                "prompt_too_large", f"its images have {size} bytes, the limit is {most}; raise limits.image_bytes"
            )
        rest, most = written - _chars(prompt.messages) + _chars(messages), self._limits.prompt_bytes
        if rest > most:
            raise RefusedError(
                "prompt_too_large",
                f"it has {rest} bytes besides its images, the limit is {most}; shorten it or raise limits.prompt_bytes",
            )
        if apart:
            # One after the other: they are large, and on SQLite each would wait with a limit of time for the others.
            async with self._commit:
                await self._images.add(prompt.tenant, apart, self._clock())
        return prompt.model_copy(update={"messages": messages})

    async def put_back(self, tenant: str, messages: Sequence[Message]) -> tuple[Message, ...]:
        """A stored conversation with its images.

        Raises:
            RefusedError: one has expired.
        """
        found: dict[str, str] = {}
        for name in image_refs.names(messages):
            data = await self._images.get(tenant, name)
            if data is None:
                raise RefusedError(
                    "invalid_request", "an image of the conversation so far is no longer kept; send the whole of it"
                )
            found[name] = data.decode()
        return image_refs.put_back(messages, found)

    async def publish(self, prompt: Prompt) -> None:
        """See that the broker has the prompt's images. Raises Transient."""
        if prompt.residency == "edge-only":
            return
        for name in image_refs.names(prompt.messages):
            # One after the other: each is whole in memory, and one that is put twice is gone for who reads the first.
            async with self._publication:
                await self._publish(prompt, name)

    async def _publish(self, prompt: Prompt, name: str) -> None:
        # Marked first: what may be there is always taken back.
        if not await self._images.mark_published(prompt.tenant, name, self._clock()):
            # The call that wants it fails, and says so.
            log.warning("ingest.image_expired", fusion_id=prompt.fusion_id)
            return
        blobs = self._bus.blobs(BLOB_STORE)
        if await blobs.has(name):
            return
        if data := await self._images.get(prompt.tenant, name):
            await blobs.put(name, data)

    async def erase(self, prompt: Prompt) -> int:
        """Erase the prompt's images everywhere; other prompts of the tenant that show them lose them too.

        Returns:
            How many there were.
        """
        names = image_refs.names(prompt.messages)
        erased = await self._images.remove(prompt.tenant, names) if names else 0
        for name in names:
            await self._bus.blobs(BLOB_STORE).delete(name)
        return erased

    async def tidy(self) -> None:
        """Take from the broker what no fusion waits for, and erase what is older than `limits.image_days`.

        Looks once a minute. Raises Transient.
        """
        now = self._clock()
        if self._tidied_at and now - self._tidied_at < TIDY_EVERY:
            return
        self._tidied_at = now
        withdrawn = 0
        while await self._images.withdraw_one(now - IDLE, self._withdraw):
            withdrawn += 1
        forgotten = await self._images.forget(now - timedelta(days=self._limits.image_days))
        if withdrawn or forgotten:
            log.info("ingest.images_tidied", withdrawn=withdrawn, forgotten=forgotten)

    async def _withdraw(self, name: str) -> None:
        try:
            async with asyncio.timeout(WITHDRAWAL_S):
                await self._bus.blobs(BLOB_STORE).delete(name)
        except TimeoutError:
            raise Transient("the broker does not erase an image") from None


def _chars(messages: Sequence[Message]) -> int:
    """Of all images, also of those that are shown twice."""
    return sum(len(image.url) for message in messages for image in message.images)
