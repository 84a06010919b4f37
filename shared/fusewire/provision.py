"""`fusewire topology apply`: make a NATS server match the topology, and take nothing from its operator."""

import secrets
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import Literal

from nats.js import JetStreamContext, api
from nats.js.errors import APIError, BucketNotFoundError, NotFoundError

from fusewire.errors import EXIT_BAD_INPUT, EXIT_STORED, StartupError
from fusewire.topology import (
    CARRIERS,
    STORE_KEY,
    Durable,
    KeyValueBucket,
    ObjectStore,
    Stream,
    Topology,
)

Action = Literal["created", "updated", "removed", "unchanged"]

UNLIMITED = (None, 0, -1)
NO_CONSUMER_STORE = 10012
"""nats-server's code where it finds a consumer's file that it cannot read."""
NAME_IN_USE = 10058
"""Its code where a stream is to be made that is there, with other settings."""
REBUILT = "what was accepted stands in the database, and goes on from there"


@dataclass(frozen=True)
class TopologyChange:
    """What was done to one stream, durable or bucket."""

    kind: Literal["stream", "durable", "bucket", "object store"]
    name: str
    action: Action


class TopologyConflictError(Exception):
    """What is on the server cannot be made to match without losing something."""


def wider(have: float | None, want: float | None) -> float | None:
    """The wider of two limits, where None, 0 and -1 mean "no limit"."""
    if have in UNLIMITED or want in UNLIMITED:
        return have if have in UNLIMITED else want
    assert have is not None
    assert want is not None
    return max(have, want)


async def apply(js: JetStreamContext, wanted: Topology) -> list[TopologyChange]:
    """Create what is missing and mend what differs; idempotent.

    Limits that an operator set wider than ours are kept, and so is everything we do not name. A stream of another
    retention, which the server cannot change, is made anew once all that it holds has been handled.

    Raises:
        TopologyConflictError: such a stream holds what nobody has handled yet.
        StartupError: the server cannot, as where its files are damaged or its disk is full.
    """
    changes = [
        await _told(_stream(js, stream, wanted.replicas), stream.name) for stream in wanted.streams
    ]
    # First: those of a work queue must not overlap. What they have not handled stays in the stream.
    changes += [
        change for stream, name in wanted.retired if (change := await _retire(js, stream, name))
    ]
    changes += [
        await _told(_durable(js, durable), f"{durable.stream}/{durable.name}")
        for durable in wanted.durables
    ]
    changes += [
        await _told(_bucket(js, bucket, wanted.replicas), bucket.name) for bucket in wanted.buckets
    ]
    changes += [
        await _told(_object_store(js, o, wanted.replicas), o.name) for o in wanted.object_stores
    ]
    return changes


async def _told(step: Awaitable[TopologyChange], name: str) -> TopologyChange:
    try:
        return await step
    except APIError as exc:
        is_damaged = exc.err_code == NO_CONSUMER_STORE
        why = f"NATS cannot provision {name}: {exc.description}"
        mend = (
            "its files are damaged: stop it and move its store away; " + REBUILT
            if is_damaged
            else "see NATS's log"
        )
        raise StartupError(why, mend, EXIT_STORED if is_damaged else EXIT_BAD_INPUT) from None


async def missing(js: JetStreamContext, wanted: Topology) -> list[str]:
    """Names of the streams and durables that are not there."""
    absent = []
    for stream in wanted.streams:
        try:
            await js.stream_info(stream.name)
        except NotFoundError:
            absent.append(stream.name)
    for durable in wanted.durables:
        try:
            await js.consumer_info(durable.stream, durable.name)
        except NotFoundError:
            absent.append(f"{durable.stream}/{durable.name}")
    return absent


async def stream_usage(js: JetStreamContext, stream: str) -> float:
    """The share of its limit that a stream takes, 0 to 1; 0 where it has none."""
    info = await js.stream_info(stream)
    limit = info.config.max_bytes or 0
    return info.state.bytes / limit if limit > 0 else 0.0


def _stream_config(stream: Stream, replicas: int) -> api.StreamConfig:
    return api.StreamConfig(
        name=stream.name,
        subjects=list(stream.subjects),
        retention=api.RetentionPolicy.WORK_QUEUE
        if stream.retention == "workqueue"
        else api.RetentionPolicy.LIMITS,
        storage=api.StorageType.FILE,
        max_bytes=stream.max_bytes or -1,
        max_age=stream.max_age_s or 0,
        max_msgs_per_subject=stream.max_per_subject or -1,
        discard=api.DiscardPolicy.NEW if stream.discard_new else api.DiscardPolicy.OLD,
        discard_new_per_subject=stream.discard_new and stream.max_per_subject > 0,
        duplicate_window=stream.duplicate_window_s,
        allow_msg_schedules=stream.schedules or None,
        num_replicas=replicas,
    )


