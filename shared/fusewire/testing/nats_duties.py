"""For tests: what each user of NATS is for, and everything that it might try.

The duties are written down from what the services do (ARCHITECTURE.md), and not from
`fusewire.accounts`, so that a permission too many or too few there is seen.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fusewire.topology import OUTBOX, Topology, site_topology

OWN_API = {"FW": "$JS.API", "SITE": "$JS.API"}
"""What an account calls JetStream's API of the hub, where that is not `fwjs`."""
TENANTS = ("acme", "default")
SERVICES = ("ingest", "dispatcher", "judge", "worker-edge", "worker-remote")


@dataclass(frozen=True)
class Duty:
    """What a user is for.

    Attributes:
        account: the account that it belongs to.
        takes: durables whose messages it handles, as `STREAM.durable`.
        sends: subjects of Fusewire on which it sends; `*` stands for one token.
        hears: subjects of Fusewire that it listens to.
        measures: streams whose size it reads.
        counts: streams of whose durables it reads how much waits.
        looks_up: streams of which it reads single messages.
        keeps: key-value buckets that it reads and writes; `fw_attempts` by a name that gets
            through an edge site's server, where it is no user of FW.
        stores: object stores that it writes, reads and deletes from.
        inbox: where it gets its replies.
    """

    account: str = "FW"
    takes: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    looks_up: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ("fw_attempts",)
    stores: tuple[str, ...] = ()
    inbox: tuple[str, ...] = ()
    requests: tuple[str, ...] = field(init=False)
    """Subjects of its requests that JetStream or a service answers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "requests", tuple(self._requests()))

    @property
    def api(self) -> str:
        """What its account calls JetStream's API."""
        return OWN_API.get(self.account, "fwjs")

    @property
    def puts(self) -> Sequence[str]:
        """Where it writes what it keeps."""
        prefix = "" if self.api == "$JS.API" else f"{self.api}."
        return [
            f"{prefix if bucket == 'fw_attempts' else ''}$KV.{bucket}.*" for bucket in self.keeps
        ]

    def _requests(self) -> Iterator[str]:
        for durable in self.takes:
            yield f"{self.api}.CONSUMER.INFO.{durable}"
            yield f"{self.api}.CONSUMER.MSG.NEXT.{durable}"
        streams = (*self.measures, *(f"KV_{bucket}" for bucket in self.keeps))
        for stream in (*streams, *(f"OBJ_{store}" for store in self.stores)):
            yield f"{self.api}.STREAM.INFO.{stream}"
        for stream in self.counts:
            yield f"{self.api}.CONSUMER.LIST.{stream}"
        for stream in self.looks_up:
            yield f"{self.api}.STREAM.MSG.GET.{stream}"
        for bucket in self.keeps:
            yield f"{self.api}.DIRECT.GET.KV_{bucket}.$KV.{bucket}.*"
        for store in self.stores:
            yield f"{self.api}.STREAM.PURGE.OBJ_{store}"

    def may_send(self, subject: str) -> bool:
        """Whether it is its duty to publish on a subject."""
        return any(covers(pattern, subject) for pattern in self._publish())

    def _publish(self) -> Iterator[str]:
        yield from (*self.sends, *self.requests)
        for durable in self.takes:
            yield f"$JS.ACK.{durable}.>"
        yield from self.puts
        for store in self.stores:
            yield from (f"$O.{store}.C.*", f"$O.{store}.M.*")

    def may_hear(self, subject: str) -> bool:
        """Whether it is its duty to subscribe to a subject."""
        return any(covers(pattern, subject) for pattern in (*self.hears, *self.inbox))


def _end(service: str) -> tuple[str, ...]:
    """Where a service sends what it cannot handle: the reason, and apart from it the body."""
    return f"fw.dead.{service}.*", "fw.sealed.*.*"


