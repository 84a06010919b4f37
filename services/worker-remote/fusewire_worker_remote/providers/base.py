"""What a provider's protocol has to say: how a task is asked, and how a response is read. No IO."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from fusewire.contracts import FinishReason, Task, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire_worker_remote.errors import Failure


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A POST. `headers` may hold the key, so it never shows in a repr."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer: text, tool calls or both. `usage` is None when the provider did not count."""

    content: str | None = field(repr=False)
    finish_reason: FinishReason
    usage: Usage | None
    tool_calls: tuple[ToolCall, ...] = field(default=(), repr=False)


class Provider(Protocol):
    """One file per protocol implements this."""

    def request(self, task: Task, model: RemoteModel) -> HttpRequest:
        """Ask for one whole answer, not streamed. The key is read here, at call time."""
        ...

    def read(self, response: HttpResponse, now: datetime) -> Reply | Failure:
        """Tell an answer from a failure, whatever the bytes are."""
        ...
