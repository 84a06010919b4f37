"""The interface of a provider's protocol: how to write a request and read a response. No IO."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from fusewire.contracts import FinishReason, Task, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire.sse import Event
from fusewire_worker_remote.dialect import PLAIN, Dialect
from fusewire_worker_remote.errors import Failure

DEPTH_HEADER = "x-fusewire-depth"
"""Number of Fusewires that a request has come through, so that a loop of them is noticed."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST request. `headers` may hold the key, so a repr never shows them."""

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
    """The whole body; empty if `is_streamed`."""
    is_streamed: bool = False
    """Whether the body was a stream, which was handed to a reader as it came."""


@dataclass(frozen=True, slots=True)
class ProviderReply:
    """A complete answer: text, tool calls or both. `usage` is None if the provider counts none."""

    content: str | None = field(repr=False)
    finish_reason: FinishReason | None
    """None if the provider gave a reason that corresponds to none of ours."""
    usage: Usage | None
    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    provider_reason: str | None = None
    """Why the answer ended, in the provider's own word."""
    cost_usd: float | None = None
    """The cost that the provider reports."""
    reasoning: str | None = field(default=None, repr=False)
    """The model's thought, if it came apart from the answer or before it."""


class Assembly(Protocol):
    """A streamed answer in the making."""

    @property
    def is_ended(self) -> bool:
        """Whether the rest of the stream can be ignored."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the answer is whole, so that nothing is lost if the stream breaks off now."""
        ...

    def add(self, event: Event) -> str:
        """Take the next event; return the text that it adds to the answer."""
        ...

    def add_object(self, chunk: object) -> str:
        """Take an event's parsed data; return the text that it adds to the answer."""
        ...

    def result(self) -> ProviderReply | Failure:
        """Return what `Provider.read` would have returned for the same answer in one body."""
        ...


class Provider(Protocol):
    """A protocol of hosted models; one file per protocol implements it."""

    base_dialect: Dialect
    """What every model of this provider is known to refuse."""

    def request(
        self, task: Task, model: RemoteModel, dialect: Dialect = PLAIN, *, is_streamed: bool = False
    ) -> HttpRequest | Failure:
        """Write the request for a task. The key is read here.

        Args:
            task: the task.
            model: the model to call.
            dialect: what the model is known to accept.
            is_streamed: whether to request a stream.

        Returns:
            A failure if the protocol cannot express the task.
        """
        ...

    def read(self, response: HttpResponse, now: datetime) -> ProviderReply | Failure:
        """Read a response that came whole. Any bytes are an answer or a failure."""
        ...

    def assemble(self, now: datetime) -> Assembly:
        """Return an empty assembly for a streamed answer."""
        ...


def request(  # noqa: PLR0917 - the parts of a request, in their order
    task: Task,
    model: RemoteModel,
    dialect: Dialect,
    path: str,
    key_headers: Mapping[str, str],
    payload: Mapping[str, Any],
) -> HttpRequest:
    """Return the POST with what the requests of all protocols have in common.

    The task's id is the idempotency key, for servers that support one.
    """
    model_dialect = Dialect(dropped=model.drop).merge(dialect) if model.drop else dialect
    wire_payload = model_dialect.apply({**payload, **model.params})
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": task.task_id,
        DEPTH_HEADER: str(task.depth + 1),
        **key_headers,
    }
    return HttpRequest(f"{model.base_url.rstrip('/')}/{path}", headers, wire_payload)


def key_header(model: RemoteModel, header: str, prefix: str = "") -> dict[str, str]:
    """Return the header with the API key; none if the model has no key."""
    key = model.api_key
    return {header: prefix + key.get_secret_value()} if key is not None else {}


def max_tokens(task: Task, model: RemoteModel) -> int | None:
    """Return the limit of an answer's tokens: the task's, else the model's."""
    return task.sampling.max_tokens if task.sampling.max_tokens is not None else model.max_tokens
