"""An estimate of the tokens of a call, for limits. Pure.

It uses no tokenizer, since each model has another one.
"""

from collections.abc import Iterable

from fusewire.contracts import Message, Tool

CHARS_PER_TOKEN = 4
UNKNOWN_TOKENS = 1024
"""The estimate for an answer without a limit."""


def estimate(
    messages: Iterable[Message], max_tokens: int | None, tools: Iterable[Tool] = ()
) -> int:
    """Estimate the tokens of one call, its answer included."""
    chars = 0
    for message in messages:
        chars += len(message.content) + sum(text.chars for text in message.texts)
        chars += sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    chars += sum(len(tool.model_dump_json()) for tool in tools)
    return chars // CHARS_PER_TOKEN + (max_tokens or UNKNOWN_TOKENS)
