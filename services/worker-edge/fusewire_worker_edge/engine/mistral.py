"""Mistral's own prompt formats, made by mistral-common; they depend on the tokenizer's version."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mistral_common.exceptions import MistralCommonException
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    ChatMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall, ToolCall
from mistral_common.protocol.instruct.tool_calls import Tool as MistralTool
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

from fusewire.answer_form import with_names
from fusewire.contracts import Message, Tool
from fusewire_worker_edge.engine.api import RequestRefusedError
from fusewire_worker_edge.engine.dialects import (
    MISTRAL_LIST,
    MISTRAL_SPACED_LIST,
    MISTRAL_V11,
    MISTRAL_V13,
    Dialect,
    short_id,
)
from fusewire_worker_edge.engine.tokens import Vocabulary

FILES = (
    "tekken.json",
    "tokenizer.model.v7",
    "tokenizer.model.v3",
    "tokenizer.model.v2",
    "tokenizer.model.v1",
)
"""Mistral's names for its tokenizer files in a model's folder, the newest first."""


def find_tokenizer_file(folder: Path) -> Path | None:
    """Return Mistral's own tokenizer file in a folder, or None if there is none."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    return None


class MistralVocabulary(Vocabulary):
    """A vocabulary whose prompts are made by mistral-common. Answers are decoded as with any other.

    Args:
        path: the tokenizer file, one of `FILES`.
        tokenizer_json: of the same vocabulary, see `Vocabulary`.
        config: likewise.
    """

    def __init__(self, path: Path, tokenizer_json: str, config: Mapping[str, Any]) -> None:
        super().__init__(tokenizer_json, config)
        self._mistral = MistralTokenizer.from_file(str(path))
        tokenizer = self._mistral.instruct_tokenizer.tokenizer
        # Such as `v3` or `v7m1`.
        version_name = tokenizer.version.value.split("m")[0]
        self._version = int("".join(c for c in version_name if c.isdigit()))
        is_sentencepiece = isinstance(tokenizer, SentencePieceTokenizer)
        self.dialect = _dialect(self._version, is_sentencepiece=is_sentencepiece)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """See `Vocabulary.prompt`."""
        try:
            # The formats differ in spaces and in where tools stand, and no template says so
            # (docs/decisions/0031).
            request: ChatCompletionRequest[ChatMessage] = ChatCompletionRequest(
                messages=self._turns(messages), tools=[_tool(tool) for tool in tools] or None
            )
            return list(self._mistral.encode_chat_completion(request).tokens)
        except (MistralCommonException, ValueError):
            raise RequestRefusedError(
                "bad_request", "Mistral's prompt format refuses this order of messages"
            ) from None

    def _turns(self, messages: Sequence[Message]) -> list[ChatMessage]:
        names: dict[str, str] = {}
        for message in messages:
            names |= {call.id: call.name for call in message.tool_calls}
        return [self._turn(message, names) for message in with_names(messages)]

    def _turn(self, message: Message, names: Mapping[str, str]) -> ChatMessage:
        """Convert a message. `names` has the name of each tool by the id of its call."""
        match message.role:
            case "system":
                return SystemMessage(content=message.content)
            case "user":
                return UserMessage(content=message.content)
            case "tool":
                call_id = message.tool_call_id or ""
                return ToolMessage(
                    content=message.content, tool_call_id=short_id(call_id), name=names.get(call_id)
                )
        calls = [
            ToolCall(
                id=short_id(call.id),
                function=FunctionCall(name=call.name, arguments=call.arguments or "{}"),
            )
            for call in message.tool_calls
        ]
        content: str | None = message.content
        # Before version 7 a turn is either text or calls, so the text beside calls is left out
        # (docs/decisions/0030).
        if calls and (self._version < 7 or not message.content):
            content = None
        return AssistantMessage(content=content, tool_calls=calls or None)


def _dialect(version: int, *, is_sentencepiece: bool) -> Dialect:
    if version >= 13:
        return MISTRAL_V13
    if version >= 11:
        return MISTRAL_V11
    return MISTRAL_SPACED_LIST if is_sentencepiece else MISTRAL_LIST


def _tool(tool: Tool) -> MistralTool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    return MistralTool(function=function)
