"""Who may do what on NATS: accounts, users and permissions, as data, and the file that holds them.

The streams are in the account FW. Workers have accounts of their own, EDGE and REMOTE, and reach
nothing of FW but the subjects that it exports to them: inside one account a client could have the
server publish a reply to any subject for it (docs/decisions/0049). So has each edge site
(docs/decisions/0061), and each tenant that submits prompts over NATS (docs/decisions/0055).
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fusewire.contracts import NAME
from fusewire.topology import (
    ATTEMPT_BUCKET,
    BLOB_STORE,
    CARRIERS,
    DIALECT_BUCKET,
    DISPATCHER_PROMPTS,
    DISPATCHER_ROUND,
    FORWARDER,
    INGEST,
    JUDGE,
    JUDGE_DUE,
    LEDGER_BUCKET,
    OUTBOX,
    STORES,
    cancel_subject,
    due_subject,
    held_subject,
    intake_subject,
    outcome_subject,
    plan_subject,
    round_subject,
    schedule_subject,
    stored_subject,
    task_stream,
    token_subject,
)

Account = str
"""FW, EDGE, REMOTE, or that of an edge site or of a tenant."""

API = "$JS.API"
WORKER_PREFIX = "fwjs"
"""What `$JS.API` is called in the accounts of workers: the server keeps that name to itself."""
STORE_STREAM = CARRIERS[0]
"""The stream with the id of the broker's store."""


@dataclass(frozen=True)
class User:
    """A user of NATS.

    Attributes:
        name: as in the variable with its public nkey, such as `FW_NKEY_WORKER_EDGE`.
        account: the account it belongs to.
        publish: subjects that it may publish to; those of the API as the account FW calls them.
        subscribe: subjects that it may subscribe to.
        replies: whether it may answer requests, wherever their senders want the reply.
    """

    name: str
    account: Account
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    replies: bool = False

    @property
    def variable(self) -> str:
        """The variable that holds its public nkey."""
        return "$FW_NKEY_" + self.name.upper().replace("-", "_")


def _pull(stream: str, durable: str) -> tuple[str, ...]:
    """To fetch from a durable and to acknowledge; `*` stands for all of the stream."""
    return (
        f"{API}.CONSUMER.INFO.{stream}.{durable}",
        f"{API}.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"$JS.ACK.{stream}.{durable}.>",
    )


