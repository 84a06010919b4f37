"""Mistral's chat completions: OpenAI's, with differences of its own."""

import hashlib
import re
from typing import Any

from fusewire.contracts import Message, Task
from fusewire.settings import RemoteModel
from fusewire_worker_remote.providers.base import max_tokens
from fusewire_worker_remote.providers.openai import OpenAI

_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_MOST_SEED = 2**31


class Mistral(OpenAI):
    """`POST {base_url}/chat/completions`."""

    def messages(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        """See `OpenAI.messages`. Ids of calls have nine characters; those of other providers are translated."""
        wire = super().messages(messages)
        for message in wire:
            for call in message.get("tool_calls", ()):
                call["id"] = call_id(call["id"])
            if "tool_call_id" in message:
                message["tool_call_id"] = call_id(message["tool_call_id"])
        return wire

    def sampling(self, task: Task, model: RemoteModel) -> dict[str, Any]:
        """See `OpenAI.sampling`."""
        seed = task.sampling.seed
        return {
            "max_tokens": max_tokens(task, model),
            "temperature": task.sampling.temperature,
            "top_p": task.sampling.top_p,
            "random_seed": seed % _MOST_SEED if seed is not None else None,
            "stop": list(task.sampling.stop) or None,
        }

    def tools(self, task: Task) -> dict[str, Any]:
        """See `OpenAI.tools`."""
        wire = super().tools(task)
        return {**wire, "tool_choice": "any"} if wire.get("tool_choice") == "required" else wire

    def streaming(self) -> dict[str, Any]:
        """See `OpenAI.streaming`. Tokens are counted at the end in any case."""
        return {"stream": True}


def call_id(given: str) -> str:
    """An id that Mistral takes: the same for the same."""
    return given if _CALL_ID.fullmatch(given) else hashlib.sha256(given.encode()).hexdigest()[:9]
