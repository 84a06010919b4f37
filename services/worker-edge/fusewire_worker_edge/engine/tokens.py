"""Text to token ids and back: the chat template and the tokenizer of a model folder."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from fusewire.answer_form import with_instruction
from fusewire.contracts import Message, Tool
from fusewire_worker_edge.engine.api import RequestRefusedError
from fusewire_worker_edge.engine.dialects import HERMES, Dialect, dialect_of_template
from fusewire_worker_edge.engine.wording import conversation, signature, spell_out_tools

_SHIELD = re.compile("\ue000(\\d+)\ue001")
"""Placeholder for a special token in a message: its number between two private-use characters."""


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """The filter `tojson` as `transformers` has it: without jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


class ChatTemplate:
    """A chat template, run in a sandbox as `transformers` runs it.

    Args:
        source: the template, in jinja.
        special_tokens: the texts of `bos_token` and so on, as variables of the template.
    """

    def __init__(self, source: str, **special_tokens: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = _to_json
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()
    ) -> str:
        """Render the conversation as one text that ends where the answer begins.

        Args:
            messages: in the shape that `transformers` gives to templates.
            tools: likewise.

        Raises:
            RequestRefusedError: the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                add_generation_prompt=True,
                # The name in Qwen3's template. A member that shall reason first is `in_steps`.
                enable_thinking=False,
                **self._special_tokens,
            )
        except TemplateError:
            raise RequestRefusedError(
                "bad_request", "the model's chat template refuses this order of roles"
            ) from None


class Vocabulary:
    """The tokenizer and the chat template of a model folder.

    Args:
        tokenizer_json: the text of `tokenizer.json`.
        config: the content of `tokenizer_config.json`.
        dialect: how the model writes tool calls, if it differs from what its template teaches.
    """

    def __init__(
        self, tokenizer_json: str, config: Mapping[str, Any], dialect: Dialect | None = None
    ) -> None:
        self.tokenizer_json = tokenizer_json
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # Without added tokens, `<tool_call>` and special tokens are encoded as plain text.
        self._literally = Tokenizer.from_str(
            json.dumps({**json.loads(tokenizer_json), "added_tokens": []})
        )
        special_tokens = {
            name: config[name]
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if name in config
        }
        template = config.get("chat_template", "")
        self._template = ChatTemplate(template, **special_tokens)
        template_dialect = dialect_of_template(template)
        self._knows_tools = template_dialect is not None
        self.dialect = dialect or template_dialect or HERMES
        self._special = [
            token.content for token in self._tokenizer.get_added_tokens_decoder().values()
        ]
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Return the ids of a conversation, up to where the answer begins.

        A special token spelled out inside a message stays text: only the template may end a turn.

        Raises:
            RequestRefusedError: the chat template refuses the conversation.
        """
        hinted_messages = with_instruction(messages, self.dialect.hint if tools else "")
        turns = conversation(hinted_messages)
        signatures = [signature(tool) for tool in tools]
        if not self._knows_tools:
            turns, signatures = spell_out_tools(turns, signatures), []
        text = self._template.render(self._shield(turns), self._shield(signatures))
        ids: list[int] = []
        # Split at placeholders, every second part is the number of a special token.
        for i, part in enumerate(_SHIELD.split(text)):
            if i % 2 == 1:
                ids += self._encode(self._special[int(part)], literal=True)
            else:
                ids += self._encode(part, literal=False)
        return ids

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text by itself. Added tokens spelled out in it stay text."""
        return self._encode(text, literal=True)

    def text_stream(self, *, special: bool = False) -> "TextStream":
        """Return a new decoder of ids; `special` also decodes special tokens to their text."""
        return TextStream(self._tokenizer, special=special)

    def _shield(self, json_value: Any) -> Any:
        """Copy a JSON value, with placeholders for the special tokens in all its strings."""
        if isinstance(json_value, str):
            return self._special_text.sub(self._placeholder, json_value)
        if isinstance(json_value, list):
            return [self._shield(element) for element in json_value]
        if isinstance(json_value, dict):
            return {key: self._shield(element) for key, element in json_value.items()}
        return json_value

    def _placeholder(self, match: re.Match[str]) -> str:
        return f"\ue000{self._special.index(match[0])}\ue001"

    def _encode(self, text: str, *, literal: bool) -> list[int]:
        tokenizer = self._literally if literal else self._tokenizer
        return list(tokenizer.encode(text, add_special_tokens=False).ids)


class TextStream:
    """Decodes ids incrementally. Bytes of an incomplete character are held back.

    Args:
        tokenizer: the tokenizer.
        special: whether to decode special tokens to their text.
    """

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=not special)
        self.text = ""

    def append(self, token: int) -> None:
        """Add the text of one more id."""
        self.text += self._stream.step(self._tokenizer, token) or ""

    def spell(self, token: int) -> str:
        """Return the text of one id by itself, with U+FFFD for a part of a character."""
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def cut_at(self, stops: Sequence[str], since: int) -> bool:
        """Cut the text before the first stop string that ends after position `since`.

        Returns:
            whether there was one.
        """
        starts = []
        for stop in stops:
            # Earlier text was searched before, so an occurrence must reach beyond `since`.
            start = self.text.find(stop, max(0, since - len(stop) + 1))
            if stop and start >= 0:
                starts.append(start)
        if starts:
            self.text = self.text[: min(starts)]
        return bool(starts)

    def partial_stop(self, stops: Sequence[str]) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        longest = 0
        for stop in stops:
            for length in range(longest + 1, len(stop)):
                if self.text.endswith(stop[:length]):
                    longest = length
        return longest
