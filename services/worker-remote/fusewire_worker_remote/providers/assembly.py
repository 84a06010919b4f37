"""The part of assembling a streamed answer that all protocols share. No IO."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from fusewire.sse import Event
from fusewire_worker_remote.errors import Failure, classify, is_error, truncation
from fusewire_worker_remote.providers.base import ProviderReply

_DONE = "[DONE]"
_KEEP_ALIVES = ("ping", "keepalive", "keep-alive", "heartbeat")


class JsonAssembly(ABC):
    """Assembles events that hold JSON objects. Implements `Assembly`.

    Empty events are skipped: servers send them to keep a connection alive.

    It rebuilds the body that would have come without streaming, so that `read_body` reads both.
    """

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._failure: Failure | None = None
        self.is_ended = False
        """See `Assembly`."""
        self.is_complete = False
        """See `Assembly`."""
        self.has_answered = False
        """Whether any part of the answer has come, which is then paid for."""

    def add(self, event: Event) -> str:
        """See `Assembly`."""
        data = event.data.strip()
        if self.is_ended or not data or event.name in _KEEP_ALIVES:
            return ""
        if data == _DONE:
            self.is_ended = True
            self.is_complete = True
            return ""
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            if event.name == "error":
                return self._take_error(data)
            return self._fail(truncation("an event of the stream is no JSON"))
        if event.name == "error" and isinstance(chunk, dict) and not is_error(chunk):
            return self._take_error(data)
        return self.add_object(chunk)

    def add_object(self, chunk: object) -> str:
        """See `Assembly`."""
        if self.is_ended or chunk is None:
            return ""
        if not isinstance(chunk, dict):
            return self._fail(truncation("an event of the stream is no JSON object"))
        if is_error(chunk):
            self.take(chunk)
            return self._take_error(json.dumps(chunk))
        return self.take(chunk)

    def _take_error(self, data: str) -> str:
        """Take an error that the server sends. The answer before it may be whole all the same."""
        if self.is_complete:
            self.is_ended = True
            return ""
        failure = classify(200, {}, data.encode(errors="replace"), self._now)
        if self.has_answered and failure.retryable:
            return self._fail(truncation("the provider failed while answering"))
        return self._fail(replace(failure, billed=self.has_answered))

    def result(self) -> ProviderReply | Failure:
        """See `Assembly`."""
        return self._failure if self._failure is not None else self.whole()

    def _fail(self, failure: Failure) -> str:
        self._failure = failure
        self.is_ended = True
        return ""

    @abstractmethod
    def take(self, chunk: Mapping[str, Any]) -> str:
        """Take an event's object; return the text that it adds to the answer."""

    @abstractmethod
    def whole(self) -> ProviderReply | Failure:
        """Read the rebuilt body."""
