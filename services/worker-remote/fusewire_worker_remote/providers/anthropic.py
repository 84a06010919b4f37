"""Anthropic's Messages API."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fusewire.answer_form import with_names
from fusewire.contracts import Image, Message, Task, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire_worker_remote.dialect import PLAIN, Dialect, asked_in_words
from fusewire_worker_remote.errors import Failure, refused, truncated
from fusewire_worker_remote.providers import base, reading
from fusewire_worker_remote.providers.assembly import JsonAssembly
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, ProviderReply
from fusewire_worker_remote.providers.parts import (
    Text,
    arguments_of,
    call_id,
    clean,
    counted,
    given,
    inline,
    interleaved,
    position,
    system_text,
    tokens,
    word,
)
from fusewire_worker_remote.providers.schema import is_closed, without_bounds

VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 4096
"""The API demands a limit; this is the highest that all its models take."""

_CALL_ID = re.compile(r"[a-zA-Z0-9_-]+")
_GO_ON = "Go on."
_CHOICES: dict[str, dict[str, Any]] = {
    "auto": {"type": "auto"},
    "none": {"type": "none"},
    "required": {"type": "any"},
}


class Anthropic:
    """`POST {base_url}/messages`."""

    known = PLAIN
    """See `Provider`."""

    def request(
        self, task: Task, model: RemoteModel, dialect: Dialect = PLAIN, *, is_streamed: bool = False
    ) -> HttpRequest:
        """See `Provider.request`. A seed has no counterpart here and is left out."""
        sampling = task.sampling
        system, output = _output(system_text(task.messages), sampling.response_schema, dialect)
        turns = _turns(with_names(task.messages))
        if not turns:  # a conversation needs a user
            turns, system = [{"role": "user", "content": [{"type": "text", "text": system}]}], ""
        payload = given(
            {
                "model": model.model,
                "max_tokens": base.max_tokens(task, model) or DEFAULT_MAX_TOKENS,
                "system": system or None,
                "messages": turns,
                # Its scale ends at 1.
                "temperature": min(sampling.temperature, 1.0)
                if sampling.temperature is not None
                else None,
                # Newer models refuse both together.
                "top_p": sampling.top_p if sampling.temperature is None else None,
                "top_k": sampling.top_k,
                "stop_sequences": list(sampling.stop) or None,
                "output_config": output,
                "stream": True if is_streamed else None,
                **_tools(task),
            }
        )
        headers = {"anthropic-version": VERSION, **base.key_of(model, "x-api-key")}
        return base.request(task, model, dialect, "messages", headers, payload)

    def read(self, response: HttpResponse, now: datetime) -> ProviderReply | Failure:
        """See `Provider.read`."""
        return reading.read(response, now, read_body=read_body, assemble=self.assemble)

    def assemble(self, now: datetime) -> "MessageAssembly":
        """See `Provider.assemble`."""
        return MessageAssembly(now)


def _output(
    system: str, schema: dict[str, Any] | None, dialect: Dialect
) -> tuple[str, dict[str, Any] | None]:
    """The system prompt and `output_config` that make the answer's text JSON by a schema.

    Structured outputs know closed objects only; an open one is asked for in words.
    """
    if schema is None:
        return system, None
    if is_closed(schema) and dialect.schema_form == "schema":
        return system, {"format": {"type": "json_schema", "schema": without_bounds(schema)}}
    told = asked_in_words(schema)
    return f"{system}\n\n{told}" if system else told, None


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """The conversation, in which users and assistants take turns; results of tools are a user's."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if turns and turns[-1]["role"] == "assistant":
        # Models since Claude 4.6 do not go on from a beginning of theirs.
        turns.append({"role": "user", "content": [{"type": "text", "text": _GO_ON}]})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        result = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id or "")}
        return [{**result, "content": message.content}] if message.content.strip() else [result]
    # A text of nothing but space is refused.
    blocks = [
        _block(part) for part in interleaved(message) if not isinstance(part, str) or part.strip()
    ]
    calls = message.tool_calls
    return blocks + [
        {
            "type": "tool_use",
            "id": _id(call.id),
            "name": call.name,
            "input": arguments_of(call.arguments),
        }
        for call in calls
    ]


def _id(given_: str) -> str:
    return call_id(given_, _CALL_ID, 40)


