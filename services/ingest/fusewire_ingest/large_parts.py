"""Large images and texts of prompts, in SQL and in the broker's object store.

They are stored in SQL when a request is read, and in the broker's object store when its prompt is
published. SQL is the source of truth: if the broker's store was lost, they are put there again.
Workers have no database, so they read the broker's copy. Parts of an edge-only prompt are never put
there: no model at the edge can see images, and others must not read them. Texts are stored apart
only if the whole prompt is larger than `limits.prompt_bytes` (docs/decisions/0040).
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import structlog

from fusewire import references
from fusewire.bus import Bus
from fusewire.contracts import Message, Prompt
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient
from fusewire.settings import Limits
from fusewire.topology import BLOB_STORE
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.repository.images import Images

log = structlog.get_logger(__name__)

TIDY_EVERY = timedelta(minutes=1)
IDLE = timedelta(minutes=1)
"""The broker keeps a part that no fusion waits for so long: its prompt may be committed soon."""
WITHDRAWAL_S = 2.0
"""How long the broker may take to erase a part, within a transaction for which others wait."""


class LargeParts:
    """Stores large images and texts of prompts, publishes them for workers, and erases them.

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
        """Commit a prompt's large parts; returns the prompt with references in their place.

        Args:
            prompt: the prompt with its parts.
            is_large: whether it may be too large for a message of the bus.

        Raises:
            RefusedError: the large parts or the rest of the prompt are too large.
            Transient: they could not be committed.
        """
        messages, parts = references.images.put_aside(prompt.tenant, prompt.messages)
        # Four characters of base64 are three bytes.
        size = sum(map(len, parts.values())) * 3 // 4
        max_size = self._limits.image_bytes
        if size > max_size:
            raise RefusedError(
                "prompt_too_large",
                f"its images have {size} bytes, the limit is {max_size}; raise limits.image_bytes",
            )
        slim_prompt = prompt.model_copy(update={"messages": messages})
        if is_large:
            slim_prompt, texts = self._split_texts(slim_prompt)
            parts |= texts
        if parts:
            # One after the other: they are large, and on SQLite the others would time out.
            async with self._commit:
                await self._images.add(prompt.tenant, parts, self._clock())
            reach(CrashPoint.PARTS_COMMITTED)
        return slim_prompt

    def _split_texts(self, prompt: Prompt) -> tuple[Prompt, dict[str, str]]:
        """A prompt small enough for a message, and its long texts by name if it was not.

        Raises:
            RefusedError: the texts or the rest are too large.
        """
        max_size = self._limits.prompt_bytes
        if len(prompt.encode()) <= max_size:
            return prompt, {}
        texts: dict[str, str] = {}
        if prompt.residency != "edge-only" and self._limits.text_bytes:
            messages, texts = references.texts.put_aside(prompt.tenant, prompt.messages)
            prompt = prompt.model_copy(update={"messages": messages})
        texts_size = sum(len(text.encode()) for text in texts.values())
        max_texts_size = self._limits.text_bytes
        if texts_size > max_texts_size:
            raise RefusedError(
                "prompt_too_large",
                f"its long texts have {texts_size} bytes, the limit is {max_texts_size}; "
                "shorten it or raise limits.text_bytes",
            )
        rest_size = len(prompt.encode())
        if rest_size > max_size:
            subject = "what is not in long texts or images"
            if prompt.residency == "edge-only":
                subject = "an edge-only prompt"
            raise RefusedError(
                "prompt_too_large",
                f"it has {rest_size} bytes, the limit of {subject} is {max_size}; "
                "shorten it or raise limits.prompt_bytes",
            )
        return prompt, texts

    async def put_back(self, tenant: str, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Replace the references in a stored conversation by their images and texts.

        Raises:
            RefusedError: a part has expired.
        """
        parts: dict[str, str] = {}
        for name in references.names(messages):
            data = await self._images.get(tenant, name)
            if data is None:
                raise RefusedError(
                    "invalid_request",
                    "a part of the conversation so far is no longer kept; send the whole of it",
                )
            parts[name] = data.decode()
        return references.images.put_back(references.texts.put_back(messages, parts), parts)

    async def image_sizes(self, prompt: Prompt) -> dict[str, int]:
        """Bytes of a prompt's large images by name, right to two of them; without expired ones."""
        names = references.images.names(prompt.messages)
        if not names:
            return {}
        sizes = await self._images.sizes(prompt.tenant, names)
        # They are stored in base64, of which four characters are three bytes.
        return {name: size * 3 // 4 for name, size in sizes.items()}

    async def publish(self, prompt: Prompt) -> None:
        """Put what the prompt refers to into the broker's store, if missing. Raises Transient."""
        if prompt.residency == "edge-only":
            return
        for name in references.names(prompt.messages):
            # One after the other: each part is whole in memory, and a part that is put twice
            # breaks the reads of the first copy.
            async with self._publication:
                await self._publish(prompt, name)

    async def _publish(self, prompt: Prompt, name: str) -> None:
        # Marked before it is put, so that whatever may be in the broker's store is withdrawn later.
        if not await self._images.mark_published(prompt.tenant, name, self._clock()):
            # The model call that needs it fails with its own error.
            log.warning("ingest.large_part_expired", fusion_id=prompt.fusion_id)
            return
        reach(CrashPoint.PARTS_MARKED)
        blobs = self._bus.blobs(BLOB_STORE)
        if await blobs.has(name):
            return
        if data := await self._images.get(prompt.tenant, name):
            await blobs.put(name, data)

    async def erase(self, prompt: Prompt) -> int:
        """Erase the prompt's large parts from SQL and the broker; returns how many there were.

        Other prompts of the tenant with the same parts lose them too.
        """
        names = references.names(prompt.messages)
        count = await self._images.remove(prompt.tenant, names) if names else 0
        for name in names:
            await self._bus.blobs(BLOB_STORE).delete(name)
        return count

    async def tidy(self) -> None:
        """Take parts that no fusion waits for from the broker, and from SQL after `image_days`.

        Does nothing if it was called less than a minute ago. Raises Transient.
        """
        now = self._clock()
        if self._tidied_at and now - self._tidied_at < TIDY_EVERY:
            return
        self._tidied_at = now
        n_withdrawn = 0
        # One by one: each holds a transaction open while the broker erases.
        while await self._images.withdraw_one(now - IDLE, self._withdraw):
            n_withdrawn += 1
        n_forgotten = await self._images.forget(now - timedelta(days=self._limits.image_days))
        if n_withdrawn or n_forgotten:
            log.info("ingest.large_parts_tidied", withdrawn=n_withdrawn, forgotten=n_forgotten)

    async def _withdraw(self, name: str) -> None:
        try:
            async with asyncio.timeout(WITHDRAWAL_S):
                await self._bus.blobs(BLOB_STORE).delete(name)
        except TimeoutError:
            raise Transient("the broker does not erase a large part") from None
        reach(CrashPoint.PARTS_WITHDRAWN)
