"""What putting a streamed answer together has in common over the protocols. No IO."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fusewire_worker_remote.errors import Failure, classify, is_error, truncated
from fusewire_worker_remote.providers.base import Reply
from fusewire_worker_remote.sse import Event

_DONE = "[DONE]"


class JsonAssembly(ABC):
    """Events of JSON objects. Implements `Assembly`.

    It rebuilds the body that would have come whole, so that one reader serves both.
    """

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._failure: Failure | None = None
        self.is_ended = False
        """See `Assembly`."""
        self.has_answered = False
        """Whether anything of the answer has come, which is then paid for."""

    def add(self, event: Event) -> str:
        """See `Assembly`."""
        if self.is_ended:
            return ""
        if event.data.strip() == _DONE:
            self.is_ended = True
            return ""
        try:
            chunk = json.loads(event.data)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            return self._fail(truncated("an event of the stream is no JSON object"))
        if is_error(chunk) or event.name == "error":
            if self.has_answered:
                return self._fail(truncated("the provider failed while answering"))
            return self._fail(classify(200, {}, event.data.encode(errors="replace"), self._now))
        return self.take(chunk)

    def result(self) -> Reply | Failure:
        """See `Assembly`."""
        return self._failure if self._failure is not None else self.whole()

    def _fail(self, failure: Failure) -> str:
        self._failure = failure
        self.is_ended = True
        return ""

    @abstractmethod
    def take(self, chunk: Mapping[str, Any]) -> str:
        """Take an event that is no error; return the text that it adds."""

    @abstractmethod
    def whole(self) -> Reply | Failure:
        """Read the body that has been rebuilt."""
