"""Mistral's chat completions: OpenAI's, with differences of its own."""

import re
from typing import Any

from fusewire.answer_form import with_names
from fusewire.contracts import Message, Task
from fusewire.settings import RemoteModel
from fusewire_worker_remote.providers.base import max_tokens
from fusewire_worker_remote.providers.openai import OpenAI
from fusewire_worker_remote.providers.parts import call_id

_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_AFTER_TOOL = "Understood."
"""The turn between results of tools and a user's message, which the API refuses there."""
_MOST_SEED = 2**31


class Mistral(OpenAI):
    """`POST {base_url}/chat/completions`."""

    def messages(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        """See `OpenAI.messages`. The API restricts which role follows which, and ids of calls."""
        wire: list[dict[str, Any]] = []
        for message in super().messages(with_names(messages)):
            if _is_empty_answer(message):
                continue
            _shorten_ids(message)
            if message["role"] == "user" and wire and wire[-1]["role"] == "tool":
                wire.append({"role": "assistant", "content": _AFTER_TOOL})
            wire.append(message)
        if wire and wire[-1]["role"] == "assistant" and not wire[-1].get("tool_calls"):
            # The model continues this answer.
            wire[-1]["prefix"] = True
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
            "frequency_penalty": task.sampling.frequency_penalty,
            "presence_penalty": task.sampling.presence_penalty,
        }

    def tools(self, task: Task) -> dict[str, Any]:
        """See `OpenAI.tools`. A function must have parameters here."""
        wire = super().tools(task)
        for tool in wire.get("tools", ()):
            tool["function"].setdefault("parameters", {"type": "object", "properties": {}})
        return {**wire, "tool_choice": "any"} if wire.get("tool_choice") == "required" else wire

    def streaming(self) -> dict[str, Any]:
        """See `OpenAI.streaming`. The stream ends with counted tokens in any case."""
        return {"stream": True}


def _is_empty_answer(message: dict[str, Any]) -> bool:
    if message["role"] != "assistant":
        return False
    return not message["content"] and not message.get("tool_calls")


def _shorten_ids(message: dict[str, Any]) -> None:
    """Replace ids of calls by ones of nine characters, the only form that the API accepts."""
    for call in message.get("tool_calls", ()):
        call["id"] = call_id(call["id"], _CALL_ID, 9)
    if "tool_call_id" in message:
        message["tool_call_id"] = call_id(message["tool_call_id"], _CALL_ID, 9)


PROVIDER = Mistral()
