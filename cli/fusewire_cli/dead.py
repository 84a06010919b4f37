"""`fusewire dead`: the messages that no service could handle, and another try with them."""

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
from fusewire_cli.local.run_file import running_nats
from fusewire_cli.screen import EXIT_SOME_FAILED, RowFormat, fail, note, rows
from fusewire_cli.session import settings

STREAM, SEALED = "FW_DEAD", "FW_DEAD_EDGE"


@dataclass(frozen=True)
class DeadLetter:
    """One message.

    Attributes:
        number: in FW_DEAD, by which it is named.
        at: when it was given up.
        service: that gave it up.
        stream: which it lay in.
        sequence: its place there.
        subject: its own.
        deliveries: how often it had been delivered.
        body: `whole` where it is in FW_DEAD, `sealed` where in FW_DEAD_EDGE.
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
    """Print all of them, the oldest first."""

    async def find() -> list[DeadLetter]:
        async with _operator() as bus:
            return [_read(message) async for message in _all(bus)]

    rows(COLUMNS, [list(asdict(one).values()) for one in asyncio.run(find())], form)


def show_one(number: int) -> None:
    """Print one of them with its body, as JSON."""

    async def find() -> dict[str, Any]:
        async with _operator() as bus:
            message = await _get(bus, number)
            dead = _read(message)
            return {
                **asdict(dead),
                "content": (await _body(bus, message, dead)).decode(errors="replace"),
            }

    print(json.dumps(asyncio.run(find()), ensure_ascii=False))


def replay(numbers: Sequence[int], *, everything: bool) -> None:
    """Publish them again where they lay, and take them out of FW_DEAD."""

    async def run() -> int:
        failed = 0
        async with _operator() as bus:
            given = [await _get(bus, number) for number in numbers]
            for message in [m async for m in _all(bus)] if everything else given:
                dead = _read(message)
                try:
                    await _publish(bus, message, dead)
                except Transient as exc:
                    failed += 1
                    note(f"{dead.number} {dead.subject}: {exc}")
                else:
                    note(f"{dead.number} {dead.subject}: published again")
        return failed

    if bool(numbers) == everything:
        fail("name the messages, or give --all", "`fusewire dead list` shows their numbers")
    if asyncio.run(run()):
        sys.exit(EXIT_SOME_FAILED)


async def _publish(bus: Bus, message: RawStreamMsg, dead: DeadLetter) -> None:
    body = await _body(bus, message, dead)
    # A prompt's id may follow from the message's: it must stay what it was.
    msg_id = (message.headers or {}).get("Fw-Msg-Id") or f"{dead.stream}-{dead.sequence}"
    if not await bus.publish(dead.subject, body, msg_id=msg_id):
        raise Transient("it was published less than two minutes ago; try again then")
    await bus.js.delete_msg(STREAM, dead.number)


async def _body(bus: Bus, message: RawStreamMsg, dead: DeadLetter) -> bytes:
    if dead.body == "whole":
        return message.data or b""
    try:
        return (
            await bus.js.get_last_msg(SEALED, sealed_subject(dead.stream, dead.sequence))
        ).data or b""
    except NotFoundError:
        fail(
            f"the body of {dead.number} is no longer in {SEALED}",
            "it is kept for 14 days, as long as there is room",
        )


async def _all(bus: Bus) -> AsyncIterator[RawStreamMsg]:
    state = (await bus.js.stream_info(STREAM)).state
    number = state.first_seq
    while number <= state.last_seq and state.messages:
        try:
            # The next one from there: those between were taken out.
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


def _read(message: RawStreamMsg) -> DeadLetter:
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
    config = settings()
    url = running_nats(config) if config.nats.url == "embedded" else config.nats.url
    if url is None:
        raise StartupError(
            "no broker runs here", "start `fusewire up`, or set [nats] url (FUSEWIRE_NATS__URL)"
        )
    bus = Bus("ops", config.nats.model_copy(update={"url": url}))
    try:
        await bus.connect(timeout_s=5)
        yield bus
    finally:
        await bus.stop()
