"""Every stream, subject, durable, bucket and limit, as data.

`provision.apply` makes a server match it; services only bind to what is there.
Subjects are built here and nowhere else.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fusewire.contracts import PRIORITIES, Priority, Tier

MIB = 1024**2
GIB = 1024**3
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

LEDGER_BUCKET = "fw_calls"
DIALECT_BUCKET = "fw_dialects"
ATTEMPT_BUCKET = "fw_attempts"
BLOB_STORE = "fw_blobs"

MAX_DELIVERIES = 5
"""A message whose handler has failed this often is dead-lettered."""


@dataclass(frozen=True)
class Stream:
    """One stream. 0 means "no limit" for every number."""

    name: str
    subjects: tuple[str, ...]
    retention: Literal["workqueue", "limits"]
    max_bytes: int = 0
    max_age_s: float = 0
    max_per_subject: int = 0
    discard_new: bool = True
    schedules: bool = False
    duplicate_window_s: float = 120


@dataclass(frozen=True)
class Durable:
    """One durable pull consumer.

    `ack_wait_s` is the time until the messages of a dead process are redelivered; a live process
    sends a heartbeat every third of it.
    """

    stream: str
    name: str
    subject: str
    ack_wait_s: float = 15
    max_ack_pending: int = 1000


@dataclass(frozen=True)
class KeyValueBucket:
    """One key-value bucket."""

    name: str
    ttl_s: float
    max_bytes: int


@dataclass(frozen=True)
class ObjectStore:
    """One object store."""

    name: str
    ttl_s: float
    max_bytes: int


@dataclass(frozen=True)
class Topology:
    """All streams, durables and buckets of a server."""

    streams: tuple[Stream, ...]
    durables: tuple[Durable, ...]
    buckets: tuple[KeyValueBucket, ...]
    object_stores: tuple[ObjectStore, ...]
    replicas: int = 1
    retired: tuple[tuple[str, str], ...] = ()
    """Durables of earlier versions, by stream and name, which others have replaced."""


DISPATCHER_PROMPTS = tuple(
    Durable("FW_PROMPT", f"dispatcher-{p}", f"fw.prompt.{p}.*") for p in PRIORITIES
)
"""In the order of priority."""
DISPATCHER_ROUND = Durable("FW_ROUND", "dispatcher", "fw.round.*")
JUDGE = Durable("FW_CANDIDATE", "judge", "", max_ack_pending=4096)
JUDGE_DUE = Durable("FW_TIMER", "judge-due", "fw.due.*", max_ack_pending=4096)
INGEST = Durable("FW_IN", "ingest", "fw.in.*")

RETIRED = (("FW_PROMPT", "dispatcher"),)

STREAMS: tuple[Stream, ...] = (
    Stream("FW_PROMPT", ("fw.prompt.*.*",), "workqueue", max_bytes=GIB),
    Stream("FW_ROUND", ("fw.round.*",), "workqueue", max_bytes=GIB),
    Stream("FW_TASK_EDGE", ("fw.task.edge.*.*",), "workqueue", max_bytes=4 * GIB),
    Stream("FW_TASK_REMOTE", ("fw.task.remote.*.*",), "workqueue", max_bytes=4 * GIB),
    # Work queue: messages that the judge has committed are removed (docs/decisions/0041).
    Stream(
        "FW_CANDIDATE",
        ("fw.plan.*", "fw.candidate.*.*.*"),
        "workqueue",
        max_bytes=4 * GIB,
        max_per_subject=1,
    ),
    # The server refuses "discard new" here, and a limit would drop the oldest schedule.
    Stream("FW_TIMER", ("fw.sched.*", "fw.due.*"), "workqueue", discard_new=False, schedules=True),
    Stream(
        "FW_OUTCOME",
        ("fw.outcome.*.*",),
        "limits",
        max_bytes=GIB,
        max_age_s=DAY_S,
        discard_new=False,
    ),
    Stream(
        "FW_DEAD", ("fw.dead.>",), "limits", max_bytes=GIB, max_age_s=14 * DAY_S, discard_new=False
    ),
    # Bodies of dead letters that not everybody who reads FW_DEAD may read (docs/decisions/0007).
    Stream(
        "FW_DEAD_EDGE",
        ("fw.sealed.>",),
        "limits",
        max_bytes=GIB,
        max_age_s=14 * DAY_S,
        discard_new=False,
    ),
    Stream("FW_IN", ("fw.in.*",), "workqueue", max_bytes=GIB),
)

OUTBOX = Stream("FW_OUTBOX", ("fw.outbox.*.*.*",), "workqueue", max_bytes=GIB, max_per_subject=1)
"""Candidates that an edge site has made and the hub has not stored yet; on the site's own server
(docs/decisions/0049)."""
FORWARDER = Durable(OUTBOX.name, "forwarder", "", max_ack_pending=4096)

PRIORITY = "Fw-Priority"
"""Header of plans and candidates: the priority of their prompt, by which the judge takes them."""
REPEATED = "Fw-Repeated"
"""Header of tasks that may have been published before, to a store that was lost with its ledger.
Calls may have been made for them that nobody knows of (docs/decisions/0041)."""
STORE_KEY = "fusewire_store"
"""Key in the first stream's metadata with the id of the broker's store; a new store has a new
id (docs/decisions/0044)."""
CARRIERS = ("FW_PROMPT", "FW_ROUND", "FW_TASK_EDGE", "FW_TASK_REMOTE", "FW_CANDIDATE")
"""The streams that every fusion passes through: one of them holds a message of each open fusion."""
STORES = (*CARRIERS, f"KV_{LEDGER_BUCKET}")
"""The streams that must not be full."""
ALARM = 0.7
"""The share of a stream's limit from which a warning is logged."""

