"""`fusewire topology apply`: make a NATS server match the topology.

Settings that an operator has widened stay as they are.
"""

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
"""nats-server's error code for a consumer's file that it cannot read."""
NAME_IN_USE = 10058
"""nats-server's error code for a new stream whose name exists with other settings."""
REBUILT = "what was accepted stands in the database, and goes on from there"


@dataclass(frozen=True)
class TopologyChange:
    """The change to one stream, durable or bucket."""

    kind: Literal["stream", "durable", "bucket", "object store"]
    name: str
    action: Action


class TopologyConflictError(Exception):
    """The server cannot be made to match without losing messages."""


def wider(have: float | None, want: float | None) -> float | None:
    """The wider of two limits, where None, 0 and -1 mean "no limit".

    >>> wider(10, 20), wider(10, -1)
    (20, -1)
    """
    if have in UNLIMITED or want in UNLIMITED:
        return have if have in UNLIMITED else want
    assert have is not None
    assert want is not None
    return max(have, want)


async def apply(js: JetStreamContext, topology: Topology) -> list[TopologyChange]:
    """Create what is missing and change what differs; idempotent.

    Limits that an operator has set wider than ours are kept, and so are streams and settings that
    the topology does not name. A stream with another retention, which the server cannot change, is
    deleted and created again once all its messages have been handled. Messages of work queues that
    have been handled are removed where the server could not.

    Raises:
        TopologyConflictError: such a stream holds messages that nobody has handled yet.
        StartupError: the server cannot, for instance because its files are damaged or its disk is
            full.
    """
    replicas = topology.replicas
    changes = [
        await _explain_errors(_stream(js, stream, replicas), stream.name)
        for stream in topology.streams
    ]
    # Before the durables: two consumers of a work queue must not overlap. Messages that the
    # retired ones have not handled stay in the stream.
    for stream_name, name in topology.retired:
        if change := await _retire(js, stream_name, name):
            changes.append(change)
    changes += [
        await _explain_errors(_durable(js, durable), f"{durable.stream}/{durable.name}")
        for durable in topology.durables
    ]
    for stream in topology.streams:
        if stream.retention == "workqueue":
            await _remove_handled(js, stream, topology.durables)
    changes += [
        await _explain_errors(_bucket(js, bucket, replicas), bucket.name)
        for bucket in topology.buckets
    ]
    changes += [
        await _explain_errors(_object_store(js, store, replicas), store.name)
        for store in topology.object_stores
    ]
    return changes


async def _explain_errors(step: Awaitable[TopologyChange], name: str) -> TopologyChange:
    """Run a step; an error of the server becomes a StartupError."""
    try:
        return await step
    except APIError as exc:
        mend, exit_code = "see NATS's log", EXIT_BAD_INPUT
        if exc.err_code == NO_CONSUMER_STORE:
            mend = "its files are damaged: stop it and move its store away; " + REBUILT
            exit_code = EXIT_STORED
        what = f"NATS cannot provision {name}: {exc.description}"
        raise StartupError(what, mend, exit_code) from None


async def missing(js: JetStreamContext, topology: Topology) -> list[str]:
    """Names of the streams and durables that do not exist."""
    absent = []
    for stream in topology.streams:
        try:
            await js.stream_info(stream.name)
        except NotFoundError:
            absent.append(stream.name)
    for durable in topology.durables:
        try:
            await js.consumer_info(durable.stream, durable.name)
        except NotFoundError:
            absent.append(f"{durable.stream}/{durable.name}")
    return absent


@dataclass(frozen=True)
class StreamUsage:
    """What a stream holds."""

    share: float
    """The share of its byte limit that is used, 0 to 1; 0 if it has no limit."""
    messages: int


async def stream_usage(js: JetStreamContext, stream: str) -> StreamUsage:
    """What a stream holds now."""
    info = await js.stream_info(stream)
    limit = info.config.max_bytes or 0
    share = info.state.bytes / limit if limit > 0 else 0.0
    return StreamUsage(share, info.state.messages)


