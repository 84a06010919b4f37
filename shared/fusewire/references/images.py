"""Large images stand outside their message: within it is a reference, made of who sent it and what it is. Pure.

A reference is a data URL, `data:image/png;base64,blob:…`, with a name in place of its data.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from fusewire import ids
from fusewire.contracts import Message

PREFIX = "blob:"
"""Base64 has no colon: no data begin so."""
LEAST_CHARS = 32_768
"""A shorter one travels within its message."""


def put_aside(
    tenant: str, messages: Sequence[Message]
) -> tuple[tuple[Message, ...], dict[str, str]]:
    """The conversation with references in place of its large images, and their data, base64, by name.

    Equal data of one tenant have one name, and those of two tenants never.
    """
    apart: dict[str, str] = {}

    def reference(url: str) -> str:
        if len(url) < LEAST_CHARS or not url.startswith("data:"):
            return url
        head, _, data = url.partition(",")
        name = ids.digest("image", tenant, data).hex()
        apart[name] = data
        return f"{head},{PREFIX}{name}"

    return _changed(messages, reference), apart


def names(messages: Iterable[Message]) -> tuple[str, ...]:
    """What the conversation refers to, each once."""
    found = (_name(image.url) for message in messages for image in message.images)
    return tuple(dict.fromkeys(name for name in found if name))


def put_back(messages: Sequence[Message], data: Mapping[str, str]) -> tuple[Message, ...]:
    """The conversation with something in place of its references.

    Args:
        messages: it.
        data: what stands for each name.

    Raises:
        KeyError: one is not among them.
    """

    def changed(url: str) -> str:
        name = _name(url)
        return f"{url.partition(',')[0]},{data[name]}" if name else url

    return _changed(messages, changed)


def _name(url: str) -> str | None:
    data = url.partition(",")[2] if url.startswith("data:") else ""
    return data.removeprefix(PREFIX) if data.startswith(PREFIX) else None


def _changed(messages: Sequence[Message], change: Callable[[str], str]) -> tuple[Message, ...]:
    return tuple(
        message.model_copy(
            update={
                "images": tuple(i.model_copy(update={"url": change(i.url)}) for i in message.images)
            }
        )
        if message.images
        else message
        for message in messages
    )
