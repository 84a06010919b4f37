"""Conversations with tools: as chat templates take them, or spelled out as text. Pure."""

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

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
"""The text of Qwen2.5's template, which comes from Nous Hermes 2 Pro."""

Turn = dict[str, Any]


def signature(tool: Tool) -> Turn:
    """Return a tool in the format of OpenAI's API."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def conversation(messages: Sequence[Message]) -> list[Turn]:
    """Return messages as `transformers` gives them to templates: arguments as objects, not JSON."""
    return [_turn(message) for message in with_names(messages)]


def spell_out_tools(turns: Sequence[Turn], tools: Sequence[Turn]) -> list[Turn]:
    """Return the conversation with tools, calls and their results written in the text of the turns.

    For templates that know neither the role `tool` nor calls. Results that follow each other are
    one turn of the user, since many templates want the roles to alternate.
    """
    text_turns = _text_turns(turns)
    if not tools:
        return text_turns
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    introduction = _INTRODUCTION.format(tools=lines)
    if text_turns and text_turns[0]["role"] == "system":
        content = f"{text_turns[0]['content']}\n\n{introduction}"
        return [{"role": "system", "content": content}, *text_turns[1:]]
    return [{"role": "system", "content": introduction}, *text_turns]


def _text_turns(turns: Sequence[Turn]) -> list[Turn]:
    """The turns as text, with the results of tools in turns of the user."""
    text_turns: list[Turn] = []
    for turn in turns:
        if turn["role"] != "tool":
            text_turns.append({"role": turn["role"], "content": _text_with_calls(turn)})
            continue
        response = f"<tool_response>\n{turn['content']}\n</tool_response>"
        if text_turns and text_turns[-1].get("is_response"):
            text_turns[-1]["content"] += f"\n{response}"
        else:
            text_turns.append({"role": "user", "content": response, "is_response": True})
    return text_turns


def _text_with_calls(turn: Turn) -> str:
    """The text of a turn, and its calls as a model with Hermes' format writes them."""
    parts = [turn["content"]] if turn["content"] else []
    for call in turn.get("tool_calls", ()):
        body = json.dumps(call["function"], ensure_ascii=False)
        parts.append(f"<tool_call>\n{body}\n</tool_call>")
    return "\n".join(parts)


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
        # Another model wrote invalid JSON; a template prints a string as it is.
        arguments = call.arguments
    return {
        "type": "function",
        "id": call.id,
        "function": {"name": call.name, "arguments": arguments},
    }
