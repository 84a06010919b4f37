"""The bus: one connection of one service to NATS JetStream.

FastStream and nats-py lose messages by default: they drop a message on an unhandled
exception, redeliver without delay, publish without an acknowledgement, give up
reconnecting, and cancel what is running at shutdown. Each such setting is made here, once.
"""

import asyncio
import contextlib
import json
import random
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError, KeyNotFoundError, NoStreamResponseError
from nats.js.kv import KeyValue

from fusewire import consumers, metrics, nats_identity, telemetry
from fusewire.blobs import Blobs
from fusewire.contracts import ContractError, Wire
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import StartupError, Transient, UnacceptableMessage
from fusewire.settings import Nats
from fusewire.tasks import BackgroundTasks, cancel
from fusewire.topology import (
    ATTEMPT_BUCKET,
    CARRIERS,
    INGEST,
    MAX_DELIVERIES,
    OUTBOX,
    STORE_KEY,
    Durable,
    dead_subject,
    sealed_subject,
)

log = structlog.get_logger(__name__)

LEAST_PAYLOAD = 1_000_000
"""Bytes of one message that a server must accept: prompts, rounds and answers are limited to it."""
PUBLISH_TIMEOUT_S = 5.0
CONFIRM_S = 5
PULL_TIMEOUT_S = 1.0
"""A pull request that waits on a server is lost without notice when the server ends: waits are
short."""
PING_INTERVAL_S = 5
HEARTBEAT_S = 4.0
"""Under a third of the shortest `ack_wait_s` in the topology."""
SUSPECT_DELIVERIES = 20
"""From this many deliveries on, the attempts to handle a message are counted until one ends.

The number of deliveries alone does not show that a handler crashes: a message that waits for a
database is redelivered as often (docs/decisions/0006)."""
HANDLED_WITHIN_S = 60.0
"""Time limit of the handler of one message; the calls of workers have deadlines of their own."""
CRASHES = 3
"""After this many attempts that did not end, assume that the handler crashes, and dead-letter."""
ERROR_LOG_PERIOD_S = 5.0
LOCAL_PREFIX = "$JS.API"
"""Subject prefix of the API of the server that a service is connected to."""
ALREADY_THERE = 10071
"""JetStream's error code for a failed Nats-Expected-Last-Subject-Sequence."""


_ACK_TOKENS = 9
"""Tokens of the subject for acknowledgements, where the server has no domain."""


@dataclass(frozen=True)
class Delivery:
    """One message as a handler sees it."""

    data: bytes
    subject: str
    headers: Mapping[str, str]
    deliveries: int
    """How often it has been delivered, this time included."""
    stream: str
    sequence: int
    raw: Msg
    stored_ns: int = 0
    """When the stream stored it, Unix time in nanoseconds.

    Together with `sequence` it stays unique when a stream is deleted and created again."""

    @classmethod
    def from_message(cls, msg: Msg) -> "Delivery":
        """Read the delivery's metadata from the reply subject of a message."""
        # ADR-15: $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.<consumer sequence>
        # .<timestamp>.<pending>. With a domain, the domain and the account's hash come before the
        # stream.
        tokens = msg.reply.split(".")
        if len(tokens) == _ACK_TOKENS:
            stream, deliveries, sequence = tokens[2], int(tokens[4]), int(tokens[5])
            stored_ns = int(tokens[7])
        else:
            meta = msg.metadata
            stream, deliveries, sequence = meta.stream, meta.num_delivered, meta.sequence.stream
            stored_ns = int(tokens[9])
        return cls(
            msg.data, msg.subject, msg.headers or {}, deliveries, stream, sequence, msg, stored_ns
        )


Handler = Callable[[Delivery], Awaitable[None]]


def within(seconds: float, handler: Handler) -> Handler:
    """Limit the time of a handler: after `seconds` it raises Transient, for a retry."""

    async def handle(delivery: Delivery) -> None:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await handler(delivery)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Transient(f"its handler did not end within {seconds:g} s") from None

    return handle


