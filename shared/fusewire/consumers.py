"""How much waits for the consumers of a service, as metrics."""

import asyncio
from collections.abc import Callable, Iterable

from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from fusewire import metrics
from fusewire.topology import Durable

EVERY_S = 15.0
"""How often a process asks; Prometheus scrapes about as often."""


ContextOf = Callable[[str], JetStreamContext]
"""The JetStream context of the server that has a stream."""


async def look(context_of: ContextOf, durables: Iterable[Durable]) -> None:
    """Ask for the backlog of consumers. What cannot be read stays as it was."""
    for durable in durables:
        try:
            js = context_of(durable.stream)
            info = await js.consumer_info(durable.stream, durable.name)
        except (APIError, NatsError, TimeoutError, OSError):
            continue
        labels = durable.stream, durable.name
        metrics.CONSUMER_PENDING.labels(*labels).set(info.num_pending or 0)
        metrics.CONSUMER_IN_HAND.labels(*labels).set(info.num_ack_pending or 0)


async def watch(context_of: ContextOf, durables: Iterable[Durable]) -> None:
    """Look every `EVERY_S`, for ever."""
    while True:
        await look(context_of, durables)
        await asyncio.sleep(EVERY_S)