_ANSWERS = ("fw.candidate.*.*.*", "fw.token.*", "fw.stored.*")
"""A worker brings candidates and pieces of them, and asks the judge what it has."""
_CARRIERS = ("FW_PROMPT", "FW_ROUND", "FW_TASK_EDGE", "FW_TASK_REMOTE", "FW_CANDIDATE")
_EDGE = Duty(
    account="EDGE",
    takes=("FW_TASK_EDGE.*",),
    sends=(*_ANSWERS, *_end("worker-edge")),
    hears=("fw.cancel.*",),
    inbox=("_INBOX_worker-edge.>",),
)
_NOTHING: tuple[str, ...] = ()

DUTIES: Mapping[str, Duty] = {
    "ingest": Duty(
        takes=("FW_IN.ingest",),
        # Prompts; that one is cancelled, which is told to the judge too; whether another process
        # holds a client; replies to producers.
        sends=(
            *("fw.prompt.*.*", "fw.cancel.*", "fw.due.*", "fw.held.*", "_INBOX.>"),
            *_end("ingest"),
        ),
        # What it tells its clients: progress, pieces of the answer, the end.
        hears=("fw.plan.*", "fw.candidate.*.*.*", "fw.token.*", "fw.outcome.*.*", "fw.held.*"),
        # It refuses prompts while a store is full, and shows the queues.
        measures=(*_CARRIERS, "KV_fw_calls"),
        counts=(*_CARRIERS, "FW_IN"),
        looks_up=("OBJ_fw_blobs",),
        stores=("fw_blobs",),
        inbox=("_INBOX_ingest.>",),
    ),
    "dispatcher": Duty(
        takes=(
            *("FW_PROMPT.dispatcher-high", "FW_PROMPT.dispatcher-normal"),
            *("FW_PROMPT.dispatcher-low", "FW_ROUND.dispatcher"),
        ),
        sends=("fw.plan.*", "fw.task.edge.*.*", "fw.task.remote.*.*", *_end("dispatcher")),
        hears=("fw.cancel.*",),
        # The id of the store.
        measures=("FW_PROMPT",),
        inbox=("_INBOX_dispatcher.>",),
    ),
    "judge": Duty(
        takes=("FW_CANDIDATE.judge", "FW_TIMER.judge-due"),
        sends=("fw.round.*", "fw.outcome.*.*", "fw.sched.*", *_end("judge")),
        hears=("fw.stored.*",),
        measures=("FW_PROMPT",),
        looks_up=("FW_CANDIDATE",),
        inbox=("_INBOX_judge.>",),
    ),
    "worker-edge": _EDGE,
    "worker-remote": Duty(
        account="REMOTE",
        takes=("FW_TASK_REMOTE.*",),
        sends=(*_ANSWERS, *_end("worker-remote")),
        hears=("fw.cancel.*",),
        looks_up=("OBJ_fw_blobs",),
        keeps=("fw_attempts", "fw_calls", "fw_dialects"),
        inbox=("_INBOX_worker-remote.>",),
    ),
    # The site's server passes on what its worker does; `_R_` is where a server has replies sent.
    "edge-site-north": Duty(
        account="EDGE_north",
        takes=_EDGE.takes,
        sends=_EDGE.sends,
        hears=_EDGE.hears,
        inbox=("_INBOX_worker-edge-north.>", "_R_.>"),
    ),
    **{
        f"tenant-{tenant}": Duty(
            account=f"TENANT_{tenant}",
            sends=(f"fw.in.{tenant}",),
            keeps=_NOTHING,
            inbox=(f"_INBOX.{tenant}.>",),
        )
        for tenant in TENANTS
    },
}


def covers(pattern: str, subject: str) -> bool:
    """Whether a pattern matches all that a subject does, which may have wildcards itself.

    The server takes a `>` at the end for one token, as `*` is; nothing has longer subjects.

    >>> covers("fw.*.x", "fw.a.x"), covers("fw.>", "fw.*"), covers("fw.*", "fw.>")
    (True, True, True)
    >>> covers("fw.*.x", "fw.>"), covers("fw.a", "fw.>"), covers("fw.*", ">")
    (False, False, False)
    """
    pattern_tokens, tokens = pattern.split("."), subject.split(".")
    for number, token in enumerate(pattern_tokens):
        if token == ">":
            return len(tokens) > number
        if number >= len(tokens):
            return False
        if token not in ("*", tokens[number]):
            return False
    return len(pattern_tokens) == len(tokens)


