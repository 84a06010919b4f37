"""Mistral's own prompt formats, through mistral-common: they differ by the version of the tokenizer."""

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
"""Mistral's names for its tokenizers, in a model's folder."""


class MistralVocabulary(Vocabulary):
    """A vocabulary whose prompts Mistral's own code makes; answers are read as with any other.

    Args:
        path: one of `FILES`.
        tokenizer_json, config: of the same vocabulary, see `Vocabulary`.
    """

    def __init__(self, path: Path, tokenizer_json: str, config: Mapping[str, Any]) -> None:
        super().__init__(tokenizer_json, config)
        self._mistral = MistralTokenizer.from_file(str(path))
        inner = self._mistral.instruct_tokenizer.tokenizer
        self._version = int("".join(c for c in inner.version.value.split("m")[0] if c.isdigit()))
        self.dialect = _dialect(self._version, spaced=isinstance(inner, SentencePieceTokenizer))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """See `Vocabulary.prompt`."""
        try:
            asked: ChatCompletionRequest[ChatMessage] = ChatCompletionRequest(
                messages=self._turns(messages), tools=[_tool(tool) for tool in tools] or None
            )
            return list(self._mistral.encode_chat_completion(asked).tokens)
        except (MistralCommonException, ValueError):
            raise RequestRefusedError(
                "bad_request", "Mistral's prompt format refuses this order of messages"
            ) from None

    def _turns(self, messages: Sequence[Message]) -> list[ChatMessage]:
        names = {call.id: call.name for message in messages for call in message.tool_calls}
        return [self._turn(message, names) for message in with_names(messages)]

    def _turn(self, message: Message, names: Mapping[str, str]) -> ChatMessage:
        match message.role:
            case "system":
                return SystemMessage(content=message.content)
            case "user":
                return UserMessage(content=message.content)
            case "tool":
                given = message.tool_call_id or ""
                return ToolMessage(
                    content=message.content, tool_call_id=short_id(given), name=names.get(given)
                )
        calls = [
            ToolCall(
                id=short_id(call.id),
                function=FunctionCall(name=call.name, arguments=call.arguments or "{}"),
            )
            for call in message.tool_calls
        ]
        # Before version 7 a turn is either text or calls: the text beside calls has no place in it.
        content = None if calls and (self._version < 7 or not message.content) else message.content
        return AssistantMessage(content=content, tool_calls=calls or None)


def _dialect(version: int, *, spaced: bool) -> Dialect:
    if version >= 13:
        return MISTRAL_V13
    if version >= 11:
        return MISTRAL_V11
    return MISTRAL_SPACED_LIST if spaced else MISTRAL_LIST


def _tool(tool: Tool) -> MistralTool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    return MistralTool(function=function)