LEDGER = KeyValueBucket(LEDGER_BUCKET, ttl_s=7 * DAY_S, max_bytes=4 * GIB)
BLOBS = ObjectStore(BLOB_STORE, ttl_s=7 * DAY_S, max_bytes=4 * GIB)
"""Kept as long as a prompt may wait for its deadline. Only for prompts that hosted models may
see."""

_LIMITS = [
    LEDGER.max_bytes,
    BLOBS.max_bytes,
    *(stream.max_bytes for stream in STREAMS if stream.max_bytes),
]
DIALECTS = KeyValueBucket(DIALECT_BUCKET, ttl_s=90 * DAY_S, max_bytes=8 * MIB)
"""With an expiry, since servers change: dialects are detected again from time to time
(docs/decisions/0035)."""
ATTEMPTS = KeyValueBucket(ATTEMPT_BUCKET, ttl_s=DAY_S, max_bytes=8 * MIB)
_SMALL = (DIALECTS, ATTEMPTS)
_SMALL_BYTES = sum(bucket.max_bytes for bucket in _SMALL)

FULL_STORAGE_MB = (sum(_LIMITS) + _SMALL_BYTES) // MIB
"""MiB that all of them may take together by default; streams without a limit are small."""
LEAST_BYTES = 8 * MIB
"""The least limit of a stream: it holds eight of the largest messages."""


def task_stream(tier: Tier) -> str:
    """The stream that holds the tasks of a tier."""
    return "FW_TASK_EDGE" if tier == "edge" else "FW_TASK_REMOTE"


def task_durable(queue: str, tier: Tier, priority: Priority) -> Durable:
    """The durable from which workers take the tasks of one queue and priority."""
    return Durable(task_stream(tier), f"{queue}-{priority}", task_subject(tier, queue, priority))


def topology(
    models: Mapping[str, Tier],
    pools: Collection[str],
    replicas: int = 1,
    storage_mb: int = FULL_STORAGE_MB,
) -> Topology:
    """The whole topology for these models and pools.

    Args:
        models: configured model names and their tiers; each edge model gets a durable per priority.
        pools: names of the pools; with hosted models, each gets a durable per priority.
        replicas: copies of each stream.
        storage_mb: MiB that all streams may take together, for one copy; each gets its share.
    """
    least = len(_LIMITS) * LEAST_BYTES + _SMALL_BYTES
    share = (storage_mb * MIB - least) / (sum(_LIMITS) - len(_LIMITS) * LEAST_BYTES)

    def limit(max_bytes: int) -> int:
        if not max_bytes:
            return 0
        return LEAST_BYTES + int((max_bytes - LEAST_BYTES) * min(1.0, max(0.0, share)))

    durables = [*DISPATCHER_PROMPTS, DISPATCHER_ROUND, JUDGE, JUDGE_DUE, INGEST]
    for queue, tier in _queues(models, pools):
        durables += [task_durable(queue, tier, priority) for priority in PRIORITIES]
    streams = tuple(replace(stream, max_bytes=limit(stream.max_bytes)) for stream in STREAMS)
    ledger = replace(LEDGER, max_bytes=limit(LEDGER.max_bytes))
    blobs = replace(BLOBS, max_bytes=limit(BLOBS.max_bytes))
    buckets = (ledger, *_SMALL)
    return Topology(streams, tuple(durables), buckets, (blobs,), replicas, RETIRED)


