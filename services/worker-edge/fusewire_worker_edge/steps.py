"""An answer with the steps that lead to it, for models too small to have the right one at once. Pure.

The steps come first, so that the answer is written with them in view; a grammar sees to the form.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusewire.contracts import Message

STEPS_TOKENS = 192
"""What the steps may take beside the answer."""
_STEPS_CHARS = 400
_ASK = (
    'Answer with JSON: {"reason": the steps that lead to the answer, in two or three short sentences, "answer": the '
    "answer alone}."
)
_SHARED = ("$defs", "definitions")
"""What a schema refers to stands at its root."""


def schema_of(answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """The schema of steps and an answer.

    Args:
        answer: the schema of the answer; None where it is text.
    """
    return {
        **{key: answer[key] for key in _SHARED if answer and key in answer},
        "type": "object",
        "properties": {
            "reason": {"type": "string", "maxLength": _STEPS_CHARS},
            "answer": dict(answer) if answer else {"type": "string", "minLength": 1},
        },
        "required": ["reason", "answer"],
        "additionalProperties": False,
    }


def asked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation, its system prompt ending with the form of the answer."""
    first = messages[0]
    if first.role != "system":
        return (Message(role="system", content=_ASK), *messages)
    return (first.model_copy(update={"content": f"{first.content}\n\n{_ASK}"}), *messages[1:])


def parted(text: str, *, is_text: bool) -> tuple[str, str] | None:
    """The answer and the steps; None where the text was cut before it had both.

    Args:
        text: what the model wrote.
        is_text: whether the answer is text, and no JSON value.
    """
    try:
        written = json.loads(text)
    except ValueError:
        return None
    answer = written["answer"]
    return (answer if is_text else json.dumps(answer, ensure_ascii=False)), written["reason"]
