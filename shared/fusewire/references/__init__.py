"""References within a message to content that is too large for it. Pure."""

from collections.abc import Iterable

from fusewire.contracts import Message
from fusewire.references import images, texts


def names(messages: Iterable[Message]) -> tuple[str, ...]:
    """The names that a conversation refers to, images and texts, each once."""
    conversation = tuple(messages)
    return tuple(dict.fromkeys((*images.names(conversation), *texts.names(conversation))))
