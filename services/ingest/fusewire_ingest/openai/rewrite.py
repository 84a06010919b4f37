"""A request in another provider's shape, written anew as a chat completion whose parts know their origin. Pure."""

from dataclasses import dataclass, field
from typing import Any

from fusewire_ingest.admission.refusal import wrong


@dataclass
class RewrittenBody:
    """A chat completion's body, and where each of its parts stood."""

    body: dict[str, Any]
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of paths that are named differently in the original: ours, theirs."""
    origins: dict[str, str] = field(default_factory=dict)
    """Where parts of the body stood, by their path in it."""

    def put(self, name: str, value: Any, origin: str) -> None:
        """Set a parameter."""
        self.body[name] = value
        self.origins[name] = origin

    def add(self, message: dict[str, Any], origin: str) -> None:
        """Append a message."""
        messages = self.body.setdefault("messages", [])
        self.origins[f"messages.{len(messages)}"] = origin
        messages.append(message)

    def last(self) -> dict[str, Any] | None:
        """The last message, to be added to."""
        messages: list[dict[str, Any]] = self.body.get("messages", [])
        return messages[-1] if messages else None

    def origin(self, path: str) -> str:
        """Where the client wrote what stands at `path` of the body; of a message's inner parts, the message."""
        for ours, theirs in self.renamed:
            path = path.replace(ours, theirs)
        parts = path.split(".")
        if parts[0] == "messages" and len(parts) > 1:
            return self.origins.get(".".join(parts[:2]), path)
        return ".".join((self.origins.get(parts[0], parts[0]), *parts[1:]))


def as_list(value: object, path: str) -> list[Any]:
    """The list that must stand at `path`. Raises RefusedError."""
    if not isinstance(value, list):
        raise wrong(path, "it must be a list")
    return value


def as_text(value: object, path: str) -> str:
    """The text that must stand at `path`. Raises RefusedError."""
    if not isinstance(value, str):
        raise wrong(path, "it must be a text")
    return value