def retry_delay_s(deliveries: int, jitter: float) -> float:
    """Seconds until a failed message is delivered again.

    They are 0.5, 1, 2 … 30, times 0.5 to 1 by `jitter`, which is in 0..1.

    >>> [retry_delay_s(deliveries, 1.0) for deliveries in (1, 2, 3, 8)]
    [0.5, 1.0, 2.0, 30.0]
    """
    return float(min(30.0, 0.5 * 2 ** (deliveries - 1))) * (0.5 + jitter / 2)


def fault(exc: BaseException) -> str:
    """Name an exception without its text, which may hold a prompt."""
    if isinstance(exc, ContractError | Transient | StartupError | UnacceptableMessage):
        return str(exc)
    frames = traceback.extract_tb(exc.__traceback__)
    where = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return f"{type(exc).__name__}{where}"


class Bus:
    """One service's connection, and the only way it publishes or receives."""

    def __init__(self, service: str, settings: Nats, *, drain_s: float = 10) -> None:
        if settings.url == "embedded":
            raise StartupError(
                "nats.url is 'embedded', which only the fusewire command can start",
                "set [nats] url (or FUSEWIRE_NATS__URL) to nats://HOST:PORT",
            )
        settings = nats_identity.of_service(service, settings)
        self.service = service
        self._closed_event = asyncio.Event()
        self._live: dict[int, Delivery] = {}
        self._heartbeat_task: asyncio.Task[None] | None = None
        self._background = BackgroundTasks()
        self._client: Client | None = None
        self.site = settings.site
        """The edge site that this is, where the hub may be out of reach while NATS answers."""
        self._js_prefix = settings.js_prefix
        # Of each site its own, so that no other can listen to what its workers are sent.
        self._inbox_prefix = f"_INBOX_{service}" + (f"-{settings.site}" if settings.site else "")
        self._contexts: dict[str, JetStreamContext] = {}
        self._down_since: float | None = None
        self._store_id: tuple[int | None, str] = (None, "")
        """The id of the broker's store, and the connection on which it was read."""
        self._stopping = False
        self.broker = NatsBroker(
            settings.url,
            name=f"fusewire-{service}",
            inbox_prefix=self._inbox_prefix,
            allow_reconnect=True,
            # By default nats-py gives up reconnecting, and an outage may last longer.
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            connect_timeout=2,
            drain_timeout=int(drain_s) + 5,
            graceful_timeout=drain_s,
            ack_policy=AckPolicy.MANUAL,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            security=nats_identity.security(settings),
            middlewares=telemetry.broker_middlewares(),
            logger=None,
        )

    # -- life ---------------------------------------------------------------------------------

    async def connect(self, timeout_s: float | None = None) -> None:
        """Connect; keeps trying for ever, or for `timeout_s`.

        Raises:
            StartupError: no server answered in time, or it takes no messages as large as ours.
        """
        try:
            async with asyncio.timeout(timeout_s):
                self._client = await self.broker.connect()
        except (TimeoutError, NatsError, OSError) as exc:
            raise StartupError(
                f"no NATS server answers at {_addresses(self.broker)} ({type(exc).__name__})",
                "start one, or mend [nats] url (FUSEWIRE_NATS__URL)",
            ) from None
        if self._client.max_payload < LEAST_PAYLOAD:
            raise StartupError(
                f"the NATS server at {_addresses(self.broker)} takes messages of "
                f"{self._client.max_payload} bytes at most",
                f"set its max_payload to {LEAST_PAYLOAD} or more",
            )
        self._heartbeat_task = asyncio.create_task(
            self._heartbeat(), name=f"{self.service}-heartbeat"
        )

    async def start(self) -> None:
        """Begin to deliver to the FastStream subscribers registered so far."""
        await self.broker.start()

    async def stop(self) -> None:
        """Let running handlers end (within `drain_s`), then close the connection."""
        self._stopping = True
        if self._heartbeat_task:
            self._heartbeat_task.cancel()
        await self._background.stop()
        try:
            await self.broker.stop()
        except (NatsError, OSError, TimeoutError):
            # Draining needs a server; when there is none, closing is all that is left.
            if self._client:
                with contextlib.suppress(NatsError, OSError, TimeoutError):
                    await self._client.close()
        await self._end_reconnecting()

    async def _end_reconnecting(self) -> None:
        """End nats-py's attempts to reconnect, which it cancels once while it closes.

        An attempt that fails just then drops that (see `tasks.cancel`): a closed connection would
        be tried again for ever, and the event loop could not end.
        """
        # nats-py has no public name for it.
        if self._client and (task := self._client._reconnection_task):  # noqa: SLF001 - see above
            await cancel([task])

    @property
    def is_connected(self) -> bool:
        """Whether the server answers at this moment."""
        return self._client is not None and self._client.is_connected

    @property
    def connection(self) -> int | None:
        """Number of this connection, counted from 0; None while there is none.

        A request that was sent on an earlier connection is never answered.
        """
        return int(self.client.stats["reconnects"]) if self.is_connected else None

    def faults(self) -> list[str]:
        """Why the process should be restarted."""
        reasons = []
        if self._closed_event.is_set():
            reasons.append("the connection to NATS is closed for good")
        if self._heartbeat_task and self._heartbeat_task.done() and not self._stopping:
            reasons.append("messages in hand are no longer kept")
        return reasons if self._stopping else reasons + self._background.faults()

    def unready(self) -> list[str]:
        """Why the service should get no work now."""
        return [] if self.is_connected else ["NATS does not answer"]

    @property
    def client(self) -> Client:
        """The nats-py client; only after `connect`."""
        if self._client is None:
            raise StartupError("the bus is not connected", "call connect() first")
        return self._client

    @property
    def js(self) -> JetStreamContext:
        """The JetStream context; at an edge site that of the hub."""
        return self._context(self._js_prefix)

    def js_of(self, stream: str) -> JetStreamContext:
        """The JetStream context of the server that has a stream."""
        return self._context(self.api_prefix(stream))

    def api_prefix(self, stream: str) -> str:
        """Subject prefix of the API of the server that has a stream."""
        return LOCAL_PREFIX if stream == OUTBOX.name else self._js_prefix

    def _context(self, prefix: str) -> JetStreamContext:
        if prefix not in self._contexts:
            self._contexts[prefix] = self.client.jetstream(timeout=PUBLISH_TIMEOUT_S, prefix=prefix)
        return self._contexts[prefix]

    async def confirm_subscriptions(self) -> None:
        """Wait until the server knows all subscriptions, if it answers soon."""
        # The client buffers a subscription and sends even the next ping before it: only the answer
        # to the second ping shows that the server knows the subscription.
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            await self.client.flush(CONFIRM_S)
            await self.client.flush(CONFIRM_S)

    async def key_value(self, bucket: str) -> KeyValue:
        """Open a bucket that `topology apply` has made."""
        return await self.js.key_value(bucket)

    def blobs(self, store: str) -> Blobs:
        """An object store that `topology apply` has made."""
        return Blobs(self.js, store)

    # -- publishing ---------------------------------------------------------------------------

    async def publish(
        self,
        subject: str,
        message: Wire | bytes,
        *,
        msg_id: str | None = None,
        headers: Mapping[str, str] | None = None,
        only_if_new: bool = False,
    ) -> bool:
        """Publish and wait until the server has stored it.

        Args:
            subject: where to; a stream must hold it.
            message: the body.
            msg_id: the server drops a second message of this id within its duplicate window.
            headers: further headers; the trace context is added.
            only_if_new: store only if the subject holds nothing yet.

        Returns:
            False if the message was already there, True if it was stored now.

        Raises:
            Transient: it is not known to be stored; publish again.
        """
        all_headers = {**telemetry.trace_headers(), **(headers or {})}
        if msg_id:
            all_headers["Nats-Msg-Id"] = msg_id
        if only_if_new:
            all_headers["Nats-Expected-Last-Subject-Sequence"] = "0"
        body = message.encode() if isinstance(message, Wire) else message
        try:
            ack = await self.js.publish(
                subject, body, headers=all_headers, timeout=PUBLISH_TIMEOUT_S
            )
        except NoStreamResponseError:
            raise Transient(f"no stream holds {subject}: run `fusewire topology apply`") from None
        except APIError as exc:
            if only_if_new and exc.err_code == ALREADY_THERE:
                return False
            raise Transient(
                f"the server refused {subject}: {exc.err_code} {exc.description}"
            ) from None
        except (NatsError, OSError, TimeoutError) as exc:
            raise Transient(f"publishing to {subject} failed: {type(exc).__name__}") from None
        metrics.count_published(self.service, ack.stream)
        return not ack.duplicate

    # -- receiving ----------------------------------------------------------------------------

    def subscribe(self, durable: Durable, handler: Handler, *, concurrency: int) -> None:
        """Register a FastStream subscriber on a durable. Call before `start`."""
        subscriber = self.broker.subscriber(
            durable.subject,
            durable=durable.name,
            stream=JStream(durable.stream, declare=False),
            # No more in hand than are being worked on: ack_wait runs while a message queues.
            pull_sub=PullSub(batch_size=concurrency, timeout=PULL_TIMEOUT_S),
            max_workers=concurrency,
            ack_policy=AckPolicy.MANUAL,
            inbox_prefix=f"{self._inbox_prefix}.".encode(),
            decoder=_keep_bytes,
        )

        async def deliver(msg: NatsMessage) -> None:
            raw = msg.raw_message
            assert isinstance(raw, Msg)
            await self.process(raw, within(HANDLED_WITHIN_S, handler))

        subscriber(deliver)

    async def require(self, *durables: Durable) -> None:
        """Check that the durables which a service binds to exist, and watch their backlog.

        Raises:
            StartupError: one does not.
        """
        for durable in durables:
            try:
                await self._consumer_info(durable)
            except (APIError, NatsError, TimeoutError):
                raise StartupError(
                    f"the consumer {durable.stream}/{durable.name} is not on the server",
                    "run `fusewire topology apply`",
                ) from None
        self._background.start(f"{self.service}-consumers", consumers.watch(self.js_of, durables))

    async def _consumer_info(self, durable: Durable) -> None:
        """Ask for a consumer, and once more where a busy server does not answer in time."""
        js = self.js_of(durable.stream)
        with contextlib.suppress(TimeoutError):
            await js.consumer_info(durable.stream, durable.name)
            return
        await js.consumer_info(durable.stream, durable.name)

    @property
    def last_store_id(self) -> str:
        """The id of the broker's store as it was read last; empty before the first read."""
        return self._store_id[1]

    async def store_id(self, *, afresh: bool = False) -> str:
        """The id of the broker's store; another one means that the store was lost.

        Args:
            afresh: whether to ask the server again on a connection that has been asked already.

        Raises:
            Transient: the server does not answer.
            StartupError: it was never provisioned.
        """
        connection = self.connection
        if not afresh and connection is not None and self._store_id[0] == connection:
            return self._store_id[1]
        try:
            info = await self.js.stream_info(CARRIERS[0])
        except (APIError, NatsError, TimeoutError, OSError):
            raise Transient(f"the stream {CARRIERS[0]} cannot be read") from None
        store_id = (info.config.metadata or {}).get(STORE_KEY)
        if not store_id:
            raise StartupError(
                f"the stream {CARRIERS[0]} has no store id", "run `fusewire topology apply`"
            )
        self._store_id = connection, store_id
        return store_id

    async def process(self, msg: Msg, handler: Handler) -> None:
        """Run a handler on one message; then ack, nak or dead-letter it."""
        delivery = Delivery.from_message(msg)
        started_at = time.perf_counter()
        with (
            telemetry.receiving(self.service, delivery.subject, delivery.headers),
            self.holding(delivery),
        ):
            result = await self.run_guarded(delivery, lambda: self._run(delivery, handler))
        metrics.count_handled(self.service, delivery.stream, result)
        metrics.handle_seconds(self.service, delivery.stream).observe(
            time.perf_counter() - started_at
        )

    async def run_guarded(self, delivery: Delivery, handle: Callable[[], Awaitable[str]]) -> str:
        """Handle a message; dead-letter it when its handler has crashed too often.

        Returns the result for the metrics: `ok`, `retried`, `dead` or what `handle` returns.
        """
        if delivery.deliveries <= SUSPECT_DELIVERIES:
            return await handle()
        key = f"{delivery.stream}-{delivery.sequence}"
        if await self._count_attempt(key) > CRASHES:
            return await self.dead_letter(delivery, "crash_loop: its handler never came to an end")
        try:
            return await handle()
        finally:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                await self._put_attempt(key, b"", {"KV-Operation": "DEL"})

    async def _count_attempt(self, key: str) -> int:
        """Count an attempt; returns how many did not end, this one included, 0 if unknown."""
        try:
            attempts = await self.key_value(ATTEMPT_BUCKET)
            try:
                before = int((await attempts.get(key)).value or b"0")
            except KeyNotFoundError:
                before = 0
            await self._put_attempt(key, str(before + 1).encode())
        except (NatsError, OSError, TimeoutError):
            return 0
        return before + 1

    async def _put_attempt(
        self, key: str, value: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """Write to the bucket by a name that gets through an edge site's server.

        That keeps `$KV` to itself; nats-py, unlike NATS's other clients, knows no other name.
        """
        subject = f"$KV.{ATTEMPT_BUCKET}.{key}"
        if self._js_prefix != LOCAL_PREFIX:
            subject = f"{self._js_prefix}.{subject}"
        await self.js.publish(subject, value, headers=dict(headers or {}))

    async def _run(self, delivery: Delivery, handler: Handler) -> str:
        try:
            await handler(delivery)
        except asyncio.CancelledError:
            # The service stops: another replica gets the message now, and not only after ack_wait.
            with contextlib.suppress(NatsError, OSError):
                await delivery.raw.nak()
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a handler raises decides the message's fate
            return await self.handle_failure(delivery, exc)
        await self.ack(delivery)
        return "ok"

    async def handle_failure(self, delivery: Delivery, exc: Exception) -> str:
        """Retry the message of a failed handler later; dead-letter it when no retry can help."""
        # What will pass is not counted: an outage would lose good messages (docs/decisions/0006).
        is_exhausted = delivery.deliveries >= MAX_DELIVERIES and not isinstance(exc, Transient)
        if is_exhausted or isinstance(exc, UnacceptableMessage):
            return await self.dead_letter(delivery, fault(exc))
        delay = retry_delay_s(delivery.deliveries, random.random())  # noqa: S311 - spreads retries, guards nothing
        if isinstance(exc, Transient) and exc.retry_after_s is not None:
            delay = exc.retry_after_s
        log.warning(
            "bus.message_retried",
            stream=delivery.stream,
            sequence=delivery.sequence,
            deliveries=delivery.deliveries,
            fault=fault(exc),
            delay_s=round(delay, 2),
        )
        with contextlib.suppress(NatsError, OSError):
            await delivery.raw.nak(delay)
        return "retried"

    async def dead_letter(self, delivery: Delivery, reason: str) -> str:
        """Publish a message to FW_DEAD with the reason, and acknowledge it.

        Its body goes there too if it may be read anywhere, else to FW_DEAD_EDGE
        (docs/decisions/0007).
        """
        is_open = _is_open(delivery)
        dead_id = f"dead-{delivery.stream}-{delivery.sequence}"
        headers = {
            "Fw-Reason": reason.replace("\n", " ")[:500],
            "Fw-Subject": delivery.subject,
            "Fw-Stream-Sequence": str(delivery.sequence),
            "Fw-Deliveries": str(delivery.deliveries),
            "Fw-Body": "whole" if is_open else "sealed",
        }
        if msg_id := delivery.headers.get("Nats-Msg-Id"):
            headers["Fw-Msg-Id"] = msg_id
        try:
            if not is_open:
                body_subject = sealed_subject(delivery.stream, delivery.sequence)
                await self.publish(body_subject, delivery.data, msg_id=dead_id)
                reach(CrashPoint.BUS_BODY_SEALED)
            await self.publish(
                dead_subject(self.service, delivery.stream),
                delivery.data if is_open else b"",
                msg_id=dead_id,
                headers=headers,
            )
        except Transient as exc:
            return await self.handle_failure(delivery, exc)
        reach(CrashPoint.BUS_DEAD_LETTERED)
        log.error(
            "bus.message_buried", stream=delivery.stream, sequence=delivery.sequence, reason=reason
        )
        await self.ack(delivery)
        return "dead"

    async def ack(self, delivery: Delivery) -> None:
        """Acknowledge, without waiting for the server to confirm it.

        A lost acknowledgement only means a redelivery, which is harmless.
        """
        try:
            await delivery.raw.ack()
        except (NatsError, OSError) as exc:
            log.warning(
                "bus.ack_lost",
                stream=delivery.stream,
                sequence=delivery.sequence,
                fault=type(exc).__name__,
            )

    def hold(self, delivery: Delivery) -> None:
        """Keep telling the server that a message is being worked on, until `holding` ends."""
        self._live[id(delivery)] = delivery

    def let_go(self, delivery: Delivery) -> None:
        """Tell it no more."""
        self._live.pop(id(delivery), None)

    @contextlib.contextmanager
    def holding(self, *deliveries: Delivery) -> Any:
        """Inside the block, keep telling the server that these messages are being worked on."""
        for delivery in deliveries:
            self.hold(delivery)
        try:
            yield
        finally:
            for delivery in deliveries:
                self.let_go(delivery)

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            for delivery in list(self._live.values()):
                with contextlib.suppress(NatsError, OSError):
                    await delivery.raw.in_progress()

    # -- callbacks ----------------------------------------------------------------------------

    async def _on_error(self, exc: Exception) -> None:
        now = time.monotonic()
        # One line per 5 s of outage, not per attempt.
        if self._down_since is None or now - self._down_since > ERROR_LOG_PERIOD_S:
            self._down_since = now
            log.warning("bus.error", service=self.service, fault=type(exc).__name__)

    async def _on_disconnected(self) -> None:
        if not self._stopping:
            log.warning("bus.disconnected", service=self.service)

    async def _on_reconnected(self) -> None:
        self._down_since = None
        log.info("bus.reconnected", service=self.service)

    async def _on_closed(self) -> None:
        self._closed_event.set()
        if not self._stopping:
            log.error("bus.closed", service=self.service)


def _is_open(delivery: Delivery) -> bool:
    """Whether a body may be read anywhere; only then it is copied to FW_DEAD."""
    if delivery.stream == INGEST.stream:
        return False  # not admitted yet: its pool may be edge-only, whatever it says itself
    try:
        body = json.loads(delivery.data)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("residency") == "any"


async def _keep_bytes(message: NatsMessage) -> bytes:
    """Do not decode the body: FastStream would read the bytes `1` as a number."""
    body = message.body
    assert isinstance(body, bytes)
    return body


def _addresses(broker: NatsBroker) -> str:
    """The broker's addresses without user and password."""
    urls = [str(url).rpartition("@")[2] for url in broker.specification.url]
    return ", ".join(urls)
