"""`fusewire dead` on a real broker: what was given up is listed, shown and tried again."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fusewire.bus import Bus, Delivery
from fusewire.errors import EXIT_BAD_INPUT, UnacceptableMessage
from fusewire.loops import PriorityLoop
from fusewire.testing.eventually import eventually
from fusewire.testing.factories import make_prompt
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import DISPATCHER_PROMPTS, INGEST
from fusewire_cli import dead
from fusewire_cli.screen import EXIT_SOME_FAILED, RowFormat

MakeBus = Callable[..., Awaitable[Bus]]
OPEN = make_prompt("Why?")
EDGE = make_prompt("s3cr3t", custom_id="edge", residency="edge-only")


@pytest.fixture
async def bus(make_bus: MakeBus, nats: NatsServer, monkeypatch: pytest.MonkeyPatch) -> Bus:
    monkeypatch.setenv("FUSEWIRE_NATS__URL", nats.url)
    return await make_bus("dispatcher", {})


async def buried(bus: Bus, *messages: tuple[str, bytes, str]) -> None:
    """Have messages given up by whoever handles them."""

    async def refuse(_delivery: Delivery) -> None:
        raise UnacceptableMessage("it is broken")

    for subject, body, msg_id in messages:
        await bus.publish(subject, body, msg_id=msg_id)
    loop = PriorityLoop(bus, DISPATCHER_PROMPTS, refuse, concurrency=1)
    await loop.start()

    async def all_dead() -> bool:
        return (await bus.js.stream_info("FW_DEAD")).state.messages == len(messages)

    await eventually(all_dead)
    await loop.stop(5)


BOTH = (
    ("fw.prompt.normal.default", OPEN.encode(), "one"),
    ("fw.prompt.normal.default", EDGE.encode(), "two"),
)


async def listed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    await asyncio.to_thread(dead.show, RowFormat.json)
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


async def test_what_was_given_up_is_listed_without_any_text(
    bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await listed(capsys) == []
    await buried(bus, *BOTH)

    first, second = await listed(capsys)

    told = ("number", "service", "stream", "sequence", "subject", "deliveries", "body", "reason")
    place = ("dispatcher", "FW_PROMPT")
    assert [first[key] for key in told] == [1, *place, 1, BOTH[0][0], 1, "whole", "it is broken"]
    assert [second[key] for key in told] == [2, *place, 2, BOTH[1][0], 1, "sealed", "it is broken"]
    assert "Why?" not in str(first)
    assert first["at"] <= second["at"]


@pytest.mark.parametrize(("number", "text"), [(1, "Why?"), (2, "s3cr3t")])
async def test_one_is_shown_with_its_body(
    bus: Bus, capsys: pytest.CaptureFixture[str], number: int, text: str
) -> None:
    await buried(bus, *BOTH)

    await asyncio.to_thread(dead.show_one, number)

    assert text in json.loads(capsys.readouterr().out.splitlines()[-1])["content"]


async def test_all_are_tried_again_as_they_were(
    bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (await bus.js.stream_info("FW_PROMPT")).config
    await bus.js.update_stream(config.evolve(duplicate_window=0.1))
    await buried(bus, *BOTH)
    await asyncio.sleep(0.3)

    await asyncio.to_thread(lambda: dead.replay([], everything=True))

    seen: dict[str, bytes] = {}

    async def note(delivery: Delivery) -> None:
        seen[delivery.headers["Nats-Msg-Id"]] = delivery.data

    loop = PriorityLoop(bus, DISPATCHER_PROMPTS, note, concurrency=1)
    await loop.start()
    await eventually(lambda: len(seen) == 2)
    await loop.stop(5)
    assert seen == {"one": OPEN.encode(), "two": EDGE.encode()}
    assert await listed(capsys) == []


async def test_what_the_server_would_drop_as_a_copy_stays(
    bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    await buried(bus, *BOTH)

    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(lambda: dead.replay([1], everything=False))

    assert ended.value.code == EXIT_SOME_FAILED
    assert "try again" in capsys.readouterr().err
    assert [one["number"] for one in await listed(capsys)] == [1, 2]


@pytest.mark.parametrize(
    ("numbers", "everything", "part"),
    [([7], False, "no message 7"), ([], False, "--all"), ([1], True, "--all")],
)
async def test_what_is_not_there_is_said(
    bus: Bus, capsys: pytest.CaptureFixture[str], numbers: list[int], everything: bool, part: str
) -> None:
    await buried(bus, BOTH[0])

    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(lambda: dead.replay(numbers, everything=everything))

    assert ended.value.code == EXIT_BAD_INPUT
    assert part in capsys.readouterr().err


async def test_what_came_over_the_bus_keeps_its_place_as_its_name(bus: Bus) -> None:
    """Without an id, a submission is called after its place: a second try is no second prompt."""
    await bus.publish("fw.in.acme", b"{")

    async def refuse(_delivery: Delivery) -> None:
        raise UnacceptableMessage("invalid_json")

    loop = PriorityLoop(bus, [INGEST], refuse, concurrency=1)
    await loop.start()

    async def is_dead() -> bool:
        return (await bus.js.stream_info("FW_DEAD")).state.messages == 1

    await eventually(is_dead)
    await loop.stop(5)

    await asyncio.to_thread(lambda: dead.replay([1], everything=False))

    again = await bus.js.get_msg("FW_IN", 2)
    assert again.headers is not None
    assert (again.data, again.headers["Nats-Msg-Id"]) == (b"{", "FW_IN-1")