def in_fw(subject: str) -> str:
    """What FW calls a subject on which somebody sends."""
    return subject.replace("fwjs.$KV.", "$KV.").replace("fwjs.", "$JS.API.")


def core_subjects(topology: Topology) -> Sequence[str]:
    """A subject of each kind that Fusewire uses, and some that are nearly one."""
    tasks = [durable.subject for durable in topology.durables if ".task." in durable.subject]
    return (
        *(f"fw.prompt.{priority}.t" for priority in ("high", "normal", "low")),
        *tasks,
        *("fw.round.f", "fw.plan.f", "fw.candidate.f.1.a", "fw.outcome.t.f", "fw.sched.f"),
        *("fw.due.f", "fw.token.f", "fw.cancel.f", "fw.stored.f", "fw.held.p"),
        *("fw.outbox.f.1.a", "fw.sealed.FW_IN.1"),
        *(f"fw.in.{tenant}" for tenant in (*TENANTS, "stranger")),
        *(f"fw.dead.{service}.FW_IN" for service in (*SERVICES, "console")),
        *("fw", "fw.prompt", "fw.task.edge", "fw.task.x.m.high", "fw.plan.f.g", "fw.candidate.f.1"),
        *("fw.in", "fw.in.acme.x", "fw.dead", "fw.unknown", "FW.PROMPT.high"),
    )


def _own_inboxes() -> Iterator[str]:
    return itertools.chain.from_iterable(duty.inbox for duty in DUTIES.values())


def inboxes() -> Sequence[str]:
    """A subject in the inbox of each user, and of others."""
    subjects = [pattern.replace(">", "x.y") for pattern in _own_inboxes()]
    return (*subjects, "_INBOX_ops.x.y", "_INBOX_worker-edge-south.x.y", "_INBOX.x.y", "_INBOX.x")


