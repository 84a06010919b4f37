"""Text to token ids and back: the chat template and the tokenizer of a model folder."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import RequestRefusedError

_SHIELD = re.compile("\ue000(\\d+)\ue001")
"""Private-use characters around the number of a special token, standing for its text inside a message."""


def _refuse(message: str) -> None:
    raise TemplateError(message)


class ChatTemplate:
    """A chat template as `transformers` runs it, in a sandbox."""

    def __init__(self, source: str, **special_tokens: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The conversation as one text that ends where the answer begins.

        Raises:
            RequestRefusedError: the template does not take such a conversation.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special_tokens)
        except TemplateError:
            raise RequestRefusedError("bad_request", "the model's chat template refuses this order of roles") from None


class Vocabulary:
    """The tokenizer and the chat template of a model folder."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer_json = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self._tokenizer = Tokenizer.from_str(self.tokenizer_json)
        config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        named = {name: config[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token") if name in config}
        self._template = ChatTemplate(config["chat_template"], **named)
        self._special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values()]
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, up to where the answer begins.

        A special token spelled out inside a message stays text: only the template may end a turn.

        Raises:
            RequestRefusedError: the chat template does not take such a conversation.
        """
        shielded = [{"role": m.role, "content": self._special_text.sub(self._shield, m.content)} for m in messages]
        ids: list[int] = []
        for i, piece in enumerate(_SHIELD.split(self._template.render(shielded))):
            literal = i % 2 == 1
            ids += self._encode(self._special[int(piece)] if literal else piece, literal=literal)
        return ids

    def text_stream(self) -> "TextStream":
        """A new stream that turns ids into text."""
        return TextStream(self._tokenizer)

    def _shield(self, match: re.Match[str]) -> str:
        return f"\ue000{self._special.index(match[0])}\ue001"

    def _encode(self, text: str, *, literal: bool) -> list[int]:
        self._tokenizer.encode_special_tokens = literal
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class TextStream:
    """Turns ids into text as they come; the bytes of a character that is not whole yet wait."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self.text = ""

    def append(self, token: int) -> None:
        """Add the text of one more id."""
        self.text += self._stream.step(self._tokenizer, token) or ""

    def cut_at(self, stops: Sequence[str], since: int) -> bool:
        """Cut the text before the first stop string that ends after position `since`; say whether there was one."""
        found = [at for s in stops if s and (at := self.text.find(s, max(0, since - len(s) + 1))) >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def begun(self, stops: Sequence[str]) -> int:
        """How many characters at the end of the text may be the beginning of a stop string."""
        return max((n for s in stops for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
