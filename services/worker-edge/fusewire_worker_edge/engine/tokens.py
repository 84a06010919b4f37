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
from fusewire_worker_edge.engine.dialects import HERMES, Dialect, of_template
from fusewire_worker_edge.engine.wording import conversation, in_words, signature

_SHIELD = re.compile("\ue000(\\d+)\ue001")
"""Private-use characters around the number of a special token, standing for its text inside a message."""


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As `transformers` has it, without jinja's escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


class ChatTemplate:
    """A chat template as `transformers` runs it, in a sandbox."""

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
        """The conversation as one text that ends where the answer begins.

        Args:
            messages, tools: in the shape that `transformers` gives to templates.

        Raises:
            RequestRefusedError: the template does not take such a conversation.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=tools or None,
                add_generation_prompt=True,
                # As Qwen3's template calls it: what a member thinks first, it thinks in steps (`in_steps`).
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
        config: what is in `tokenizer_config.json`.
        dialect: how the model writes calls of tools, where that is another way than its template teaches.
    """

    def __init__(
        self, tokenizer_json: str, config: Mapping[str, Any], dialect: Dialect | None = None
    ) -> None:
        self.tokenizer_json = tokenizer_json
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # One without added tokens spells them out, also those that are not marked special, such as `<tool_call>`.
        self._literally = Tokenizer.from_str(
            json.dumps({**json.loads(tokenizer_json), "added_tokens": []})
        )
        named = {
            name: config[name]
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if name in config
        }
        template = config.get("chat_template", "")
        self._template = ChatTemplate(template, **named)
        taught = of_template(template)
        self._knows_tools = taught is not None
        self.dialect = dialect or taught or HERMES
        self._special = [
            token.content for token in self._tokenizer.get_added_tokens_decoder().values()
        ]
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """The ids of a conversation, up to where the answer begins.

        A special token spelled out inside a message stays text: only the template may end a turn.

        Raises:
            RequestRefusedError: the chat template does not take such a conversation.
        """
        told = with_instruction(messages, self.dialect.hint if tools else "")
        said, offered = conversation(told), [signature(tool) for tool in tools]
        if not self._knows_tools:
            said, offered = in_words(said, offered), []
        ids: list[int] = []
        for i, piece in enumerate(
            _SHIELD.split(self._template.render(self._shielded(said), self._shielded(offered)))
        ):
            literal = i % 2 == 1
            ids += self._encode(self._special[int(piece)] if literal else piece, literal=literal)
        return ids

    def ids(self, text: str) -> list[int]:
        """The ids of a text by itself; what is spelled like an added token stays text."""
        return self._encode(text, literal=True)

    def text_stream(self, *, special: bool = False) -> "TextStream":
        """A new stream that turns ids into text, special tokens too where they are wanted."""
        return TextStream(self._tokenizer, special=special)

    def _shielded(self, value: Any) -> Any:
        """A copy in which no string holds a special token."""
        if isinstance(value, str):
            return self._special_text.sub(self._shield, value)
        if isinstance(value, list):
            return [self._shielded(item) for item in value]
        if isinstance(value, dict):
            return {key: self._shielded(item) for key, item in value.items()}
        return value

    def _shield(self, match: re.Match[str]) -> str:
        return f"\ue000{self._special.index(match[0])}\ue001"

    def _encode(self, text: str, *, literal: bool) -> list[int]:
        tokenizer = self._literally if literal else self._tokenizer
        return list(tokenizer.encode(text, add_special_tokens=False).ids)


class TextStream:
    """Turns ids into text as they come; the bytes of a character that is not whole yet wait."""

    def __init__(self, tokenizer: Tokenizer, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=not special)
        self.text = ""

    def append(self, token: int) -> None:
        """Add the text of one more id."""
        self.text += self._stream.step(self._tokenizer, token) or ""

    def spell(self, token: int) -> str:
        """The text of one id by itself; a part of a character is shown as the replacement character."""
        return self._tokenizer.decode([token], skip_special_tokens=False)

    def cut_at(self, stops: Sequence[str], since: int) -> bool:
        """Cut the text before the first stop string that ends after position `since`; say whether there was one."""
        found = [
            at for s in stops if s and (at := self.text.find(s, max(0, since - len(s) + 1))) >= 0
        ]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def begun(self, stops: Sequence[str]) -> int:
        """How many characters at the end of the text may be the beginning of a stop string."""
        return max(
            (n for s in stops for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0
        )
