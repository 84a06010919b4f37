"""A request that was translated into a chat completion, with the origin of each part. Pure."""

from dataclasses import dataclass, field
from typing import Any

from fusewire_ingest.admission.refusal import invalid_error


@dataclass
class RewrittenBody:
    """A chat completion's body, and the paths of its parts in the original request."""

    body: dict[str, Any]
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of paths that have another name in the original: here, there."""
    origins: dict[str, str] = field(default_factory=dict)
    """Path in the body to path in the original."""

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
        """The last message, which the caller may change; None if there is none."""
        messages: list[dict[str, Any]] = self.body.get("messages", [])
        return messages[-1] if messages else None

    def origin(self, path: str) -> str:
        """The path in the original of a path in the body; for a part of a message, the message's.

        >>> body = RewrittenBody({}, origins={"stop": "stop_sequences"})
        >>> body.origin("stop.0")
        'stop_sequences.0'
        """
        for new_part, old_part in self.renamed:
            path = path.replace(new_part, old_part)
        parts = path.split(".")
        if parts[0] == "messages" and len(parts) > 1:
            return self.origins.get(".".join(parts[:2]), path)
        return ".".join((self.origins.get(parts[0], parts[0]), *parts[1:]))


def as_list(value: object, path: str) -> list[Any]:
    """The list that must stand at `path`. Raises RefusedError."""
    if not isinstance(value, list):
        raise invalid_error(path, "it must be a list")
    return value


def as_text(value: object, path: str) -> str:
    """The text that must stand at `path`. Raises RefusedError."""
    if not isinstance(value, str):
        raise invalid_error(path, "it must be a text")
    return value
