"""The tokenizer of a Hugging Face snapshot, with its end tokens and its chat template."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from fusewire_worker_edge.engine.mistral import find_tokenizer_file
from fusewire_worker_edge.importers import ModelImportError

_MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object.

    Raises:
        ModelImportError: it is missing, too large, or has other content.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelImportError(f"{path.name} is larger than {_MAX_JSON_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ModelImportError(
            f"{path.name} cannot be read: {exc.strerror or 'I/O error'}"
        ) from None
    except (ValueError, RecursionError):
        raise ModelImportError(f"{path.name} is not JSON") from None
    if not isinstance(content, dict):
        raise ModelImportError(f"{path.name} holds no JSON object")
    return content


class SnapshotTokenizer:
    """The tokenizer in a snapshot's folder.

    Raises:
        ModelImportError: there is none, or it cannot be used.
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
        """The number of ids, up to the highest id of a token."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def end_tokens(self) -> list[int]:
        """The ids that end an answer."""
        for name in ("generation_config.json", "config.json", "genai_config.json"):
            if not (self._folder / name).is_file():
                continue
            config = read_json(self._folder / name)
            if name == "genai_config.json":
                config = config.get("model", {})
            ids = _parse_ids(config.get("eos_token_id"))
            if ids:
                self._check_ids(ids)
                return ids
        token_id = self.token("eos_token")
        if token_id is None:
            raise ModelImportError("no file of it says which token ends an answer (eos_token_id)")
        return [token_id]

    def token(self, name: str) -> int | None:
        """Return the id of `bos_token`, `pad_token` and so on, or None if there is none."""
        return self._tokenizer.token_to_id(self._text(name) or "")

    def write(self, folder: Path, context_length: int) -> None:
        """Write the tokenizer into a model folder, with Mistral's own file if there is one.

        Raises:
            ModelImportError: there is no chat template.
        """
        mistral_file = find_tokenizer_file(self._folder)
        template = self._template()
        if not template and mistral_file is None:
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
        if mistral_file is not None:
            (folder / mistral_file.name).write_bytes(mistral_file.read_bytes())

    def _template(self) -> str:
        """The chat template; empty if there is none."""
        file = self._folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            # Several templates, each with a name.
            template = next(
                (entry.get("template") for entry in template if entry.get("name") == "default"),
                None,
            )
        return template if isinstance(template, str) else ""

    def _text(self, name: str) -> str | None:
        """The text of `bos_token` and so on, which the configuration has plain or in an object."""
        token = self._config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        return text if isinstance(text, str) else None

    def _check_ids(self, ids: list[int]) -> None:
        for token_id in ids:
            if not 0 <= token_id < self.size:
                raise ModelImportError(
                    f"eos_token_id is {token_id}, and there are {self.size} tokens"
                )


def _parse_ids(ids: Any) -> list[int]:
    """The ids of `eos_token_id`, which is a number or a list of numbers.

    >>> _parse_ids(2), _parse_ids([2, 3]), _parse_ids(None)
    ([2], [2, 3], [])
    """
    candidates = ids if isinstance(ids, list) else [ids]
    return [token_id for token_id in candidates if type(token_id) is int]
