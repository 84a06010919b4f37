"""Conversations with tools in the shape that chat templates take, and in words for templates that take none. Pure."""

import json
from collections.abc import Sequence
from typing import Any

from fusewire.answer_form import with_names
from fusewire.contracts import Message, Tool, ToolCall

_INTRODUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""The words of Qwen2.5's template, which came from Nous Hermes 2 Pro."""

Turn = dict[str, Any]


def signature(tool: Tool) -> Turn:
    """A tool in OpenAI's shape."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def conversation(messages: Sequence[Message]) -> list[Turn]:
    """Messages as `transformers` gives them to templates: arguments are objects there, not their JSON."""
    return [_turn(message) for message in with_names(messages)]


def in_words(turns: Sequence[Turn], tools: Sequence[Turn]) -> list[Turn]:
    """The same conversation without the role `tool` and without calls: both are spelled out in the text."""
    told: list[Turn] = []
    for turn in turns:
        if turn["role"] == "tool":
            response = f"<tool_response>\n{turn['content']}\n</tool_response>"
            if told and told[-1].get("is_response"):
                told[-1]["content"] += f"\n{response}"
            else:
                told.append({"role": "user", "content": response, "is_response": True})
        else:
            calls = [
                json.dumps(call["function"], ensure_ascii=False)
                for call in turn.get("tool_calls", ())
            ]
            parts = [turn["content"], *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]
            told.append(
                {"role": turn["role"], "content": "\n".join(part for part in parts if part)}
            )
    if not tools:
        return told
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    words = _INTRODUCTION.format(tools=lines)
    if told and told[0]["role"] == "system":
        return [{"role": "system", "content": f"{told[0]['content']}\n\n{words}"}, *told[1:]]
    return [{"role": "system", "content": words}, *told]


def _turn(message: Message) -> Turn:
    turn: Turn = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _call(call: ToolCall) -> Turn:
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        # As another model wrote it; a template prints a string as it is.
        arguments = call.arguments
    return {
        "type": "function",
        "id": call.id,
        "function": {"name": call.name, "arguments": arguments},
    }
