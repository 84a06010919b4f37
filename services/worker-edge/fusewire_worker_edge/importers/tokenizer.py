"""Write `tokenizer.json` and `tokenizer_config.json` from the vocabulary inside a GGUF file.

The formats are those of Hugging Face's `tokenizers` and `transformers`. The pre-tokenizers are named
as llama.cpp names them (`tokenizer.ggml.pre`), the splits are those of its llama-vocab.cpp.
"""

import json
from pathlib import Path
from typing import Any

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.gguf import GgufFile

_CONTROL, _USER_DEFINED = 3, 4
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>")
"""Control tokens that end an answer whatever the metadata names as the end token."""

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
}


def _added_tokens(tokens: list[str], kinds: list[int]) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, **plain, "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _begin_with(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts one token before the text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _tokenizer(source: GgufFile) -> dict[str, Any]:
    kind, pre = source.require("tokenizer.ggml.model"), source.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise ModelImportError(f"tokenizer '{kind}' cannot be converted; 'gpt2' (byte-level BPE) can")
    if pre not in _PRE_TOKENIZERS:
        raise ModelImportError(f"pre-tokenizer '{pre}' cannot be converted; {', '.join(_PRE_TOKENIZERS)} can")
    tokens = source.require("tokenizer.ggml.tokens")
    post_processor = None
    if source.metadata.get("tokenizer.ggml.add_bos_token", False):
        begin = int(source.require("tokenizer.ggml.bos_token_id"))
        post_processor = _begin_with(tokens[begin], begin)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, source.require("tokenizer.ggml.token_type")),
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": source.require("tokenizer.ggml.merges"),
        },
    }


def end_tokens(source: GgufFile) -> list[int]:
    """The ids that end an answer, the model's own end token first."""
    tokens = source.require("tokenizer.ggml.tokens")
    kinds = source.require("tokenizer.ggml.token_type")
    ids = [int(source.require("tokenizer.ggml.eos_token_id"))]
    if "tokenizer.ggml.eot_token_id" in source.metadata:
        ids.append(int(source.metadata["tokenizer.ggml.eot_token_id"]))
    ids += [i for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind == _CONTROL and t in _END_OF_TURN]
    return list(dict.fromkeys(ids))


def write_tokenizer(source: GgufFile, folder: Path) -> None:
    """Write both files.

    Raises:
        ModelImportError: the vocabulary is of a kind that cannot be converted, or there is no chat template.
    """
    tokens = source.require("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "chat_template": source.require("tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.shape.context_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token_id = source.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    for name, content in (("tokenizer.json", _tokenizer(source)), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
