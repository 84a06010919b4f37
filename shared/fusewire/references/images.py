"""Replaces large images with references, and back. Pure.

A reference is a data URL, `data:image/png;base64,blob:…`, with a name in place of its data. The
name is a hash of tenant and data.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from fusewire import ids
from fusewire.contracts import Message

PREFIX = "blob:"
"""Base64 has no colon, so no data begin with this."""
LEAST_CHARS = 32_768
"""A shorter image stays in its message."""


def put_aside(
    tenant: str, messages: Sequence[Message]
) -> tuple[tuple[Message, ...], dict[str, str]]:
    """The conversation with references in place of its large images, and their base64 data by name.

    Equal data of one tenant have the same name; those of two tenants never do
    (docs/decisions/0040).
    """
    data_by_name: dict[str, str] = {}

    def reference(url: str) -> str:
        if len(url) < LEAST_CHARS or not url.startswith("data:"):
            return url
        head, _, data = url.partition(",")
        name = ids.digest("image", tenant, data).hex()
        data_by_name[name] = data
        return f"{head},{PREFIX}{name}"

    return _with_urls(messages, reference), data_by_name


def names(messages: Iterable[Message]) -> tuple[str, ...]:
    """The names that the conversation refers to, each once."""
    images = itertools.chain.from_iterable(message.images for message in messages)
    image_names = [name_in(image.url) for image in images]
    return tuple(dict.fromkeys(name for name in image_names if name))


def put_back(messages: Sequence[Message], data: Mapping[str, str]) -> tuple[Message, ...]:
    """The conversation with data in place of its references.

    Args:
        messages: the conversation.
        data: the text to insert for each name.

    Raises:
        KeyError: `data` lacks a name.
    """

    def resolve(url: str) -> str:
        name = name_in(url)
        return f"{url.partition(',')[0]},{data[name]}" if name else url

    return _with_urls(messages, resolve)


def name_in(url: str) -> str | None:
    """The name in a reference; None for any other URL."""
    data = url.partition(",")[2] if url.startswith("data:") else ""
    return data.removeprefix(PREFIX) if data.startswith(PREFIX) else None


def _with_urls(messages: Sequence[Message], change: Callable[[str], str]) -> tuple[Message, ...]:
    """The conversation with each image's URL changed."""

    def copy(message: Message) -> Message:
        if not message.images:
            return message
        images = [image.model_copy(update={"url": change(image.url)}) for image in message.images]
        return message.model_copy(update={"images": tuple(images)})

    return tuple(map(copy, messages))
