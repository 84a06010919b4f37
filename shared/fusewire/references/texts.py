"""The middle of a long text stands outside its message, where the whole prompt is too large. Pure.

Its ends stay, so that judges see what it is about; members read the whole.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from fusewire import ids
from fusewire.contracts import Message, TextReference

LEAST_CHARS = 8_192
"""A shorter middle travels within its message."""
END_CHARS = 2_048
"""What stays of a text before its middle, and after it."""


def put_aside(
    tenant: str, messages: Sequence[Message]
) -> tuple[tuple[Message, ...], dict[str, str]]:
    """The conversation with references in place of its long texts' middles, and those by name.

    Equal texts of one tenant have one name, and those of two tenants never. A text is kept as it is written between
    the quotes of a JSON string: so it can be copied into a request as it is.
    """
    apart: dict[str, str] = {}

    def shortened(message: Message) -> Message:
        kept, found, begin, written = [], [], 0, 0
        for start, end in _middles(message):
            text = message.content[start:end]
            data = json.dumps(text, ensure_ascii=False)[1:-1]
            name = ids.digest("text", tenant, data).hex()
            apart[name] = data
            kept.append(message.content[begin:start])
            written += start - begin
            found.append(
                TextReference(name=name, chars=len(text), size=len(text.encode()), at=written)
            )
            begin = end
        if not found:
            return message
        content = "".join((*kept, message.content[begin:]))
        return _moved(
            message.model_copy(update={"content": content, "texts": tuple(found)}), message, found
        )

    return tuple(map(shortened, messages)), apart


def names(messages: Iterable[Message]) -> tuple[str, ...]:
    """What the conversation refers to, each once."""
    return tuple(dict.fromkeys(text.name for message in messages for text in message.texts))


def put_back(messages: Sequence[Message], data: Mapping[str, str]) -> tuple[Message, ...]:
    """The conversation with its long texts whole.

    Args:
        messages: it.
        data: as `put_aside` gave it.

    Raises:
        KeyError: one is not among them.
    """
    return with_texts_filled(messages, lambda text: json.loads(f'"{data[text.name]}"'))


def excerpt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation for who reads the ends of long texts only: it says how much is left out."""
    return with_texts_filled(
        messages, lambda text: f"\n\n[{text.chars} characters are left out here]\n\n"
    )


def with_texts_filled(
    messages: Sequence[Message], fill: Callable[[TextReference], str]
) -> tuple[Message, ...]:
    """The conversation with something in place of its references."""
    return tuple(_filled(message, fill) for message in messages)


def _filled(message: Message, fill: Callable[[TextReference], str]) -> Message:
    if not message.texts:
        return message
    content, images = message.content, message.images
    # From the end, so that the places before stay where they are.
    for text in sorted(message.texts, key=lambda one: one.at, reverse=True):
        found = fill(text)
        content = content[: text.at] + found + content[text.at :]
        images = tuple(
            image.model_copy(update={"at": image.at + len(found)}) if image.at > text.at else image
            for image in images
        )
    return message.model_copy(update={"content": content, "images": images, "texts": ()})


def _middles(message: Message) -> Iterator[tuple[int, int]]:
    """What may stand aside: stretches between images, without their ends."""
    places = (
        0,
        *sorted(min(image.at, len(message.content)) for image in message.images),
        len(message.content),
    )
    for first, last in itertools.pairwise(places):
        start, end = first + END_CHARS, last - END_CHARS
        if end - start >= LEAST_CHARS:
            yield start, end


def _moved(short: Message, whole: Message, found: Sequence[TextReference]) -> Message:
    """The shortened message with its images where they belong."""
    if not whole.images:
        return short

    def place(at: int) -> int:
        gone = 0
        for text in found:
            if text.at + gone < at:
                gone += text.chars
        return at - gone

    images = tuple(image.model_copy(update={"at": place(image.at)}) for image in whole.images)
    return short.model_copy(update={"images": images})
