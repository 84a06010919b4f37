"""`topology apply` on a real server: idempotent, and never narrower than an operator's setting."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from nats.js import JetStreamContext, api

from fusewire import provision
from fusewire.bus import Bus
from fusewire.errors import StartupError
from fusewire.provision import TopologyConflictError, apply, missing, summary
from fusewire.settings import Nats
from fusewire.testing.nats_server import NatsServer
from fusewire.topology import DAY_S, GIB, JUDGE, STREAMS, Durable, topology

MakeBus = Callable[..., Awaitable[Bus]]
WANTED = topology({"tiny": "edge", "gpt": "remote"}, ["default"])
COUNT = len(WANTED.streams) + len(WANTED.durables) + len(WANTED.buckets) + len(WANTED.object_stores)


@pytest.fixture
async def js(make_bus: MakeBus) -> JetStreamContext:
    return (await make_bus()).js


async def test_it_makes_everything_and_then_changes_nothing(js: JetStreamContext) -> None:
    assert len(await missing(js, WANTED)) == len(WANTED.streams) + len(WANTED.durables)

    assert summary(await apply(js, WANTED)) == {
        "created": COUNT,
        "updated": 0,
        "removed": 0,
        "unchanged": 0,
    }
    assert summary(await apply(js, WANTED)) == {
        "created": 0,
        "updated": 0,
        "removed": 0,
        "unchanged": COUNT,
    }
    assert await missing(js, WANTED) == []


async def test_what_it_makes_is_what_the_contract_says(js: JetStreamContext) -> None:
    await apply(js, WANTED)

    for stream in STREAMS:
        config = (await js.stream_info(stream.name)).config
        assert set(config.subjects or []) == set(stream.subjects)
        assert config.retention == stream.retention
        assert config.storage == "file"
        assert (config.max_bytes or -1) == (stream.max_bytes or -1)
        assert (config.max_age or 0) == stream.max_age_s
        assert config.discard == ("new" if stream.discard_new else "old")
        assert bool(config.allow_msg_schedules) == stream.schedules
    candidates = (await js.stream_info("FW_CANDIDATE")).config
    assert (candidates.max_msgs_per_subject, candidates.discard_new_per_subject) == (1, True)
    for durable in WANTED.durables:
        consumer = (await js.consumer_info(durable.stream, durable.name)).config
        assert consumer.ack_policy == "explicit"
        assert (consumer.ack_wait, consumer.max_deliver) == (durable.ack_wait_s, -1)
        assert (consumer.filter_subject or "") == durable.subject


async def test_a_pool_and_an_edge_model_more_add_only_their_durables(js: JetStreamContext) -> None:
    await apply(js, WANTED)

    changes = await apply(
        js, topology({"tiny": "edge", "small": "edge", "gpt": "remote"}, ["default", "new"])
    )

    assert [c.name for c in changes if c.action == "created"] == [
        f"{stream}-{priority}"
        for stream in ("FW_TASK_EDGE/small", "FW_TASK_REMOTE/new")
        for priority in ("high", "normal", "low")
    ]
    assert summary(changes)["updated"] == 0


async def test_what_an_operator_set_wider_stays(js: JetStreamContext) -> None:
    await apply(js, WANTED)
    prompts = (await js.stream_info("FW_PROMPT")).config
    await js.update_stream(
        prompts.evolve(max_bytes=8 * GIB, subjects=["fw.prompt.*.*", "legacy.prompt"])
    )
    candidates = (await js.stream_info("FW_CANDIDATE")).config
    await js.update_stream(candidates.evolve(max_bytes=-1))
    dead = (await js.stream_info("FW_DEAD")).config
    await js.update_stream(dead.evolve(max_age=90 * DAY_S))
    judge = (await js.consumer_info("FW_CANDIDATE", "judge")).config
    await js.add_consumer("FW_CANDIDATE", judge.evolve(ack_wait=90, max_ack_pending=9_999))
    await js.add_stream(name="THEIRS", subjects=["theirs.>"])

    changes = await apply(js, WANTED)

    assert summary(changes) == {"created": 0, "updated": 0, "removed": 0, "unchanged": COUNT}
    prompts = (await js.stream_info("FW_PROMPT")).config
    assert (prompts.max_bytes, set(prompts.subjects or [])) == (
        8 * GIB,
        {"fw.prompt.*.*", "legacy.prompt"},
    )
    candidates = (await js.stream_info("FW_CANDIDATE")).config
    assert candidates.max_bytes == -1
    assert (await js.stream_info("FW_DEAD")).config.max_age == 90 * DAY_S
    judge = (await js.consumer_info("FW_CANDIDATE", "judge")).config
    assert (judge.ack_wait, judge.max_ack_pending) == (90, 9_999)
    assert (await js.stream_info("THEIRS")).config.subjects == ["theirs.>"]


async def test_what_is_narrower_than_needed_is_widened_and_nothing_is_lost(
    js: JetStreamContext,
) -> None:
    await apply(js, WANTED)
    prompts = (await js.stream_info("FW_PROMPT")).config
    await js.update_stream(prompts.evolve(max_bytes=1_000_000))
    judge = (await js.consumer_info("FW_CANDIDATE", "judge")).config
    await js.add_consumer("FW_CANDIDATE", judge.evolve(ack_wait=1, max_deliver=3))
    await js.publish("fw.prompt.low.acme", b"kept")

    changes = await apply(js, WANTED)

    assert {c.name for c in changes if c.action == "updated"} == {"FW_PROMPT", "FW_CANDIDATE/judge"}
    assert (await js.stream_info("FW_PROMPT")).config.max_bytes == GIB
    consumer = (await js.consumer_info("FW_CANDIDATE", "judge")).config
    assert (consumer.ack_wait, consumer.max_deliver) == (JUDGE.ack_wait_s, -1)
    assert (
        await js.get_msg("FW_PROMPT", subject="fw.prompt.low.acme", direct=False)
    ).data == b"kept"


async def test_a_durable_of_an_earlier_version_goes_and_what_it_held_is_for_those_in_its_place(
    js: JetStreamContext,
) -> None:
    await js.add_stream(
        name="FW_PROMPT", subjects=["fw.prompt.*.*"], retention=api.RetentionPolicy.WORK_QUEUE
    )
    await js.add_consumer("FW_PROMPT", durable_name="dispatcher", ack_policy=api.AckPolicy.EXPLICIT)
    await js.publish("fw.prompt.low.acme", b"in hand")
    await js.publish("fw.prompt.low.acme", b"waits")
    await (await js.pull_subscribe_bind("dispatcher", "FW_PROMPT")).fetch(1)

    changes = await apply(js, WANTED)

    assert [c.name for c in changes if c.action == "removed"] == ["FW_PROMPT/dispatcher"]
    found = await (await js.pull_subscribe_bind("dispatcher-low", "FW_PROMPT")).fetch(2)
    assert [message.data for message in found] == [b"in hand", b"waits"]


async def of_another_kind(js: JetStreamContext) -> None:
    """FW_CANDIDATE as it was until it was a work queue, with a message the judge has not had."""
    subjects = ["fw.plan.*", "fw.candidate.*.*.*"]
    await js.add_stream(
        name="FW_CANDIDATE", subjects=subjects, retention=api.RetentionPolicy.LIMITS
    )
    await js.add_consumer("FW_CANDIDATE", durable_name="judge", ack_policy=api.AckPolicy.EXPLICIT)
    await js.publish("fw.plan.f1", b"kept")


@pytest.mark.parametrize("state", ["waits", "in hand", "no taker"])
async def test_a_stream_of_another_kind_is_not_touched_while_it_holds_something(
    js: JetStreamContext, state: str
) -> None:
    await of_another_kind(js)
    if state == "in hand":
        await (await js.pull_subscribe_bind("judge", "FW_CANDIDATE")).fetch(1)
    elif state == "no taker":
        await js.delete_consumer("FW_CANDIDATE", "judge")

    with pytest.raises(TopologyConflictError) as caught:
        await apply(js, WANTED)

    assert "FW_CANDIDATE exists with retention" in str(caught.value)
    assert "let the services of the old version handle them" in str(caught.value)
    assert (await js.stream_info("FW_CANDIDATE")).state.messages == 1


async def test_a_stream_of_another_kind_is_made_anew_when_all_is_handled(
    js: JetStreamContext,
) -> None:
    await of_another_kind(js)
    (message,) = await (await js.pull_subscribe_bind("judge", "FW_CANDIDATE")).fetch(1)
    await message.ack_sync()

    changes = await apply(js, WANTED)

    assert ("FW_CANDIDATE", "updated") in {(c.name, c.action) for c in changes}
    assert (await js.stream_info("FW_CANDIDATE")).config.retention == "workqueue"
    assert await missing(js, WANTED) == []


async def test_applied_twice_at_once(nats: NatsServer, make_bus: MakeBus) -> None:
    buses = [await make_bus(f"ops{i}") for i in range(3)]

    await asyncio.gather(*(provision.apply(bus.js, WANTED) for bus in buses))

    assert await missing(buses[0].js, WANTED) == []


# -- what a service needs of it ---------------------------------------------------------------


async def test_a_service_without_its_durable_does_not_start(make_bus: MakeBus) -> None:
    bus = await make_bus("judge")

    with pytest.raises(StartupError) as caught:
        await bus.require(JUDGE)
    assert caught.value.what == "the consumer FW_CANDIDATE/judge is not on the server"
    assert "fusewire topology apply" in caught.value.mend

    await provision.apply(bus.js, WANTED)
    await bus.require(JUDGE, Durable("FW_TASK_REMOTE", "default-high", ""))


async def test_a_server_that_is_too_busy_to_answer_is_asked_once_more(
    make_bus: MakeBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await make_bus("judge")
    await provision.apply(bus.js, WANTED)
    ask, answers = bus.js.consumer_info, iter([TimeoutError, None])

    async def busy(stream: str, consumer: str) -> api.ConsumerInfo:
        if (failure := next(answers)) is not None:
            raise failure
        info: api.ConsumerInfo = await ask(stream, consumer)
        return info

    monkeypatch.setattr(bus.js, "consumer_info", busy)

    await bus.require(JUDGE)

    assert list(answers) == []


async def test_a_server_that_does_not_answer_is_named_with_what_to_do(nats: NatsServer) -> None:
    url = nats.url.replace("nats://", "nats://me:s3cr3t@")
    await nats.stop()

    with pytest.raises(StartupError) as caught:
        await Bus("judge", Nats(url=url)).connect(timeout_s=0.5)

    assert f"no NATS server answers at {nats.url}" in caught.value.what
    assert "FUSEWIRE_NATS__URL" in caught.value.mend
    assert "s3cr3t" not in str(caught.value)


def test_the_embedded_server_is_the_command_s_to_start() -> None:
    with pytest.raises(StartupError, match="only the fusewire command can start"):
        Bus("judge", Nats())
