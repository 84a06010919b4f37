"""What a conversation says besides its turns: who speaks, and in which form to answer. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusewire.contracts import Message

_SHARED = ("$defs", "definitions")
"""What a schema refers to stands at its root."""


def with_instruction(messages: Sequence[Message], told: str) -> tuple[Message, ...]:
    """The conversation, with this at the end of its first system prompt, which is made where there is none."""
    if not told:
        return tuple(messages)
    if not messages or messages[0].role != "system":
        return (Message(role="system", content=told), *messages)
    first = messages[0]
    return (first.model_copy(update={"content": f"{first.content}\n\n{told}"}), *messages[1:])


def with_names(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation for a model that knows no names: who speaks stands before what is said."""
    return tuple(_spoken(message) for message in messages)


def _spoken(message: Message) -> Message:
    if message.name is None:
        return message
    if message.role == "tool" or not message.content:
        return message.model_copy(update={"name": None})
    said = f"{message.name}: "
    images = tuple(
        image.model_copy(update={"at": image.at + len(said)}) for image in message.images
    )
    return message.model_copy(
        update={"content": said + message.content, "images": images, "name": None}
    )


def with_answer(name: str, most_chars: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with a text and, after it, the answer.

    Args:
        name: of the text.
        most_chars: of the text.
        answer: the answer's own schema.
    """
    return {
        **{key: answer[key] for key in _SHARED if key in answer},
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": most_chars}, "answer": dict(answer)},
        "required": [name, "answer"],
        "additionalProperties": False,
    }