def _block(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    held = inline(part.url)
    if held is None:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    return {"type": "image", "source": {"type": "base64", "media_type": held[0], "data": held[1]}}


def _tools(task: Task) -> dict[str, Any]:
    if not task.tools:
        return {}
    tools = [
        given(
            {
                "name": tool.name,
                "description": tool.description or None,
                "input_schema": {"type": "object", **tool.parameters},
            }
        )
        for tool in task.tools
    ]
    choice = _CHOICES.get(task.tool_choice) or {"type": "tool", "name": task.tool_choice}
    if not task.parallel_tool_calls and task.tool_choice != "none":
        choice = {**choice, "disable_parallel_tool_use": True}
    return {"tools": tools, "tool_choice": choice}


def read_body(body: Mapping[str, Any], *, is_whole: bool = True) -> ProviderReply | Failure:
    """Read a message. Unless `is_whole`, only a stop reason tells that it is."""
    usage = _usage(body.get("usage"))
    blocks = body.get("content")
    if not isinstance(blocks, list):
        return reading.no_answer(body, "content", usage)
    reason = word(body.get("stop_reason"))
    if reason == "refusal":
        return refused("the provider withheld the answer", usage)
    if not reason and not is_whole:
        return truncated("the answer has no stop reason", usage)
    found = [block for block in blocks if isinstance(block, dict)]
    thought = "".join(clean(block.get("thinking")) for block in found)
    return reading.answered(clean(found), _calls(found), usage, reason=reason, reasoning=thought)


def _calls(blocks: list[dict[str, Any]]) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for block in blocks:
        if (
            block.get("type") != "tool_use"
            or not isinstance(block.get("name"), str)
            or not block["name"]
        ):
            continue
        held = block.get("input")
        arguments = (
            held
            if isinstance(held, str)
            else json.dumps(held if held is not None else {}, ensure_ascii=False)
        )
        id_ = clean(block.get("id")) or f"call_{len(calls)}"
        calls.append(ToolCall(id=id_, name=clean(block["name"]), arguments=clean(arguments)))
    return tuple(calls)


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt = tokens(usage.get("input_tokens"))
    if prompt is None:
        return None
    # Its input tokens are those beside the cache.
    cached = tokens(usage.get("cache_read_input_tokens")) or 0
    written = tokens(usage.get("cache_creation_input_tokens")) or 0
    return counted(prompt + cached + written, usage.get("output_tokens"), cached=cached)


class MessageAssembly(JsonAssembly):
    """Events of a message: blocks that begin, grow and end."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self._blocks: dict[int, dict[str, Any]] = {}
        self._grown: dict[int, Text] = {}
        self._usage: dict[str, Any] = {}
        self._reason: object = None
        self._is_begun = False

    def take(self, chunk: Mapping[str, Any]) -> str:
        """See `JsonAssembly`."""
        kind, index = chunk.get("type"), position(chunk.get("index"))
        if kind == "message_stop":
            self.is_ended = True
            self.is_complete = True
        elif kind == "message_start" and isinstance(chunk.get("message"), dict):
            self._is_begun = True
            self._count(chunk["message"].get("usage"))
        elif kind == "message_delta":
            self._count(chunk.get("usage"))
            delta = chunk.get("delta")
            # A second one may come without a reason.
            self._reason = (
                delta.get("stop_reason") if isinstance(delta, dict) else None
            ) or self._reason
            self.is_complete = bool(word(self._reason))
        elif kind == "content_block_start" and isinstance(chunk.get("content_block"), dict):
            self.has_answered = True
            self._blocks[index] = chunk["content_block"]
            self._grown[index] = Text()
            return self._grow(index, chunk["content_block"].get("text"))
        elif kind == "content_block_delta" and isinstance(chunk.get("delta"), dict):
            delta = chunk["delta"]
            if index not in self._blocks and isinstance(delta.get("text"), str):
                # Some servers begin a text without saying so.
                self.has_answered = True
                self._blocks[index], self._grown[index] = {"type": "text"}, Text()
            return self._grow(
                index, delta.get("text") or delta.get("partial_json") or delta.get("thinking")
            )
        return ""

    def whole(self) -> ProviderReply | Failure:
        """See `JsonAssembly`."""
        blocks = [self._block(index) for index in self._blocks] if self._is_begun else None
        if blocks is None:
            return truncated("the stream holds no message", _usage(self._usage))
        body = {"content": blocks, "stop_reason": self._reason, "usage": self._usage or None}
        return read_body(body, is_whole=self.is_complete)

    def _grow(self, index: int, piece: object) -> str:
        block = self._blocks.get(index)
        if block is None:
            return ""
        shown = self._grown[index].add(piece)
        return shown if block.get("type") == "text" else ""

    def _count(self, usage: object) -> None:
        if isinstance(usage, dict):
            # Some servers count the prompt at the beginning and say 0 at the end.
            self._usage.update(
                {
                    name: value
                    for name, value in given(usage).items()
                    if value or name not in self._usage
                }
            )

    def _block(self, index: int) -> dict[str, Any]:
        block, text = self._blocks[index], str(self._grown[index])
        for kind in ("text", "thinking"):
            if block.get("type") == kind:
                return {**block, kind: text}
        if block.get("type") == "tool_use" and text:
            try:
                return {**block, "input": json.loads(text)}
            except (ValueError, RecursionError):
                return {**block, "input": text}
        return block
