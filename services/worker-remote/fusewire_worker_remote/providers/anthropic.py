"""Anthropic's Messages API."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fusewire.answer_form import with_names
from fusewire.contracts import Image, Message, Task, ToolCall, Usage
from fusewire.settings import RemoteModel
from fusewire_worker_remote.dialect import PLAIN, Dialect, schema_instruction
from fusewire_worker_remote.errors import Failure, content_refusal, truncation
from fusewire_worker_remote.providers import base, reading
from fusewire_worker_remote.providers.assembly import JsonAssembly
from fusewire_worker_remote.providers.base import HttpRequest, HttpResponse, ProviderReply
from fusewire_worker_remote.providers.parts import (
    Text,
    append_turn,
    call_id,
    clean,
    content_parts,
    make_usage,
    parse_arguments,
    parse_data_url,
    position,
    system_text,
    tokens,
    without_none,
    word,
)
from fusewire_worker_remote.providers.schema import is_closed, without_bounds

VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 4096
"""The API requires a limit; this is the highest that all its models accept."""

_CALL_ID = re.compile(r"[a-zA-Z0-9_-]+")
_GO_ON = "Go on."
_CHOICES: dict[str, dict[str, Any]] = {
    "auto": {"type": "auto"},
    "none": {"type": "none"},
    "required": {"type": "any"},
}


class Anthropic:
    """`POST {base_url}/messages`."""

    base_dialect = PLAIN
    """See `Provider`."""

    def request(
        self, task: Task, model: RemoteModel, dialect: Dialect = PLAIN, *, is_streamed: bool = False
    ) -> HttpRequest:
        """See `Provider.request`. The API has no seed, so it is left out."""
        sampling = task.sampling
        temperature = sampling.temperature
        system, output = _output(system_text(task.messages), sampling.response_schema, dialect)
        turns = _turns(with_names(task.messages))
        if not turns:  # a conversation needs a user
            turns, system = [{"role": "user", "content": [{"type": "text", "text": system}]}], ""
        payload = without_none(
            {
                "model": model.model,
                "max_tokens": base.max_tokens(task, model) or DEFAULT_MAX_TOKENS,
                "system": system or None,
                "messages": turns,
                # The API's scale ends at 1.
                "temperature": min(temperature, 1.0) if temperature is not None else None,
                # Newer models refuse temperature and top_p together.
                "top_p": sampling.top_p if temperature is None else None,
                "top_k": sampling.top_k,
                "stop_sequences": list(sampling.stop) or None,
                "output_config": output,
                "stream": True if is_streamed else None,
                **_tools(task),
            }
        )
        headers = {"anthropic-version": VERSION, **base.key_header(model, "x-api-key")}
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
    """Return the system prompt and `output_config` that request JSON by a schema.

    Structured outputs support closed objects only; an open one is requested in the prompt.
    """
    if schema is None:
        return system, None
    if is_closed(schema) and dialect.schema_form == "schema":
        return system, {"format": {"type": "json_schema", "schema": without_bounds(schema)}}
    instruction = schema_instruction(schema)
    return f"{system}\n\n{instruction}" if system else instruction, None


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Return the conversation, with alternating roles; results of tools are a user's."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == "system":
            continue
        role = "assistant" if message.role == "assistant" else "user"
        append_turn(turns, role, "content", _blocks(message))
    if turns and turns[-1]["role"] == "assistant":
        # Models since Claude 4.6 do not continue an answer of their own.
        turns.append({"role": "user", "content": [{"type": "text", "text": _GO_ON}]})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        result = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id or "")}
        return [{**result, "content": message.content}] if message.content.strip() else [result]
    blocks = [_block(part) for part in content_parts(message) if not _is_blank(part)]
    return blocks + [_tool_use(call) for call in message.tool_calls]


def _is_blank(part: str | Image) -> bool:
    """Whether a part is text without a visible character, which the API refuses."""
    return isinstance(part, str) and not part.strip()


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": _id(call.id),
        "name": call.name,
        "input": parse_arguments(call.arguments),
    }


def _id(original_id: str) -> str:
    return call_id(original_id, _CALL_ID, 40)


def _block(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    inline = parse_data_url(part.url)
    if inline is None:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    media_type, base64 = inline
    source = {"type": "base64", "media_type": media_type, "data": base64}
    return {"type": "image", "source": source}


def _tools(task: Task) -> dict[str, Any]:
    if not task.tools:
        return {}
    tools = [
        without_none(
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
    """Read a message.

    Args:
        body: the message.
        is_whole: whether it is known to be whole; if not, only a stop reason shows that it is.
    """
    usage = _usage(body.get("usage"))
    blocks = body.get("content")
    if not isinstance(blocks, list):
        return reading.no_answer(body, "content", usage)
    reason = word(body.get("stop_reason"))
    if reason == "refusal":
        return content_refusal("the provider withheld the answer", usage)
    if not reason and not is_whole:
        return truncation("the answer has no stop reason", usage)
    blocks = [block for block in blocks if isinstance(block, dict)]
    reasoning = "".join(clean(block.get("thinking")) for block in blocks)
    return reading.make_reply(
        clean(blocks), _calls(blocks), usage, reason=reason, reasoning=reasoning
    )


def _calls(blocks: list[dict[str, Any]]) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for block in blocks:
        name = word(block.get("name"))
        if block.get("type") != "tool_use" or not name:
            continue
        id_ = clean(block.get("id")) or f"call_{len(calls)}"
        arguments = clean(_arguments(block.get("input")))
        calls.append(ToolCall(id=id_, name=clean(name), arguments=arguments))
    return tuple(calls)


def _arguments(tool_input: object) -> str:
    """Return a call's input as JSON; a streamed one that was cut is text already."""
    if isinstance(tool_input, str):
        return tool_input
    return json.dumps(tool_input if tool_input is not None else {}, ensure_ascii=False)


