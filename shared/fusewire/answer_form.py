"""Additions to a conversation: instructions, speakers' names, the form of the answer. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusewire.contracts import Message

_SHARED = ("$defs", "definitions")
"""Keys at a schema's root that hold the definitions it refers to."""


def with_instruction(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """The conversation, with an instruction at the end of its system prompt.

    A conversation without a system prompt gets one.
    """
    if not instruction:
        return tuple(messages)
    if not messages or messages[0].role != "system":
        return (Message(role="system", content=instruction), *messages)
    first = messages[0]
    content = f"{first.content}\n\n{instruction}"
    return (first.model_copy(update={"content": content}), *messages[1:])


def with_names(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation for a model without names: each name is put before the text."""
    return tuple(_with_name(message) for message in messages)


def _with_name(message: Message) -> Message:
    if message.name is None:
        return message
    if message.role == "tool" or not message.content:
        return message.model_copy(update={"name": None})
    prefix = f"{message.name}: "
    images = tuple(
        image.model_copy(update={"at": image.at + len(prefix)}) for image in message.images
    )
    return message.model_copy(
        update={"content": prefix + message.content, "images": images, "name": None}
    )


def with_answer(name: str, most_chars: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with a text and, after it, the answer.

    Args:
        name: the key of the text.
        most_chars: the greatest length of the text.
        answer: the answer's own schema.
    """
    return {
        **{key: answer[key] for key in _SHARED if key in answer},
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": most_chars}, "answer": dict(answer)},
        "required": [name, "answer"],
        "additionalProperties": False,
    }
