"""Translate a request of Anthropic's Messages API into a chat completion. Pure."""

import json
from typing import Any

from fusewire_ingest.admission.refusal import RefusedError, invalid_error, unsupported_error
from fusewire_ingest.openai.rewrite import RewrittenBody, as_list, as_text

_SAME = (
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "service_tier",
    "metadata",
    "cache_control",
    "fusewire",
)
"""Parameters that are copied unchanged."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
"""Type of a `tool_choice` to OpenAI's word."""
_READ = (
    *_SAME,
    "messages",
    "system",
    "stop_sequences",
    "tools",
    "tool_choice",
    "stream",
    "thinking",
)
"""All parameters that are supported."""
_RENAMED = ((".function.parameters", ".input_schema"), (".function.", "."))
"""See `RewrittenBody.renamed`."""
_BLOCKS = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "image", "tool_use"),
}
"""Types of blocks in a message, by its role."""
_DROPPED_BLOCKS = ("thinking", "redacted_thinking")
"""Blocks that are dropped: only the model that wrote them can read them."""


def chat_body(params: dict[str, Any]) -> RewrittenBody:
    """Translate a request.

    Raises:
        RefusedError: a part of it does not exist in a chat completion; `param` is its path.
    """
    params = {name: value for name, value in params.items() if value is not None}
    _check_names(params)
    rewritten = RewrittenBody({name: params[name] for name in _SAME if name in params}, _RENAMED)
    if params.get("stream") is True:
        rewritten.body["stream"] = True
    _rewrite_thinking(rewritten, params.get("thinking"))
    if "stop_sequences" in params:
        rewritten.put("stop", params["stop_sequences"], "stop_sequences")
    if "system" in params:
        rewritten.add({"role": "system", "content": _texts(params["system"], "system")}, "system")
    for number, message in enumerate(as_list(params.get("messages"), "messages")):
        _rewrite_message(rewritten, message, f"messages.{number}")
    _rewrite_tools(rewritten, params)
    return rewritten


def _check_names(params: dict[str, Any]) -> None:
    for name in params:
        if name not in _READ:
            raise unsupported_error(name, "it has no place here; remove it")


def _rewrite_thinking(rewritten: RewrittenBody, thinking: object) -> None:
    if thinking is None:
        return
    is_disabled = isinstance(thinking, dict) and thinking.get("type") == "disabled"
    if not is_disabled:
        rewritten.put("reasoning", thinking, "thinking")


def _rewrite_tools(rewritten: RewrittenBody, params: dict[str, Any]) -> None:
    if "tools" in params:
        tools = [
            _tool(tool, f"tools.{number}")
            for number, tool in enumerate(as_list(params["tools"], "tools"))
        ]
        rewritten.put("tools", tools, "tools")
    if "tool_choice" in params:
        choice = params["tool_choice"]
        rewritten.put("tool_choice", _choice(choice), "tool_choice")
        if isinstance(choice, dict) and choice.get("disable_parallel_tool_use"):
            rewritten.put("parallel_tool_calls", False, "tool_choice.disable_parallel_tool_use")


def _rewrite_message(rewritten: RewrittenBody, message: object, path: str) -> None:
    """Add one message, or more: each result of a tool becomes a message of its own."""
    role, content = _role_and_content(message, path)
    if isinstance(content, str):
        rewritten.add({"role": role, "content": content}, path)
        return
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(as_list(content, f"{path}.content")):
        at = f"{path}.content.{number}"
        kind = _kind(block, at)
        if kind in _DROPPED_BLOCKS:
            continue
        _check_kind(kind, role, at)
        if kind == "tool_use":
            calls.append(_call(block, at))
        elif kind == "tool_result":
            _check_is_first(parts, at)
            rewritten.add(_result(block, at), at)
        else:
            parts.append(_part(block, kind, at))
    if parts or calls or not content:
        rewritten.add(_chat_message(role, parts, calls), path)


def _role_and_content(message: object, path: str) -> tuple[str, object]:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise invalid_error(f"{path}.role", "it must be user or assistant")
    return message["role"], message.get("content")


def _check_kind(kind: str, role: str, at: str) -> None:
    if kind not in _BLOCKS[role]:
        raise unsupported_error(at, f"a block of this type has no place in a message of the {role}")


def _check_is_first(parts: list[dict[str, Any]], at: str) -> None:
    if parts:
        raise invalid_error(
            at, "results of tools stand before everything else in a message; move it up"
        )


def _chat_message(
    role: str, parts: list[dict[str, Any]], calls: list[dict[str, Any]]
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "content": parts or None}
    if calls:
        message["tool_calls"] = calls
    return message


def _part(block: dict[str, Any], kind: str, at: str) -> dict[str, Any]:
    if kind == "text":
        return {"type": "text", "text": as_text(block.get("text"), f"{at}.text")}
    url = _image_url(block.get("source"), f"{at}.source")
    return {"type": "image_url", "image_url": {"url": url}}


def _call(block: dict[str, Any], at: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise invalid_error(f"{at}.input", "it must be an object")
    function = {
        "name": as_text(block.get("name"), f"{at}.name"),
        "arguments": json.dumps(arguments, ensure_ascii=False),
    }
    return {"id": as_text(block.get("id"), f"{at}.id"), "type": "function", "function": function}


def _result(block: dict[str, Any], at: str) -> dict[str, Any]:
    content = block.get("content")
    return {
        "role": "tool",
        "tool_call_id": as_text(block.get("tool_use_id"), f"{at}.tool_use_id"),
        "content": "" if content is None else _texts(content, f"{at}.content"),
    }


def _image_url(source: object, at: str) -> str:
    if isinstance(source, dict) and source.get("type") == "url":
        return as_text(source.get("url"), f"{at}.url")
    if isinstance(source, dict) and source.get("type") == "base64":
        media = as_text(source.get("media_type"), f"{at}.media_type")
        return f"data:{media};base64,{as_text(source.get('data'), f'{at}.data')}"
    raise unsupported_error(at, "give an image as base64 or url")


def _tool(tool: object, at: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise invalid_error(at, "it must be an object")
    if tool.get("type", "custom") != "custom":
        raise RefusedError(
            "unsupported_tool", f"'{at}': tools of the server are not supported; remove it", at
        )
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(choice: object) -> object:
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and kind == "tool":
        return {
            "type": "function",
            "function": {"name": as_text(choice.get("name"), "tool_choice.name")},
        }
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise invalid_error("tool_choice.type", "it must be auto, any, none or tool")
    return _CHOICES[kind]


def _texts(value: object, at: str) -> str:
    """A text, or the concatenated texts of blocks."""
    if isinstance(value, str):
        return value
    texts = []
    for number, block in enumerate(as_list(value, at)):
        if _kind(block, f"{at}.{number}") != "text":
            raise unsupported_error(f"{at}.{number}", "only text can stand here")
        texts.append(as_text(block.get("text"), f"{at}.{number}.text"))
    return "".join(texts)


def _kind(block: Any, at: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise invalid_error(at, 'it must be a block such as {"type": "text", "text": "…"}')
    return kind
