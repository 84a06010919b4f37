"""`fusewire dead`: show dead letters, the messages that no service could handle; replay them."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from fusewire.bus import Bus
from fusewire.errors import StartupError, Transient
from fusewire.topology import sealed_subject
from fusewire_cli.local.run_file import broker
from fusewire_cli.screen import EXIT_SOME_FAILED, RowFormat, fail, note, rows
from fusewire_cli.session import settings

STREAM, SEALED = "FW_DEAD", "FW_DEAD_EDGE"


@dataclass(frozen=True)
class DeadLetter:
    """One dead letter.

    Attributes:
        number: its sequence number in FW_DEAD; the commands name it by this.
        at: when it was given up.
        service: the service that gave it up.
        stream: its original stream.
        sequence: its sequence number in that stream.
        subject: its original subject.
        deliveries: how often it was delivered.
        body: `whole` if its body is in FW_DEAD, `sealed` if it is in FW_DEAD_EDGE.
        reason: why it was given up.
    """

    number: int
    at: str
    service: str
    stream: str
    sequence: int
    subject: str
    deliveries: int
    body: str
    reason: str


COLUMNS = tuple(field.name for field in fields(DeadLetter))


def show(form: RowFormat) -> None:
    """Print all dead letters, oldest first."""

    async def read_all() -> list[DeadLetter]:
        async with _operator() as bus:
            return [_parse(message) async for message in _all(bus)]

    letters = asyncio.run(read_all())
    rows(COLUMNS, [list(asdict(letter).values()) for letter in letters], form)


def show_one(number: int) -> None:
    """Print one dead letter with its body, as JSON."""

    async def read() -> dict[str, Any]:
        async with _operator() as bus:
            message = await _get(bus, number)
            letter = _parse(message)
            body = await _body(bus, message, letter)
            return {**asdict(letter), "content": body.decode(errors="replace")}

    print(json.dumps(asyncio.run(read()), ensure_ascii=False))


def replay(numbers: Sequence[int], *, everything: bool) -> None:
    """Publish dead letters again on their subjects, and delete them from FW_DEAD."""
    if bool(numbers) == everything:
        fail("name the messages, or give --all", "`fusewire dead list` shows their numbers")
    if asyncio.run(_replay(numbers, everything=everything)):
        sys.exit(EXIT_SOME_FAILED)


async def _replay(numbers: Sequence[int], *, everything: bool) -> int:
    """Replay messages. Returns how many could not be published."""
    failed_count = 0
    async with _operator() as bus:
        messages = [await _get(bus, number) for number in numbers]
        if everything:
            messages = [message async for message in _all(bus)]
        for message in messages:
            letter = _parse(message)
            try:
                await _publish(bus, message, letter)
            except Transient as exc:
                failed_count += 1
                note(f"{letter.number} {letter.subject}: {exc}")
            else:
                note(f"{letter.number} {letter.subject}: published again")
    return failed_count


async def _publish(bus: Bus, message: RawStreamMsg, letter: DeadLetter) -> None:
    body = await _body(bus, message, letter)
    # A prompt's id may derive from the message id, which must therefore stay the same.
    msg_id = (message.headers or {}).get("Fw-Msg-Id") or f"{letter.stream}-{letter.sequence}"
    if not await bus.publish(letter.subject, body, msg_id=msg_id):
        raise Transient("it was published less than two minutes ago; try again then")
    # Only now, so that a message that was not published stays.
    await bus.js.delete_msg(STREAM, letter.number)


async def _body(bus: Bus, message: RawStreamMsg, letter: DeadLetter) -> bytes:
    if letter.body == "whole":
        return message.data or b""
    subject = sealed_subject(letter.stream, letter.sequence)
    try:
        return (await bus.js.get_last_msg(SEALED, subject)).data or b""
    except NotFoundError:
        fail(
            f"the body of {letter.number} is no longer in {SEALED}",
            "it is kept for 14 days, as long as there is room",
        )


async def _all(bus: Bus) -> AsyncIterator[RawStreamMsg]:
    """All messages of FW_DEAD, oldest first."""
    state = (await bus.js.stream_info(STREAM)).state
    number = state.first_seq
    while number <= state.last_seq and state.messages:
        try:
            # The next message from there on: numbers between may have been deleted.
            message = await bus.js.get_msg(STREAM, number, next=True, subject="fw.dead.>")
        except NotFoundError:
            return
        yield message
        number = (message.seq or number) + 1


async def _get(bus: Bus, number: int) -> RawStreamMsg:
    try:
        return await bus.js.get_msg(STREAM, number)
    except NotFoundError:
        fail(
            f"there is no message {number} in {STREAM}", "`fusewire dead list` shows their numbers"
        )


def _parse(message: RawStreamMsg) -> DeadLetter:
    headers = message.headers or {}
    _, _, service, stream = (message.subject or "").split(".")
    return DeadLetter(
        number=message.seq or 0,
        at=message.time.isoformat(timespec="seconds") if message.time else "",
        service=service,
        stream=stream,
        sequence=int(headers["Fw-Stream-Sequence"]),
        subject=headers["Fw-Subject"],
        deliveries=int(headers["Fw-Deliveries"]),
        body=headers["Fw-Body"],
        reason=headers["Fw-Reason"],
    )


@asynccontextmanager
async def _operator() -> AsyncIterator[Bus]:
    """A connection to the broker of the running stack, or to the configured one."""
    config = settings()
    nats = broker(config)
    if nats is None:
        raise StartupError(
            "no broker runs here", "start `fusewire up`, or set [nats] url (FUSEWIRE_NATS__URL)"
        )
    bus = Bus("ops", nats)
    try:
        await bus.connect(timeout_s=5)
        yield bus
    finally:
        await bus.stop()
