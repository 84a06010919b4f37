"""What a provider's protocol has to say: how a task is asked, and how a response is read. No IO."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from fusewire.contracts import FinishReason, Task, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire_worker_remote.dialect import PLAIN, Dialect
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.sse import Event

DEPTH_HEADER = "x-fusewire-depth"
"""How many Fusewires a request has come through, so that one that asks itself is found out."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST. `headers` may hold the key, so it never shows in a repr."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    payload: Mapping[str, Any] = field(repr=False)

    @property
    def body(self) -> bytes:
        """The payload as JSON."""
        return json.dumps(self.payload, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    """Whole; empty where `is_heard`."""
    is_heard: bool = False
    """Whether the body was a stream, and was handed on while it came."""


@dataclass(frozen=True, slots=True)
class ProviderReply:
    """A complete answer: text, tool calls or both. `usage` is None when the provider did not count."""

    content: str | None = field(repr=False)
    finish_reason: FinishReason | None
    """None where the provider gave a reason that stands for none of ours."""
    usage: Usage | None
    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    provider_reason: str | None = None
    """Why it ended, in the provider's own word."""
    cost_usd: float | None = None
    """What the provider says that it charged."""
    reasoning: str | None = field(default=None, repr=False)
    """What the model thought, where that came beside or before the answer."""


class Assembly(Protocol):
    """A streamed answer in the making."""

    @property
    def is_ended(self) -> bool:
        """Whether nothing that may still come counts."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, though more may come; a stream that breaks off now has lost nothing."""
        ...

    def add(self, event: Event) -> str:
        """Take the next event; return the text that it adds to the answer."""
        ...

    def add_object(self, chunk: object) -> str:
        """Take what an event holds, parsed; return the text that it adds to the answer."""
        ...

    def result(self) -> ProviderReply | Failure:
        """What the stream, now at its end, came to: just what the whole body would have."""
        ...


class Provider(Protocol):
    """One file per protocol implements this."""

    known: Dialect
    """What every model there is known not to take."""

    def request(
        self, task: Task, model: RemoteModel, dialect: Dialect = PLAIN, *, is_streamed: bool = False
    ) -> HttpRequest | Failure:
        """Ask for an answer, as far as the model is known in the words that it takes. The key is read here.

        Returns:
            A failure where the protocol has no way to say what the task holds.
        """
        ...

    def read(self, response: HttpResponse, now: datetime) -> ProviderReply | Failure:
        """Tell an answer that came whole from a failure, whatever the bytes are."""
        ...

    def assemble(self, now: datetime) -> Assembly:
        """Begin to put a streamed answer together."""
        ...


def request(  # noqa: PLR0917 - the parts of a request, in their order
    task: Task,
    model: RemoteModel,
    dialect: Dialect,
    path: str,
    key_headers: Mapping[str, str],
    payload: Mapping[str, Any],
) -> HttpRequest:
    """The POST with what every protocol's requests have in common.

    The task's id is the idempotency key, where a server knows such a thing.
    """
    left_out = Dialect(dropped=model.drop).merged(dialect)
    sent = left_out.applied({**payload, **model.params})
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": task.task_id,
        DEPTH_HEADER: str(task.depth + 1),
        **key_headers,
    }
    return HttpRequest(f"{model.base_url.rstrip('/')}/{path}", headers, sent)


def key_of(model: RemoteModel, header: str, prefix: str = "") -> dict[str, str]:
    """The header with the key; none where the model has no key."""
    key = model.api_key
    return {header: prefix + key.get_secret_value()} if key is not None else {}


def max_tokens(task: Task, model: RemoteModel) -> int | None:
    """The answer's length that is asked for."""
    return task.sampling.max_tokens if task.sampling.max_tokens is not None else model.max_tokens