_ACCOUNT_VERBS = (
    *("INFO", "STREAM.NAMES", "STREAM.LIST", "META.LEADER.STEPDOWN", "SERVER.REMOVE"),
    *("ACCOUNT.PURGE.FW", "ACCOUNT.PURGE.EDGE", "ACCOUNT.STREAM.MOVE.FW.FW_IN"),
    "ACCOUNT.STREAM.CANCEL_MOVE.FW.FW_IN",
)
_STREAM_VERBS = (
    *("STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.INFO", "STREAM.PURGE"),
    *("STREAM.SNAPSHOT", "STREAM.RESTORE", "STREAM.MSG.GET", "STREAM.MSG.DELETE"),
    *("STREAM.LEADER.STEPDOWN", "STREAM.PEER.REMOVE", "DIRECT.GET", "CONSUMER.CREATE"),
    *("CONSUMER.LIST", "CONSUMER.NAMES"),
)
_DURABLE_VERBS = (
    *("CONSUMER.CREATE", "CONSUMER.DURABLE.CREATE", "CONSUMER.DELETE", "CONSUMER.INFO"),
    *("CONSUMER.MSG.NEXT", "CONSUMER.PAUSE", "CONSUMER.UNPIN", "CONSUMER.RESET"),
    "CONSUMER.LEADER.STEPDOWN",
)
_SYSTEM = (
    *("$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.ACCOUNT.FW.CONNZ"),
    *("$SYS.REQ.ACCOUNT.FW.JSZ", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.USER.INFO"),
    *("$SYS.REQ.CLAIMS.UPDATE", "$SYS.ACCOUNT.FW.CONNECT", "$SYS.REQ.SERVER.x.RELOAD"),
    *("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.FW_IN.ingest", "$JS.SNAPSHOT.RESTORE.FW_IN.x"),
)


def system_subjects(topology: Topology) -> Sequence[str]:
    """Each verb of the server's interfaces on everything that there is, by all names of them."""
    site = site_topology()
    all_durables = (*topology.durables, *site.durables)
    streams = {
        *(stream.name for stream in (*topology.streams, *site.streams)),
        *(f"KV_{bucket.name}" for bucket in topology.buckets),
        *(f"OBJ_{store.name}" for store in topology.object_stores),
    }
    # On each stream also one that is not there.
    durables = {(durable.stream, durable.name) for durable in all_durables}
    durables |= {(stream, "unknown") for stream in streams}
    keys = [f"$KV.{bucket.name}.k" for bucket in topology.buckets]
    stores = [store.name for store in topology.object_stores]
    pieces = [f"$O.{store}.{kind}.x" for store, kind in itertools.product(stores, "CM")]
    direct = [f"DIRECT.GET.KV_{key.split('.')[1]}.{key}" for key in keys]
    requests = (
        *_ACCOUNT_VERBS,
        *(f"{verb}.{stream}" for verb, stream in itertools.product(_STREAM_VERBS, sorted(streams))),
        *(
            f"{verb}.{stream}.{durable}"
            for verb, (stream, durable) in itertools.product(_DURABLE_VERBS, sorted(durables))
        ),
        *(f"CONSUMER.CREATE.{d.stream}.{d.name}.{d.subject or '>'}" for d in all_durables),
        *(*direct, *keys),
        "DIRECT.GET.FW_CANDIDATE.fw.candidate.f.1.a",
        *(f"DIRECT.GET.OBJ_{piece.split('.')[1]}.{piece}" for piece in pieces),
    )
    prefixes = ("$JS.API", "fwjs", "$JS.hub.API", "$JS.FW.API")
    acks = [
        f"$JS.ACK.{where}{stream}.{durable}.1.1.1.1.1"
        for where, (stream, durable) in itertools.product(("", "hub.hash."), sorted(durables))
    ]
    flow = [f"$JS.FC.{stream}.{durable}.x" for stream, durable in sorted(durables)]
    return (
        *(f"{prefix}.{request}" for prefix, request in itertools.product(prefixes, requests)),
        *(*keys, *pieces, *acks, *flow, *_SYSTEM, f"$JS.API.STREAM.INFO.{OUTBOX.name}.x"),
    )


def wildcards() -> Sequence[str]:
    """Subscriptions to more than one subject."""
    return (
        *(">", "*", "*.>", "*.*", "fw.>", "fw.*", "fw.*.*", "fw.*.*.*", "fw.*.>", "fw.task.>"),
        *("fw.prompt.>", "fw.prompt.*.*", "fw.task.*.*.*", "fw.candidate.>", "fw.candidate.*.*.*"),
        *("fw.plan.*", "fw.outcome.>", "fw.outcome.*.*", "fw.outcome.acme.*", "fw.token.*"),
        *("fw.token.>", "fw.cancel.*", "fw.cancel.>", "fw.stored.*", "fw.held.*", "fw.in.*"),
        *("fw.dead.>", "fw.sealed.>", "fw.sealed.*.*", "fw.outbox.>", "fw.round.*", "fw.sched.*"),
        *("fw.due.*", "_INBOX.>", "_INBOX.*", "_INBOX.*.*", "_R_.>", "_R_.*", "$SYS.>", "$JS.>"),
        *("$JS.API.>", "$JS.API.CONSUMER.MSG.NEXT.>", "$JS.ACK.>", "$JS.EVENT.>", "$KV.>", "$O.>"),
        *("$KV.fw_calls.>", "$KV.fw_calls.*", "$O.fw_blobs.>", "fwjs.>", "_GR_.>", "$GR.>"),
        *_own_inboxes(),
        *("_INBOX_ops.>", "_INBOX_worker-edge-south.>"),
    )