def _usage(usage: object) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt = tokens(usage.get("input_tokens"))
    if prompt is None:
        return None
    # The API's input tokens exclude those read from the cache and those written to it.
    cache_reads = tokens(usage.get("cache_read_input_tokens")) or 0
    cache_writes = tokens(usage.get("cache_creation_input_tokens")) or 0
    prompt += cache_reads + cache_writes
    return make_usage(prompt, usage.get("output_tokens"), from_cache=cache_reads)


class MessageAssembly(JsonAssembly):
    """Assembles the events of a message: blocks that begin, grow and end."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self._blocks: dict[int, dict[str, Any]] = {}
        self._texts: dict[int, Text] = {}
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
            self._take_message_delta(chunk)
        elif kind == "content_block_start" and isinstance(chunk.get("content_block"), dict):
            self._start_block(index, chunk["content_block"])
            return self._grow(index, chunk["content_block"].get("text"))
        elif kind == "content_block_delta" and isinstance(chunk.get("delta"), dict):
            return self._take_block_delta(index, chunk["delta"])
        return ""

    def whole(self) -> ProviderReply | Failure:
        """See `JsonAssembly`."""
        blocks = [self._block(index) for index in self._blocks] if self._is_begun else None
        if blocks is None:
            return truncation("the stream holds no message", _usage(self._usage))
        body = {"content": blocks, "stop_reason": self._reason, "usage": self._usage or None}
        return read_body(body, is_whole=self.is_complete)

    def _take_message_delta(self, chunk: Mapping[str, Any]) -> None:
        self._count(chunk.get("usage"))
        delta = chunk.get("delta")
        if isinstance(delta, dict):
            # A second delta may come without a reason.
            self._reason = delta.get("stop_reason") or self._reason
        self.is_complete = bool(word(self._reason))

    def _take_block_delta(self, index: int, delta: Mapping[str, Any]) -> str:
        if index not in self._blocks and isinstance(delta.get("text"), str):
            # Some servers send a text's first piece without an event that begins its block.
            self._start_block(index, {"type": "text"})
        piece = delta.get("text") or delta.get("partial_json") or delta.get("thinking")
        return self._grow(index, piece)

    def _start_block(self, index: int, block: dict[str, Any]) -> None:
        self.has_answered = True
        self._blocks[index] = block
        self._texts[index] = Text()

    def _grow(self, index: int, piece: object) -> str:
        """Add a piece to a block; return the text that it adds to the answer."""
        block = self._blocks.get(index)
        if block is None:
            return ""
        text = self._texts[index].add(piece)
        return text if block.get("type") == "text" else ""

    def _count(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        for name, count in without_none(usage).items():
            # Some servers count the prompt at the beginning and send 0 at the end.
            if count or name not in self._usage:
                self._usage[name] = count

    def _block(self, index: int) -> dict[str, Any]:
        """Return a block in the form in which it would have come without streaming."""
        block, text = self._blocks[index], str(self._texts[index])
        for kind in ("text", "thinking"):
            if block.get("type") == kind:
                return {**block, kind: text}
        if block.get("type") == "tool_use" and text:
            try:
                return {**block, "input": json.loads(text)}
            except (ValueError, RecursionError):
                return {**block, "input": text}
        return block


PROVIDER = Anthropic()