def site_topology() -> Topology:
    """What an edge site's own server holds; all else is on the hub."""
    return Topology((OUTBOX,), (FORWARDER,), (), ())


def _queues(models: Mapping[str, Tier], pools: Collection[str]) -> list[tuple[str, Tier]]:
    """The queues of tasks: one per edge model, and one per pool if there are hosted models."""
    queues: list[tuple[str, Tier]] = [
        (model, tier) for model, tier in sorted(models.items()) if tier == "edge"
    ]
    if "remote" in models.values():
        queues += [(pool, "remote") for pool in sorted(pools)]
    return queues


def prompt_subject(priority: Priority, tenant: str) -> str:
    """Where ingest publishes a prompt."""
    return f"fw.prompt.{priority}.{tenant}"


def round_subject(fusion: str) -> str:
    """Where the judge publishes a round."""
    return f"fw.round.{fusion}"


def task_subject(tier: Tier, queue: str, priority: Priority) -> str:
    """Where the dispatcher publishes tasks.

    `queue` is the pool for hosted models, and the model at the edge.
    """
    return f"fw.task.{tier}.{queue}.{priority}"


def plan_subject(fusion: str) -> str:
    """Where dispatcher publishes a plan."""
    return f"fw.plan.{fusion}"


def candidate_subject(fusion: str, round_: int, call: str) -> str:
    """Where a worker publishes a candidate; the subject takes only one message."""
    return f"fw.candidate.{fusion}.{round_}.{call}"


def outbox_subject(fusion: str, round_: int, call: str) -> str:
    """Where a worker of an edge site stores a candidate until the hub has it."""
    return f"fw.outbox.{fusion}.{round_}.{call}"


def candidate_subjects(fusion: str) -> str:
    """All candidates of a fusion."""
    return f"fw.candidate.{fusion}.*.*"


def schedule_subject(fusion: str) -> str:
    """Where the judge sets its timer; setting it again replaces it."""
    return f"fw.sched.{fusion}"


def due_subject(fusion: str) -> str:
    """Where the timer arrives."""
    return f"fw.due.{fusion}"


def outcome_subject(tenant: str, fusion: str) -> str:
    """Where the judge announces an outcome."""
    return f"fw.outcome.{tenant}.{fusion}"


def token_subject(fusion: str) -> str:
    """Where a worker publishes pieces of an answer; core NATS, so nothing is stored."""
    return f"fw.token.{fusion}"


def stored_subject(fusion: str) -> str:
    """Where workers ask the judge which candidates of a fusion are stored; core NATS."""
    return f"fw.stored.{fusion}"


def held_subject(holder: str) -> str:
    """Where a process of ingest is asked whether a client waits there for a fusion; core NATS."""
    return f"fw.held.{holder}"


def cancel_subject(fusion: str) -> str:
    """Where ingest publishes cancellations; core NATS. The mark in SQL is authoritative."""
    return f"fw.cancel.{fusion}"


def intake_subject(tenant: str) -> str:
    """Where producers on the bus publish prompts."""
    return f"fw.in.{tenant}"


def dead_subject(service: str, stream: str) -> str:
    """Where a service publishes dead letters."""
    return f"fw.dead.{service}.{stream}"


def sealed_subject(stream: str, sequence: int) -> str:
    """Where the body of a dead letter goes that not every operator may read."""
    return f"fw.sealed.{stream}.{sequence}"