def _stream_config(stream: Stream, replicas: int) -> api.StreamConfig:
    retention = api.RetentionPolicy.LIMITS
    if stream.retention == "workqueue":
        retention = api.RetentionPolicy.WORK_QUEUE
    return api.StreamConfig(
        name=stream.name,
        subjects=list(stream.subjects),
        retention=retention,
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
    """Create or update one stream."""
    metadata = {STORE_KEY: secrets.token_hex(16)} if stream.name == CARRIERS[0] else {}
    want = _stream_config(stream, replicas).evolve(metadata=metadata)
    try:
        have = (await js.stream_info(stream.name)).config
    except NotFoundError:
        return TopologyChange("stream", stream.name, await _add_stream(js, want))
    if have.retention != want.retention:
        await _replace_stream(js, stream.name, have, want)
        return TopologyChange("stream", stream.name, "updated")
    union = have.evolve(
        subjects=sorted({*(have.subjects or []), *stream.subjects}),
        max_bytes=wider(have.max_bytes, want.max_bytes),
        max_age=wider(have.max_age, want.max_age),
        duplicate_window=wider(have.duplicate_window, want.duplicate_window),
        num_replicas=max(have.num_replicas or 1, replicas),
        max_msgs_per_subject=want.max_msgs_per_subject,
        discard=want.discard,
        discard_new_per_subject=want.discard_new_per_subject,
        allow_msg_schedules=want.allow_msg_schedules or have.allow_msg_schedules,
        metadata={**metadata, **(have.metadata or {})},
    )
    if union == have.evolve(subjects=sorted(have.subjects or []), metadata=have.metadata or {}):
        return TopologyChange("stream", stream.name, "unchanged")
    await js.update_stream(union)
    return TopologyChange("stream", stream.name, "updated")


async def _add_stream(js: JetStreamContext, config: api.StreamConfig) -> Action:
    try:
        await js.add_stream(config)
    except APIError as exc:
        # Another process has created it in the meantime, with a store id of its own
        # (docs/decisions/0044).
        if exc.err_code == NAME_IN_USE:
            return "unchanged"
        raise
    return "created"


async def _replace_stream(
    js: JetStreamContext, name: str, have: api.StreamConfig, want: api.StreamConfig
) -> None:
    """Delete a stream and create it with another retention.

    Raises TopologyConflictError while it holds messages that nobody has handled.
    """
    if not await _is_handled(js, name):
        raise TopologyConflictError(
            f"stream {name} exists with retention {have.retention}, {want.retention} is needed, "
            "and it holds messages that nobody has handled; let the services of the old version "
            "handle them, stop those, and apply again"
        )
    await js.delete_stream(name)
    await js.add_stream(want)


async def _remove_handled(
    js: JetStreamContext, stream: Stream, durables: Iterable[Durable]
) -> None:
    """Remove the messages of a work queue that its durables have acknowledged.

    The server does so with each acknowledgement, but not if its disk is full at that moment: then
    they stay for ever, and nobody is given them.
    """
    state = (await js.stream_info(stream.name)).state
    if not state.messages:
        return
    for durable in durables:
        if durable.stream != stream.name:
            continue
        handled_until = (await js.consumer_info(stream.name, durable.name)).ack_floor.stream_seq
        # A durable that is ahead of its stream says nothing of the messages that are there.
        if state.first_seq <= handled_until <= state.last_seq:
            await js.purge_stream(
                stream.name, seq=handled_until + 1, subject=durable.subject or None
            )


async def _is_handled(js: JetStreamContext, stream: str) -> bool:
    """Whether every consumer of a stream has acknowledged all its messages."""
    if not (await js.stream_info(stream)).state.messages:
        return True
    consumers = await js.consumers_info(stream)
    has_pending = any(consumer.num_pending or consumer.num_ack_pending for consumer in consumers)
    return bool(consumers) and not has_pending


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
            # No limit: our code dead-letters a message, with the reason, where the server would
            # drop it silently (docs/decisions/0006).
            max_deliver=-1,
            max_ack_pending=durable.max_ack_pending,
            filter_subject=subject,
        )
        await js.add_consumer(durable.stream, config)
        return TopologyChange("durable", name, "created")
    union = have.evolve(
        ack_wait=wider(have.ack_wait, durable.ack_wait_s),
        max_ack_pending=wider(have.max_ack_pending, durable.max_ack_pending),
        max_deliver=-1,
        filter_subject=subject,
    )
    if union == have:
        return TopologyChange("durable", name, "unchanged")
    await js.add_consumer(durable.stream, union)
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
            # Direct reads are the only ones that a worker's permissions can be limited to.
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
