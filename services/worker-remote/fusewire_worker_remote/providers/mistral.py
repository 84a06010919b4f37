"""Mistral's chat completions: OpenAI's, with differences of its own."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fusewire.contracts import Task
from fusewire.settings import RemoteModel
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers.base import HttpResponse, Reply, max_tokens
from fusewire_worker_remote.providers.openai import OpenAI, response_format

_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
_MOST_SEED = 2**31


class Mistral(OpenAI):
    """`POST {base_url}/chat/completions`."""

    def read(self, response: HttpResponse, now: datetime) -> Reply | Failure:
        """See `Provider.read`. Arguments of calls may be objects here."""
        try:
            body = json.loads(response.body)
        except (ValueError, RecursionError):
            return super().read(response, now)
        if isinstance(body, dict) and _with_text_arguments(body):
            response = HttpResponse(response.status, response.headers, json.dumps(body).encode())
        return super().read(response, now)

    def messages(self, task: Task) -> list[dict[str, Any]]:
        """See `OpenAI.messages`. Ids of calls have nine characters; those of other providers are translated."""
        wire = super().messages(task)
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
            "response_format": response_format(task.sampling.response_schema),
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


def _with_text_arguments(body: Mapping[str, Any]) -> bool:
    """Write arguments that are objects as text, in place. Returns whether there were any."""
    changed = False
    for choice in body["choices"] if isinstance(body.get("choices"), list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
                changed = True
    return changed