async def _stream(js: JetStreamContext, stream: Stream, replicas: int) -> TopologyChange:
    want = _stream_config(stream, replicas)
    named = {STORE_KEY: secrets.token_hex(16)} if stream.name == CARRIERS[0] else {}
    want = want.evolve(metadata=named)
    try:
        have = (await js.stream_info(stream.name)).config
    except NotFoundError:
        try:
            await js.add_stream(want)
        except APIError as exc:
            # Made by another in the meantime, with a store id of its own.
            if exc.err_code != NAME_IN_USE:
                raise
            return TopologyChange("stream", stream.name, "unchanged")
        return TopologyChange("stream", stream.name, "created")
    if have.retention != want.retention:
        if not await _is_handled(js, stream.name):
            raise TopologyConflictError(
                f"stream {stream.name} exists with retention {have.retention}, {want.retention} is needed, and it "
                "holds messages that nobody has handled; let the services of the old version handle them, stop those, "
                "and apply again"
            )
        await js.delete_stream(stream.name)
        await js.add_stream(want)
        return TopologyChange("stream", stream.name, "updated")
    merged = have.evolve(
        subjects=sorted({*(have.subjects or []), *stream.subjects}),
        max_bytes=wider(have.max_bytes, want.max_bytes),
        max_age=wider(have.max_age, want.max_age),
        duplicate_window=wider(have.duplicate_window, want.duplicate_window),
        num_replicas=max(have.num_replicas or 1, replicas),
        max_msgs_per_subject=want.max_msgs_per_subject,
        discard=want.discard,
        discard_new_per_subject=want.discard_new_per_subject,
        allow_msg_schedules=want.allow_msg_schedules or have.allow_msg_schedules,
        metadata={**named, **(have.metadata or {})},
    )
    if merged == have.evolve(subjects=sorted(have.subjects or []), metadata=have.metadata or {}):
        return TopologyChange("stream", stream.name, "unchanged")
    await js.update_stream(merged)
    return TopologyChange("stream", stream.name, "updated")


async def _is_handled(js: JetStreamContext, stream: str) -> bool:
    """Whether every message of a stream has been acknowledged by all who take from it."""
    if not (await js.stream_info(stream)).state.messages:
        return True
    takers = await js.consumers_info(stream)
    return bool(takers) and not any(taker.num_pending or taker.num_ack_pending for taker in takers)


async def _durable(js: JetStreamContext, durable: Durable) -> TopologyChange:
    name = f"{durable.stream}/{durable.name}"
    subject = durable.subject or None
    try:
        have = (await js.consumer_info(durable.stream, durable.name)).config
    except NotFoundError:
        have = None
    if have is None:
        config = api.ConsumerConfig(
            durable_name=durable.name,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=durable.ack_wait_s,
            # Never dropped by the server for its count: our code lays poison in FW_DEAD, with the reason.
            max_deliver=-1,
            max_ack_pending=durable.max_ack_pending,
            filter_subject=subject,
        )
        await js.add_consumer(durable.stream, config)
        return TopologyChange("durable", name, "created")
    merged = have.evolve(
        ack_wait=wider(have.ack_wait, durable.ack_wait_s),
        max_ack_pending=wider(have.max_ack_pending, durable.max_ack_pending),
        max_deliver=-1,
        filter_subject=subject,
    )
    if merged == have:
        return TopologyChange("durable", name, "unchanged")
    await js.add_consumer(durable.stream, merged)
    return TopologyChange("durable", name, "updated")


async def _retire(js: JetStreamContext, stream: str, name: str) -> TopologyChange | None:
    try:
        await js.delete_consumer(stream, name)
    except NotFoundError:
        return None
    return TopologyChange("durable", f"{stream}/{name}", "removed")


async def _bucket(js: JetStreamContext, bucket: KeyValueBucket, replicas: int) -> TopologyChange:
    try:
        await js.key_value(bucket.name)
    except (BucketNotFoundError, NotFoundError):
        config = api.KeyValueConfig(
            bucket=bucket.name,
            history=1,
            ttl=bucket.ttl_s,
            max_bytes=bucket.max_bytes,
            replicas=replicas,
            # The only kind of read that least privilege can grant to a worker.
            direct=True,
        )
        await js.create_key_value(config)
        return TopologyChange("bucket", bucket.name, "created")
    return TopologyChange("bucket", bucket.name, "unchanged")


async def _object_store(js: JetStreamContext, store: ObjectStore, replicas: int) -> TopologyChange:
    try:
        await js.object_store(store.name)
    except (BucketNotFoundError, NotFoundError):
        await js.create_object_store(
            store.name,
            api.ObjectStoreConfig(ttl=store.ttl_s, max_bytes=store.max_bytes, replicas=replicas),
        )
        return TopologyChange("object store", store.name, "created")
    return TopologyChange("object store", store.name, "unchanged")


def summary(changes: Iterable[TopologyChange]) -> dict[Action, int]:
    """How many of each action."""
    counts: dict[Action, int] = {"created": 0, "updated": 0, "removed": 0, "unchanged": 0}
    for change in changes:
        counts[change.action] += 1
    return counts
