"""An answer with the steps that lead to it, for models too small to have the right one at once. Pure.

The steps come first, so that the answer is written with them in view; a grammar sees to the form.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusewire.answer_form import with_answer, with_instruction
from fusewire.contracts import Message

STEPS_TOKENS = 192
"""What the steps may take beside the answer."""
_STEPS_CHARS = 400
_ASK = (
    'Answer with JSON: {"reason": the steps that lead to the answer, in two or three short sentences, "answer": the '
    "answer alone}."
)


def schema_of(answer: Mapping[str, Any] | None) -> dict[str, Any]:
    """The schema of the steps and an answer, which has a schema of its own or is text."""
    return with_answer("reason", _STEPS_CHARS, answer or {"type": "string", "minLength": 1})


def asked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation, its system prompt ending with the form of the answer."""
    return with_instruction(messages, _ASK)


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
