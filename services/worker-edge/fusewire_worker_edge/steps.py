"""Reasoning before the answer, for models too small to be right at once. Pure.

The model writes JSON, enforced by a grammar. The reason comes first, so that the answer is
generated after it (chain of thought, Wei et al., arXiv:2201.11903).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusewire.answer_form import with_answer, with_instruction
from fusewire.contracts import Message

STEPS_TOKENS = 192
"""Tokens for the steps, in addition to those of the answer."""
_STEPS_CHARS = 400
_ASK = (
    'Answer with JSON: {"reason": the steps that lead to the answer, in two or three short'
    ' sentences, "answer": the answer alone}.'
)


def steps_schema(answer_schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the JSON Schema of steps and answer; the answer is text if it has no schema."""
    return with_answer("reason", _STEPS_CHARS, answer_schema or {"type": "string", "minLength": 1})


def ask_for_steps(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the conversation with the form of the answer at the end of its system prompt."""
    return with_instruction(messages, _ASK)


def split_answer(text: str, *, is_text: bool) -> tuple[str, str] | None:
    """Split what the model wrote into answer and steps. None if it was cut before its end.

    >>> split_answer('{"reason": "3 - 1", "answer": "2"}', is_text=True)
    ('2', '3 - 1')

    Args:
        text: what the model wrote.
        is_text: whether the answer is text and not a JSON value.
    """
    try:
        document = json.loads(text)
    except ValueError:
        return None
    answer, reason = document["answer"], document["reason"]
    if not is_text:
        answer = json.dumps(answer, ensure_ascii=False)
    return answer, reason
