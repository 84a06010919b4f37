"""Replaces the middles of long texts with references, and back. Pure.

The ends of a text stay, so that judges see what it is about; members read the whole text.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from fusewire import ids
from fusewire.contracts import Image, Message, TextReference

LEAST_CHARS = 8_192
"""A shorter middle stays in its message."""
END_CHARS = 2_048
"""Characters that stay before the middle of a text, and after it."""


def put_aside(
    tenant: str, messages: Sequence[Message]
) -> tuple[tuple[Message, ...], dict[str, str]]:
    """The conversation with references in place of its long texts' middles, and these by name.

    Equal texts of one tenant have the same name; those of two tenants never do. A text is escaped
    as between the quotes of a JSON string, so that it can be copied into a request as it is
    (docs/decisions/0040).
    """
    data_by_name: dict[str, str] = {}

    def shorten(message: Message) -> Message:
        pieces: list[str] = []
        references: list[TextReference] = []
        begin, position = 0, 0
        for start, end in _middles(message):
            text = message.content[start:end]
            data = json.dumps(text, ensure_ascii=False)[1:-1]
            name = ids.digest("text", tenant, data).hex()
            data_by_name[name] = data
            pieces.append(message.content[begin:start])
            position += start - begin
            size = len(text.encode())
            references.append(TextReference(name=name, chars=len(text), size=size, at=position))
            begin = end
        if not references:
            return message
        content = "".join((*pieces, message.content[begin:]))
        update = {"content": content, "texts": tuple(references)}
        return _with_images_moved(message.model_copy(update=update), message, references)

    return tuple(map(shorten, messages)), data_by_name


def names(messages: Iterable[Message]) -> tuple[str, ...]:
    """The names that the conversation refers to, each once."""
    references = itertools.chain.from_iterable(message.texts for message in messages)
    return tuple(dict.fromkeys(reference.name for reference in references))


def put_back(messages: Sequence[Message], data: Mapping[str, str]) -> tuple[Message, ...]:
    """The conversation with its long texts whole.

    Args:
        messages: the conversation.
        data: the texts by name, as `put_aside` returns them.

    Raises:
        KeyError: `data` lacks a name.
    """
    return with_texts_filled(messages, lambda text: json.loads(f'"{data[text.name]}"'))


def excerpt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with the ends of long texts only, and notes on how much is left out."""
    return with_texts_filled(
        messages, lambda text: f"\n\n[{text.chars} characters are left out here]\n\n"
    )


def with_texts_filled(
    messages: Sequence[Message], fill: Callable[[TextReference], str]
) -> tuple[Message, ...]:
    """The conversation with `fill` of each reference in its place."""
    return tuple(_fill(message, fill) for message in messages)


def _fill(message: Message, fill: Callable[[TextReference], str]) -> Message:
    if not message.texts:
        return message
    content, images = message.content, message.images
    # From the end, so that the positions of earlier references stay valid.
    for reference in sorted(message.texts, key=lambda text: text.at, reverse=True):
        text = fill(reference)
        content = content[: reference.at] + text + content[reference.at :]
        images = tuple(_shift(image, reference.at, len(text)) for image in images)
    return message.model_copy(update={"content": content, "images": images, "texts": ()})


def _shift(image: Image, start: int, chars: int) -> Image:
    """Move an image behind `start` by the length of a text inserted there."""
    if image.at <= start:
        return image
    return image.model_copy(update={"at": image.at + chars})


def _middles(message: Message) -> Iterator[tuple[int, int]]:
    """Start and end of the parts to replace: between images, without `END_CHARS` on each side."""
    places = (
        0,
        *sorted(min(image.at, len(message.content)) for image in message.images),
        len(message.content),
    )
    for first, last in itertools.pairwise(places):
        start, end = first + END_CHARS, last - END_CHARS
        if end - start >= LEAST_CHARS:
            yield start, end


def _with_images_moved(
    short: Message, whole: Message, references: Sequence[TextReference]
) -> Message:
    """The shortened message with its images at their new positions."""
    if not whole.images:
        return short

    def position(at: int) -> int:
        removed_chars = 0
        for reference in references:
            if reference.at + removed_chars < at:
                removed_chars += reference.chars
        return at - removed_chars

    images = tuple(image.model_copy(update={"at": position(image.at)}) for image in whole.images)
    return short.model_copy(update={"images": images})
