"""Erases a tenant's or a prompt's messages from NATS, so that their bytes leave its files.

A purge and an acknowledgement only forget a message: its bytes stay in its block file until the
whole block is empty. A single deletion overwrites them, so each message is deleted on its own
(measured on nats-server 2.15; tests/conformance/test_erasure.py reads the files).
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from fusewire import ids
from fusewire.blobs import description_subject, pieces_subject
from fusewire.contracts import Priority
from fusewire.crash_points import CrashPoint, reach
from fusewire.topology import (
    BLOBS,
    LEDGER,
    STREAMS,
    intake_subject,
    outcome_subject,
    prompt_subject,
    sealed_subject,
)

OWNED = frozenset({"plan", "candidate", "round", "sched", "due"})
"""`fw.<kind>.<fusion>…`"""
DEAD, SEALED = "FW_DEAD", "FW_DEAD_EDGE"
LEDGER_STREAM = f"KV_{LEDGER.name}"
BLOB_STREAM = f"OBJ_{BLOBS.name}"
MESSAGE_STREAMS = tuple(stream.name for stream in STREAMS)
NO_MESSAGE = "no message found"
"""nats-server's description of why a message cannot be deleted that is not there; its error code
is that of every reason."""
_ID_CHARS = 27


@dataclass(frozen=True)
class MessageOrigin:
    """What a message says of where it is from; None for what it does not say."""

    tenant: str | None = None
    fusion_id: str | None = None
    custom_id: str | None = None
    batch_id: str | None = None


def message_origin(subject: str, data: bytes) -> MessageOrigin:
    """Read where a message is from, by its subject and its body.

    >>> message_origin("fw.outcome.acme.f1", b"").tenant
    'acme'
    """
    body = _object(data)
    tenant, custom_id = _text(body, "tenant"), _text(body, "custom_id")
    fusion_id, batch_id = _text(body, "fusion_id"), _text(body, "batch_id")
    match subject.split("."):
        case ["fw", "prompt", _, name]:
            tenant = name
            if custom_id is not None:
                fusion_id = ids.fusion_id(name, batch_id, custom_id)
        case ["fw", "in", name]:
            tenant = name
        case ["fw", "outcome", name, fusion]:
            tenant, fusion_id = name, fusion
        case ["fw", kind, fusion, *_] if kind in OWNED:
            fusion_id = fusion
        case ["$KV", LEDGER.name, key]:
            fusion_id = key[:_ID_CHARS]
        case _:
            pass
    return MessageOrigin(tenant, fusion_id, custom_id, batch_id)


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


IsTarget = Callable[[MessageOrigin], Awaitable[bool]]
"""Whether a message of this origin is to be erased."""


class BrokerEraser:
    """Erases messages and large parts. Streams that do not exist hold nothing.

    Args:
        js: the connection, with an operator's rights.
        tenant: whose messages are to be erased.
        is_target: tells what is to be erased.
        on_erased: called after each stream, with its name and how many messages were erased.
    """

    def __init__(
        self,
        js: JetStreamContext,
        tenant: str,
        is_target: IsTarget,
        on_erased: Callable[[str, int], Awaitable[None]],
    ) -> None:
        self._js = js
        self._subjects = {
            "FW_PROMPT": prompt_subject(cast("Priority", "*"), tenant),
            "FW_IN": intake_subject(tenant),
            "FW_OUTCOME": outcome_subject(tenant, "*"),
        }
        """Of the streams whose subjects name the tenant; others' messages there are not read."""
        self._is_target = is_target
        self._on_erased = on_erased

    async def count(self) -> dict[str, int]:
        """Count by stream what `erase` would erase, without large parts."""
        counts = {}
        for stream in (*MESSAGE_STREAMS, LEDGER_STREAM):
            numbers = [number async for number, _ in self._targets(stream)]
            if numbers:
                counts[stream] = len(numbers)
        return counts

    async def erase(self, blobs: Collection[str]) -> None:
        """Erase all messages that are to be erased, and the large parts with these names."""
        for stream in MESSAGE_STREAMS:
            numbers: list[int] = []
            sealed_numbers: list[int] = []
            async for number, message in self._targets(stream):
                numbers.append(number)
                if stream == DEAD:
                    sealed_numbers += await self._sealed_body(message)
            await self._delete(SEALED, sealed_numbers)
            await self._delete(stream, numbers)
        numbers = []
        for name in sorted(blobs):
            numbers += await self._of_blob(name)
        await self._delete(BLOB_STREAM, numbers)
        await self._forget_calls()

    async def tidy(self) -> list[str]:
        """Drop the files of streams in which nothing is left.

        Returns:
            The streams in use, in whose files bytes of messages that were handled earlier may
            still be, until all messages around them have been handled, too.
        """
        used_streams = []
        for stream in (*(s.name for s in STREAMS if s.retention == "workqueue"), BLOB_STREAM):
            try:
                state = (await self._js.stream_info(stream)).state
            except NotFoundError:
                continue
            if stream == BLOB_STREAM and await self._has_no_blob():
                # What is left are the marks of deleted objects. Whatever comes meanwhile stays.
                await self._js.purge_stream(stream, seq=state.last_seq + 1)
            elif state.messages:
                used_streams.append(stream)
        return used_streams

    async def _targets(self, stream: str) -> AsyncIterator[tuple[int, RawStreamMsg]]:
        async for number, message in self._messages(stream, self._subjects.get(stream, ">")):
            subject = (message.headers or {}).get("Fw-Subject") or message.subject or ""
            if await self._is_target(message_origin(subject, message.data or b"")):
                yield number, message

    async def _messages(self, stream: str, subject: str) -> AsyncIterator[tuple[int, RawStreamMsg]]:
        """All messages of a stream with a subject, oldest first, by number."""
        number = 1
        while True:
            try:
                # The next message from there on: numbers between may have been deleted.
                message = await self._js.get_msg(stream, number, next=True, subject=subject)
            except NotFoundError:
                return
            yield message.seq or number, message
            number = (message.seq or number) + 1

    async def _sealed_body(self, letter: RawStreamMsg) -> list[int]:
        """The number of the message that holds the body of a dead letter, if there is one."""
        headers = letter.headers or {}
        stream = (letter.subject or "").rpartition(".")[2]
        subject = sealed_subject(stream, int(headers.get("Fw-Stream-Sequence", 0)))
        return [number async for number, _ in self._messages(SEALED, subject)]

    async def _of_blob(self, name: str) -> list[int]:
        """The numbers of an object's pieces, also of those without a description, and of that."""
        descriptions = description_subject(BLOBS.name, name)
        numbers = []
        subjects = {pieces_subject(BLOBS.name, name)}
        async for number, message in self._messages(BLOB_STREAM, descriptions):
            numbers.append(number)
            # Another one where an earlier release has put the object.
            subjects.add(f"$O.{BLOBS.name}.C.{_object(message.data or b'').get('nuid')}")
        for subject in sorted(subjects):
            numbers += [number async for number, _ in self._messages(BLOB_STREAM, subject)]
        return numbers

    async def _has_no_blob(self) -> bool:
        async for _, message in self._messages(BLOB_STREAM, f"$O.{BLOBS.name}.>"):
            if not _object(message.data or b"").get("deleted"):
                return False
        return True

    async def _forget_calls(self) -> None:
        """Remove the ledger's entries: they hold no content, and a bucket permits only a purge."""
        subjects = [message.subject async for _, message in self._targets(LEDGER_STREAM)]
        for subject in subjects:
            await self._js.purge_stream(LEDGER_STREAM, subject=subject)
        if subjects:
            await self._on_erased(LEDGER_STREAM, len(subjects))

    async def _delete(self, stream: str, numbers: Collection[int]) -> None:
        if not numbers:
            return
        for number in numbers:
            try:
                await self._js.delete_msg(stream, number)
            except APIError as exc:
                # It was handled, or has expired, in the meantime.
                if exc.description != NO_MESSAGE:
                    raise
        reach(CrashPoint.ERASE_STREAM_ERASED)
        await self._on_erased(stream, len(numbers))
