"""What is too large for a message of the bus stands outside it: within it is a reference. Pure."""

from collections.abc import Iterable

from fusewire.contracts import Message
from fusewire.references import images, texts


def names(messages: Iterable[Message]) -> tuple[str, ...]:
    """What a conversation refers to, images and texts, each once."""
    told = tuple(messages)
    return tuple(dict.fromkeys((*images.names(told), *texts.names(told))))
