"""Large images and texts of prompts, in SQL and in the broker's object store.

In SQL they are from when a request is read, in the broker's store from when it is published. SQL is what counts: a
broker whose store was lost is given them again. Workers have no database, so they read the broker's. What is of an
edge-only prompt is never put there: no model at the edge sees it, and others may not. Texts stand apart only where the
whole prompt is larger than `limits.prompt_bytes`.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from fusewire import references
from fusewire.bus import Bus
from fusewire.contracts import Message, Prompt
from fusewire.errors import Transient
from fusewire.settings import Limits
from fusewire.topology import BLOB_STORE
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.repository.images import Images

log = structlog.get_logger(__name__)

TIDY_EVERY = timedelta(minutes=1)
IDLE = timedelta(minutes=1)
"""How long the broker keeps one that no fusion waits for: its prompt may be about to be committed."""
WITHDRAWAL_S = 2.0
"""How long the broker may take to erase one: others wait for the database meanwhile."""


class LargeParts:
    """Where large images and texts are while their prompts are worked on.

    Args:
        bus: the connection.
        images: the table.
        limits: how large they may be, and how long they stay.
        clock: the time now.
    """

    def __init__(
        self, bus: Bus, images: Images, limits: Limits, clock: Callable[[], datetime]
    ) -> None:
        self._bus = bus
        self._images = images
        self._limits = limits
        self._clock = clock
        self._commit = asyncio.Lock()
        self._publication = asyncio.Lock()
        self._tidied_at: datetime | None = None

    async def put_aside(self, prompt: Prompt, *, is_large: bool = False) -> Prompt:
        """The prompt with references in place of what is large in it, which is committed.

        Args:
            prompt: it.
            is_large: whether it may be too large for a message of the bus.

        Raises:
            RefusedError: it is too large, or the rest is.
            Transient: it could not be committed.
        """
        messages, apart = references.images.put_aside(prompt.tenant, prompt.messages)
        size, most = sum(map(len, apart.values())) * 3 // 4, self._limits.image_bytes
        if size > most:
            raise RefusedError(
                "prompt_too_large",
                f"its images have {size} bytes, the limit is {most}; raise limits.image_bytes",
            )
        found = prompt.model_copy(update={"messages": messages})
        if is_large:
            found, texts = self._without_texts(found)
            apart |= texts
        if apart:
            # One after the other: they are large, and on SQLite each would wait with a limit of time for the others.
            async with self._commit:
                await self._images.add(prompt.tenant, apart, self._clock())
        return found

    def _without_texts(self, prompt: Prompt) -> tuple[Prompt, dict[str, str]]:
        """A prompt that fits its messages, and its long texts by name where it would not. Raises RefusedError."""
        most = self._limits.prompt_bytes
        if len(prompt.encode()) <= most:
            return prompt, {}
        apart: dict[str, str] = {}
        if prompt.residency != "edge-only" and self._limits.text_bytes:
            messages, apart = references.texts.put_aside(prompt.tenant, prompt.messages)
            prompt = prompt.model_copy(update={"messages": messages})
        size, most_apart = (
            sum(len(text.encode()) for text in apart.values()),
            self._limits.text_bytes,
        )
        if size > most_apart:
            raise RefusedError(
                "prompt_too_large",
                f"its long texts have {size} bytes, the limit is {most_apart}; shorten it or raise limits.text_bytes",
            )
        if (rest := len(prompt.encode())) > most:
            whose = (
                "an edge-only prompt"
                if prompt.residency == "edge-only"
                else "what is not in long texts or images"
            )
            raise RefusedError(
                "prompt_too_large",
                f"it has {rest} bytes, the limit of {whose} is {most}; shorten it or raise limits.prompt_bytes",
            )
        return prompt, apart

    async def put_back(self, tenant: str, messages: Sequence[Message]) -> tuple[Message, ...]:
        """A stored conversation, whole.

        Raises:
            RefusedError: one has expired.
        """
        found: dict[str, str] = {}
        for name in references.names(messages):
            data = await self._images.get(tenant, name)
            if data is None:
                raise RefusedError(
                    "invalid_request",
                    "a part of the conversation so far is no longer kept; send the whole of it",
                )
            found[name] = data.decode()
        return references.images.put_back(references.texts.put_back(messages, found), found)

    async def publish(self, prompt: Prompt) -> None:
        """See that the broker has what the prompt refers to. Raises Transient."""
        if prompt.residency == "edge-only":
            return
        for name in references.names(prompt.messages):
            # One after the other: each is whole in memory, and one that is put twice is gone for who reads the first.
            async with self._publication:
                await self._publish(prompt, name)

    async def _publish(self, prompt: Prompt, name: str) -> None:
        # Marked first: what may be there is always taken back.
        if not await self._images.mark_published(prompt.tenant, name, self._clock()):
            # The call that wants it fails, and says so.
            log.warning("ingest.large_part_expired", fusion_id=prompt.fusion_id)
            return
        blobs = self._bus.blobs(BLOB_STORE)
        if await blobs.has(name):
            return
        if data := await self._images.get(prompt.tenant, name):
            await blobs.put(name, data)

    async def erase(self, prompt: Prompt) -> int:
        """Erase the prompt's large parts everywhere; other prompts of the tenant with the same ones lose them too.

        Returns:
            How many there were.
        """
        names = references.names(prompt.messages)
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
            log.info("ingest.large_parts_tidied", withdrawn=withdrawn, forgotten=forgotten)

    async def _withdraw(self, name: str) -> None:
        try:
            async with asyncio.timeout(WITHDRAWAL_S):
                await self._bus.blobs(BLOB_STORE).delete(name)
        except TimeoutError:
            raise Transient("the broker does not erase a large part") from None
