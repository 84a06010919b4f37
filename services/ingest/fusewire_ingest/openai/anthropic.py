"""A request in the shape of Anthropic's Messages, written anew as a chat completion. Pure."""

import json
from typing import Any

from fusewire_ingest.admission.refusal import RefusedError, unsupported, wrong
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
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
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
_RENAMED = ((".function.parameters", ".input_schema"), (".function.", "."))
_LEFT_OUT = ("thinking", "redacted_thinking")
"""Only the model that wrote them can read them."""


def chat_body(params: dict[str, Any]) -> RewrittenBody:
    """Write it anew.

    Raises:
        RefusedError: a part of it has no place in a chat completion; `param` says where it stands.
    """
    given = {name: value for name, value in params.items() if value is not None}
    for name in given:
        if name not in _READ:
            raise unsupported(name, "it has no place here; remove it")
    written = RewrittenBody({name: given[name] for name in _SAME if name in given}, _RENAMED)
    if given.get("stream") is True:
        written.body["stream"] = True
    thinking = given.get("thinking")
    if thinking is not None and not (
        isinstance(thinking, dict) and thinking.get("type") == "disabled"
    ):
        written.put("reasoning", thinking, "thinking")
    if "stop_sequences" in given:
        written.put("stop", given["stop_sequences"], "stop_sequences")
    if "system" in given:
        written.add({"role": "system", "content": _texts(given["system"], "system")}, "system")
    for number, message in enumerate(as_list(given.get("messages"), "messages")):
        _message(written, message, f"messages.{number}")
    if "tools" in given:
        written.put(
            "tools",
            [_tool(t, f"tools.{n}") for n, t in enumerate(as_list(given["tools"], "tools"))],
            "tools",
        )
    if "tool_choice" in given:
        choice = given["tool_choice"]
        written.put("tool_choice", _choice(choice), "tool_choice")
        if isinstance(choice, dict) and choice.get("disable_parallel_tool_use"):
            written.put("parallel_tool_calls", False, "tool_choice.disable_parallel_tool_use")
    return written


def _message(written: RewrittenBody, message: object, path: str) -> None:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise wrong(f"{path}.role", "it must be user or assistant")
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        written.add({"role": role, "content": content}, path)
        return
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(as_list(content, f"{path}.content")):
        at = f"{path}.content.{number}"
        kind = _kind(block, at)
        if kind in _LEFT_OUT:
            continue
        if kind == "text":
            parts.append({"type": "text", "text": as_text(block.get("text"), f"{at}.text")})
        elif kind == "image":
            parts.append(
                {
                    "type": "image_url",
                    "image_url": {"url": _image(block.get("source"), f"{at}.source")},
                }
            )
        elif kind == "tool_use" and role == "assistant":
            calls.append(_call(block, at))
        elif kind == "tool_result" and role == "user":
            if parts:
                raise wrong(
                    at, "results of tools stand before everything else in a message; move it up"
                )
            written.add(_result(block, at), at)
        else:
            raise unsupported(at, f"a block of this type has no place in a message of the {role}")
    if parts or calls or not content:
        told: dict[str, Any] = {"role": role, "content": parts or None}
        written.add({**told, "tool_calls": calls} if calls else told, path)


def _call(block: dict[str, Any], at: str) -> dict[str, Any]:
    given = block.get("input")
    if not isinstance(given, dict):
        raise wrong(f"{at}.input", "it must be an object")
    function = {
        "name": as_text(block.get("name"), f"{at}.name"),
        "arguments": json.dumps(given, ensure_ascii=False),
    }
    return {"id": as_text(block.get("id"), f"{at}.id"), "type": "function", "function": function}


def _result(block: dict[str, Any], at: str) -> dict[str, Any]:
    content = block.get("content")
    return {
        "role": "tool",
        "tool_call_id": as_text(block.get("tool_use_id"), f"{at}.tool_use_id"),
        "content": "" if content is None else _texts(content, f"{at}.content"),
    }


def _image(source: object, at: str) -> str:
    if isinstance(source, dict) and source.get("type") == "url":
        return as_text(source.get("url"), f"{at}.url")
    if isinstance(source, dict) and source.get("type") == "base64":
        media = as_text(source.get("media_type"), f"{at}.media_type")
        return f"data:{media};base64,{as_text(source.get('data'), f'{at}.data')}"
    raise unsupported(at, "give an image as base64 or url")


def _tool(tool: object, at: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise wrong(at, "it must be an object")
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
        raise wrong("tool_choice.type", "it must be auto, any, none or tool")
    return _CHOICES[kind]


def _texts(value: object, at: str) -> str:
    """A text, or the texts of blocks together."""
    if isinstance(value, str):
        return value
    found = []
    for number, block in enumerate(as_list(value, at)):
        if _kind(block, f"{at}.{number}") != "text":
            raise unsupported(f"{at}.{number}", "only text can stand here")
        found.append(as_text(block.get("text"), f"{at}.{number}.text"))
    return "".join(found)


def _kind(block: Any, at: str) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise wrong(at, 'it must be a block such as {"type": "text", "text": "…"}')
    return kind