def _info(streams: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{API}.STREAM.INFO.{stream}" for stream in streams)


def _consumers(streams: Iterable[str]) -> tuple[str, ...]:
    """To read how much waits for the durables of streams."""
    return tuple(f"{API}.CONSUMER.LIST.{stream}" for stream in streams)


def _bucket(name: str) -> tuple[str, ...]:
    """To read and write a key-value bucket that allows direct reads."""
    return (
        *_info([f"KV_{name}"]),
        f"{API}.DIRECT.GET.KV_{name}.$KV.{name}.*",
        f"$KV.{name}.*",
    )


def _read_blobs(store: str) -> tuple[str, ...]:
    return (f"{API}.STREAM.MSG.GET.OBJ_{store}",)


def _write_blobs(store: str) -> tuple[str, ...]:
    return (
        *_read_blobs(store),
        *_info([f"OBJ_{store}"]),
        f"{API}.STREAM.PURGE.OBJ_{store}",
        f"$O.{store}.C.*",
        f"$O.{store}.M.*",
    )


def _service(name: str) -> tuple[str, ...]:
    """What every service needs: to count attempts, and to dead-letter."""
    return (*_bucket(ATTEMPT_BUCKET), f"fw.dead.{name}.>", "fw.sealed.>")


def _worker(name: str, stream: str) -> tuple[str, ...]:
    return (
        *_pull(stream, "*"),
        "fw.candidate.*.*.*",
        stored_subject("*"),
        token_subject("*"),
        *_service(name),
    )


def _inbox(name: str) -> str:
    return f"_INBOX_{name}.>"


USERS: tuple[User, ...] = (
    User(
        "ingest",
        "FW",
        publish=(
            "fw.prompt.*.*",
            cancel_subject("*"),
            due_subject("*"),
            held_subject("*"),
            *_pull(INGEST.stream, INGEST.name),
            # Replies to producers on the bus.
            "_INBOX.>",
            *_info(STORES),
            *_consumers((*CARRIERS, INGEST.stream)),
            *_write_blobs(BLOB_STORE),
            *_service("ingest"),
        ),
        subscribe=(
            _inbox("ingest"),
            held_subject("*"),
            outcome_subject("*", "*"),
            plan_subject("*"),
            "fw.candidate.*.*.*",
            token_subject("*"),
        ),
        replies=True,
    ),
    User(
        "dispatcher",
        "FW",
        publish=(
            "fw.task.edge.*.*",
            "fw.task.remote.*.*",
            plan_subject("*"),
            *itertools.chain(*(_pull(prompt.stream, prompt.name) for prompt in DISPATCHER_PROMPTS)),
            *_pull(DISPATCHER_ROUND.stream, DISPATCHER_ROUND.name),
            *_info([STORE_STREAM]),
            *_service("dispatcher"),
        ),
        subscribe=(_inbox("dispatcher"), cancel_subject("*")),
    ),
    User(
        "judge",
        "FW",
        publish=(
            round_subject("*"),
            outcome_subject("*", "*"),
            schedule_subject("*"),
            *_pull(JUDGE.stream, JUDGE.name),
            *_pull(JUDGE_DUE.stream, JUDGE_DUE.name),
            f"{API}.STREAM.MSG.GET.{JUDGE.stream}",
            *_info([STORE_STREAM]),
            *_service("judge"),
        ),
        subscribe=(_inbox("judge"), stored_subject("*")),
        replies=True,
    ),
    # Operators provision, replay dead letters and erase.
    User("ops", "FW", publish=(">",), subscribe=(">",)),
    User(
        "worker-edge",
        "EDGE",
        publish=_worker("worker-edge", task_stream("edge")),
        subscribe=(_inbox("worker-edge"), cancel_subject("*")),
    ),
    User(
        "worker-remote",
        "REMOTE",
        publish=(
            *_worker("worker-remote", task_stream("remote")),
            *_read_blobs(BLOB_STORE),
            *_bucket(LEDGER_BUCKET),
            *_bucket(DIALECT_BUCKET),
        ),
        subscribe=(_inbox("worker-remote"), cancel_subject("*")),
    ),
)


def api_prefix(name: str) -> str:
    """The subject prefix of JetStream's API for a service."""
    is_in_fw = any(user.name == name and user.account == "FW" for user in USERS)
    return API if is_in_fw else WORKER_PREFIX


def site_user(site: str) -> User:
    """The server of an edge site, which passes on what the worker behind it does.

    It hears what is sent to its own workers, and not what other sites are sent.
    """
    return User(
        f"edge-site-{site}",
        f"EDGE_{site}",
        publish=_worker("worker-edge", task_stream("edge")),
        subscribe=(_inbox(f"worker-edge-{site}"), cancel_subject("*"), "_R_.>"),
    )


def tenant_user(tenant: str) -> User:
    """A tenant's producers: they submit prompts for it, and hear the replies to them."""
    return User(
        f"tenant-{tenant}",
        f"TENANT_{tenant}",
        publish=(intake_subject(tenant),),
        subscribe=(f"{tenant_inbox(tenant)}.>",),
    )


def tenant_inbox(tenant: str) -> str:
    """The prefix of the inboxes at which a tenant's producers hear replies."""
    return f"_INBOX.{tenant}"


def users(sites: Sequence[str] = (), tenants: Sequence[str] = ()) -> tuple[User, ...]:
    """All users of the hub.

    Args:
        sites: names of the edge sites.
        tenants: names of the tenants that submit prompts over NATS.

    Raises:
        ValueError: a name cannot be one, or two have the same variable.
    """
    for name in (*sites, *tenants):
        if not re.fullmatch(NAME, name):
            raise ValueError(f"the name '{name[:63]}' must be of a-z, 0-9, '-' and '_'")
    all_users = (*USERS, *map(site_user, sites), *map(tenant_user, tenants))
    names_by_variable: dict[str, str] = {}
    for user in all_users:
        if user.variable in names_by_variable:
            earlier = names_by_variable[user.variable]
            raise ValueError(f"'{earlier}' and '{user.name}' would have one key, {user.variable}")
        names_by_variable[user.variable] = user.name
    return all_users


def _in_worker_account(subject: str) -> str:
    """What a worker calls a subject of FW."""
    if subject.startswith(f"$KV.{ATTEMPT_BUCKET}."):
        # The server of an edge site keeps `$KV` to itself.
        return f"{WORKER_PREFIX}.{subject}"
    return subject.replace(API, WORKER_PREFIX, 1) if subject.startswith(API) else subject


def _allow(what: str, subjects: Iterable[str]) -> Iterator[str]:
    yield f"        {what}: {{ allow: ["
    for subject in subjects:
        yield f'          "{subject}"'
    yield "        ] }"


def _user_lines(user: User, publish: Iterable[str]) -> Iterator[str]:
    yield f"      {{ nkey: {user.variable}, permissions: {{ # {user.name}"
    yield from _allow("publish", publish)
    yield from _allow("subscribe", user.subscribe)
    if user.replies:
        yield "        allow_responses: true"
    yield "      } }"


def _publish_list(user: User) -> Iterable[str]:
    """What a user may publish to, by the names that its account uses."""
    return user.publish if user.account == "FW" else map(_in_worker_account, user.publish)


def _exports(workers: Iterable[User], tenants: Iterable[User]) -> Iterator[str]:
    """What FW lets the accounts of workers and tenants reach."""
    accounts_by_subject: dict[str, list[Account]] = {cancel_subject("*"): []}
    for user in workers:
        for subject in (*user.publish, cancel_subject("*")):
            accounts_by_subject.setdefault(subject, []).append(user.account)
    cancelling = accounts_by_subject.pop(cancel_subject("*"))
    for subject, accounts in accounts_by_subject.items():
        response = ", response: stream" if ".MSG.NEXT." in subject else ""
        yield f'      {{ service: "{subject}", accounts: [{", ".join(accounts)}]{response} }}'
    yield f'      {{ stream: "{cancel_subject("*")}", accounts: [{", ".join(cancelling)}] }}'
    for user in tenants:
        for kind, subjects in (("service", user.publish), ("stream", user.subscribe)):
            yield f'      {{ {kind}: "{subjects[0]}", accounts: [{user.account}] }}'


def _worker_imports(user: User) -> Iterator[str]:
    for subject in user.publish:
        name = _in_worker_account(subject)
        to = "" if name == subject else f', to: "{name}"'
        yield f'      {{ service: {{ account: FW, subject: "{subject}" }}{to} }}'
    yield f'      {{ stream: {{ account: FW, subject: "{cancel_subject("*")}" }} }}'


def _tenant_imports(user: User) -> Iterator[str]:
    for kind, subjects in (("service", user.publish), ("stream", user.subscribe)):
        yield f'      {{ {kind}: {{ account: FW, subject: "{subjects[0]}" }} }}'


def _account_lines(
    account: Account, account_users: Iterable[User], grants: Iterable[str]
) -> Iterator[str]:
    """An account.

    Args:
        account: its name.
        account_users: its users.
        grants: lines with what it exports, if it is FW, or else imports.
    """
    yield f"  {account} {{"
    if account == "FW":
        yield "    jetstream: enabled"
    yield "    users: ["
    for user in account_users:
        yield from _user_lines(user, _publish_list(user))
    yield "    ]"
    yield "    exports: [" if account == "FW" else "    imports: ["
    yield from grants
    yield "    ]"
    yield "  }"


def render(sites: Sequence[str] = (), tenants: Sequence[str] = ()) -> str:
    """The accounts as a file for nats-server to include.

    The public nkey of each user comes from a variable of the server's environment, such as
    `FW_NKEY_INGEST`; the server does not start where one is missing.

    Args:
        sites: names of the edge sites.
        tenants: names of the tenants that submit prompts over NATS.

    Raises:
        ValueError: as `users` does.
    """
    by_account: dict[Account, list[User]] = {}
    for user in users(sites, tenants):
        by_account.setdefault(user.account, []).append(user)
    workers = [user for user in (*USERS, *map(site_user, sites)) if user.account != "FW"]
    producers = [tenant_user(tenant) for tenant in tenants]
    grants = {
        "FW": _exports(workers, producers),
        **{user.account: _worker_imports(user) for user in workers},
        **{user.account: _tenant_imports(user) for user in producers},
    }
    account_lines = (_account_lines(name, by_account[name], grants[name]) for name in grants)
    lines = [
        "# Written by `fusewire topology accounts`.",
        "# Users are known by their nkeys: `fusewire topology nkeys FOLDER` makes them.",
        "accounts {",
        *itertools.chain.from_iterable(account_lines),
        "  SYS {}",
        "}",
        "system_account: SYS",
    ]
    return "\n".join(lines) + "\n"


def render_site(site: str) -> str:
    """The users of an edge site's own server, as a file for it to include."""
    worker = next(user for user in USERS if user.name == "worker-edge")
    outbox = (
        *_pull(OUTBOX.name, FORWARDER.name),
        f"{API}.STREAM.MSG.GET.{OUTBOX.name}",
        *OUTBOX.subjects,
    )
    worker = replace(worker, subscribe=(_inbox(f"worker-edge-{site}"), cancel_subject("*")))
    lines = [
        f"# Written by `fusewire topology accounts --site {site}`.",
        "authorization {",
        "    users: [",
        *_user_lines(worker, (*outbox, *_publish_list(worker))),
        f'      # Makes the outbox: `fusewire topology apply` with [nats] site = "{site}".',
        "      { nkey: $FW_NKEY_OPS }",
        "    ]",
        "}",
    ]
    return "\n".join(lines) + "\n"
