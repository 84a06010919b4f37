"""OpenAI's chat completions, as OpenAI and the many servers compatible with it speak them."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fusewire.contracts import FinishReason, Message, Sampling, Task, Tool, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire_worker_remote.errors import Failure, classify, refused, truncated
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, Reply

_LENGTH = {"length", "max_tokens"}
_CHOICES = {"auto", "none", "required"}


class OpenAI:
    """`POST {base_url}/chat/completions`."""

    def request(self, task: Task, model: RemoteModel) -> HttpRequest:
        """See `Provider.request`. The task's id is the idempotency key, where a server knows such a thing."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": task.task_id}
        key = model.api_key
        if key is not None:
            headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        payload = {
            "model": model.model,
            "messages": [_message(m) for m in task.messages],
            **_sampling(task.sampling, model),
            **_tools(task),
        }
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        return HttpRequest(f"{model.base_url.rstrip('/')}/chat/completions", headers, body)

    def read(self, response: HttpResponse, now: datetime) -> Reply | Failure:
        """See `Provider.read`."""
        if not 200 <= response.status < 300:
            return classify(response.status, response.headers, response.body, now)
        try:
            body = json.loads(response.body)
        except (ValueError, RecursionError):
            return truncated("the response is not whole JSON")
        if not isinstance(body, dict):
            return truncated("the response is not a JSON object")
        if body.get("error"):
            return classify(response.status, response.headers, response.body, now)
        usage = _usage(body.get("usage"))
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return truncated("the response holds no choice", usage)
        return _choice(choice, usage)


def _sampling(sampling: Sampling, model: RemoteModel) -> dict[str, Any]:
    # OpenAI's own newer models refuse `max_tokens`; others know no other name for it.
    cap = "max_completion_tokens" if model.base_url.startswith("https://api.openai.com/") else "max_tokens"
    wanted: dict[str, Any] = {
        cap: sampling.max_tokens if sampling.max_tokens is not None else model.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
    }
    if sampling.response_schema is not None:
        schema = {"name": "answer", "schema": sampling.response_schema, "strict": True}
        wanted["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in wanted.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    wire: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        # No text is null here; some servers refuse an empty one.
        wire["content"] = message.content or None
        wire["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _tools(task: Task) -> dict[str, Any]:
    if not task.tools:
        return {}
    choice = task.tool_choice
    return {
        "tools": [{"type": "function", "function": _function(tool)} for tool in task.tools],
        "tool_choice": choice if choice in _CHOICES else {"type": "function", "function": {"name": choice}},
    }


def _function(tool: Tool) -> dict[str, Any]:
    wanted = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {name: value for name, value in wanted.items() if value}


def _choice(choice: Mapping[str, Any], usage: Usage | None) -> Reply | Failure:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    finish = choice.get("finish_reason")
    if finish == "content_filter" or message.get("refusal"):
        return refused("the provider withheld the answer", usage)
    if choice.get("error") or finish == "error":
        return truncated("the provider failed while answering", usage)
    if not finish:
        return truncated("the answer has no finish reason", usage)
    content = _text(message.get("content"))
    calls = _calls(message.get("tool_calls"))
    if not content and not calls:
        what = "the token limit was reached before any answer" if finish in _LENGTH else "the answer is empty"
        return Failure("truncated", what, retryable=False, billed=True, usage=usage)
    # Some servers say `stop` though there are calls.
    reason: FinishReason = "length" if finish in _LENGTH else "tool_calls" if calls else "stop"
    return Reply(content or None, reason, usage, calls)


def _calls(calls: object) -> tuple[ToolCall, ...]:
    """The tool calls that name a function and give its arguments; what else stands there is left out."""
    found = []
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        name, given = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None, None)
        if isinstance(name, str) and name and isinstance(given, str):
            # Some servers give no id, and some an empty text where a function takes no arguments.
            arguments = _text(given) or "{}"
            found.append(ToolCall(id=_text(call.get("id")) or f"call_{index}", name=_text(name), arguments=arguments))
    return tuple(found)


def _text(content: object) -> str:
    """The answer's text, of a string or of typed parts, without the lone surrogates that JSON can carry."""
    if isinstance(content, list):
        texts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        content = "".join(t for t in texts if isinstance(t, str))
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
