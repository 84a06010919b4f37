"""The tokenizer of a Hugging Face snapshot, and what its configuration says of tokens that begin and end a text."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fusewire_worker_edge.engine.mistral import FILES
from fusewire_worker_edge.importers import ModelImportError

_MOST_JSON = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        ModelImportError: it is missing, or holds something else.
    """
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ModelImportError(f"{path.name} is larger than {_MOST_JSON >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelImportError(
            f"{path.name} cannot be read: {exc.strerror or 'I/O error'}"
        ) from None
    except (ValueError, RecursionError):
        raise ModelImportError(f"{path.name} is not JSON") from None
    if not isinstance(value, dict):
        raise ModelImportError(f"{path.name} holds no JSON object")
    return value


class SnapshotTokenizer:
    """The tokenizer in a folder.

    Raises:
        ModelImportError: there is none, or none that can be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole = read_json(folder / "tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(self._whole))
        except Exception as exc:  # noqa: BLE001 - what tokenizers raises is an Exception and nothing more
            raise ModelImportError(f"tokenizer.json cannot be used: {exc}") from None
        self._config = read_json(folder / "tokenizer_config.json")

    @property
    def size(self) -> int:
        """How many ids there are, to the highest that is a token."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_tokens(self) -> list[int]:
        """The ids that end an answer."""
        for name in ("generation_config.json", "config.json", "genai_config.json"):
            if (self._folder / name).is_file():
                said = read_json(self._folder / name)
                said = said.get("model", {}) if name == "genai_config.json" else said
                ids = _listed(said.get("eos_token_id"))
                if ids:
                    return self._checked(ids)
        own = self._tokenizer.token_to_id(self._text("eos_token") or "")
        if own is None:
            raise ModelImportError("no file of it says which token ends an answer (eos_token_id)")
        return [own]

    def token(self, name: str) -> int | None:
        """The id of `bos_token`, `pad_token` and so on."""
        return self._tokenizer.token_to_id(self._text(name) or "")

    def write(self, folder: Path, context_length: int) -> None:
        """Write it into a model folder, and Mistral's own beside it where there is one.

        Raises:
            ModelImportError: there is no chat template.
        """
        own = next((self._folder / name for name in FILES if (self._folder / name).is_file()), None)
        template = self._template()
        if not template and own is None:
            raise ModelImportError(
                "it has no chat template, so it cannot be asked; take an instruct model"
            )
        special = {
            name: self._text(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        }
        config = {
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "model_max_length": context_length,
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: text for name, text in special.items() if text},
        }
        tokenizer = {**self._whole, "truncation": None, "padding": None}
        for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
            (folder / name).write_text(
                json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8"
            )
        if own is not None:
            (folder / own.name).write_bytes(own.read_bytes())

    def _template(self) -> str:
        apart = self._folder / "chat_template.jinja"
        if apart.is_file():
            return apart.read_text(encoding="utf-8")
        said = self._config.get("chat_template")
        if isinstance(said, list):
            said = next((one.get("template") for one in said if one.get("name") == "default"), None)
        return said if isinstance(said, str) else ""

    def _text(self, name: str) -> str | None:
        said = self._config.get(name)
        said = said.get("content") if isinstance(said, dict) else said
        return said if isinstance(said, str) else None

    def _checked(self, ids: list[int]) -> list[int]:
        if odd := [one for one in ids if not 0 <= one < self.size]:
            raise ModelImportError(f"eos_token_id is {odd[0]}, and there are {self.size} tokens")
        return ids


def _listed(value: Any) -> list[int]:
    found = value if isinstance(value, list) else [value]
    return [one for one in found if type(one) is int]
