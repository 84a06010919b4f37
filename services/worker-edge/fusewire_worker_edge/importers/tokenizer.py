"""Write `tokenizer.json` and `tokenizer_config.json` from the vocabulary inside a GGUF file.

The formats are those of Hugging Face's `tokenizers` and `transformers`. The names of the
pre-tokenizers are llama.cpp's (`tokenizer.ggml.pre`), and the splits those of its llama-vocab.cpp.
"""

import json
from pathlib import Path
from typing import Any

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.gguf import GgufFile
from fusewire_worker_edge.importers.mistral import copy_tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>")
"""Control tokens that end an answer, whatever end token the metadata names."""

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def _split(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that splits by a regex, then into bytes."""
    words = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [words, {**_BYTE_LEVEL, "use_regex": False}]}


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
"""Words that change from upper to lower case at most once."""
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
    "qwen2": _split(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
    ),
    "llama-bpe": _split(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
    ),
    "tekken": _split(rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"),
    "gpt-4o": _split(
        rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
    ),
}
_NFC = frozenset({"qwen2"})
"""The pre-tokenizers whose text is normalised to NFC first."""


def _added_tokens(tokens: list[str], kinds: list[int]) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, **plain, "special": kind == _CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _begin_with(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that inserts one token before the text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            begin,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _tokenizer(source: GgufFile) -> dict[str, Any]:
    kind = source.require("tokenizer.ggml.model")
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind)
    if build is None:
        raise ModelImportError(
            f"tokenizer '{kind}' cannot be converted;"
            " 'gpt2' (byte-level BPE) and 'llama' (SentencePiece) can"
        )
    tokens = source.tokens
    post_processor = None
    # By default SentencePiece begins every text with a token, and byte-level BPE does not.
    if source.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        begin = int(source.number("tokenizer.ggml.bos_token_id"))
        post_processor = _begin_with(tokens[begin], begin)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, source.token_kinds),
        "post_processor": post_processor,
        **build(source, tokens),
    }


def _bpe(tokens: list[str], merges: list[Any], **options: Any) -> dict[str, Any]:
    """A BPE model. `options` override the defaults."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
        **options,
    }


def _byte_level(source: GgufFile, tokens: list[str]) -> dict[str, Any]:
    pre = source.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        raise ModelImportError(
            f"pre-tokenizer '{pre}' cannot be converted; {', '.join(_PRE_TOKENIZERS)} can"
        )
    return {
        "normalizer": {"type": "NFC"} if pre in _NFC else None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": _bpe(
            tokens,
            source.texts("tokenizer.ggml.merges"),
            ignore_merges=pre in ("llama-bpe", "tekken"),
        ),
    }


def _sentencepiece(source: GgufFile, tokens: list[str]) -> dict[str, Any]:
    """SentencePiece's BPE, which stores scores of pieces instead of merges."""
    scores = source.require("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens):
        raise ModelImportError("'tokenizer.ggml.scores' does not give each token a score")
    merges = _merges(tokens, scores)
    has_prefix = source.metadata.get("tokenizer.ggml.add_space_prefix", True)
    prepend = [{"type": "Prepend", "prepend": "\u2581"}] if has_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    encode_space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    decode_space = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prepend, encode_space],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [decode_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": _bpe(tokens, merges, unk_token=tokens[0], fuse_unk=True, byte_fallback=True),
    }


def _merges(tokens: list[str], scores: list[float]) -> list[list[str]]:
    """All ways to merge two pieces into another, in the order of the merged pieces' scores.

    As `SentencePieceExtractor` of transformers does it.

    >>> _merges(["a", "b", "c", "ab", "abc"], [0, 0, 0, -2, -1])
    [['ab', 'c'], ['a', 'b']]
    """
    ids = {token: i for i, token in enumerate(tokens)}
    pieces = [token for token in ids if len(token) > 1]
    pieces.sort(key=lambda piece: (-scores[ids[piece]], ids[piece]))
    merges: list[list[str]] = []
    for piece in pieces:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [[first, second] for first, second in splits if first in ids and second in ids]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


def end_tokens(source: GgufFile) -> list[int]:
    """Return the ids that end an answer, the model's own end token first."""
    tokens, kinds = source.tokens, source.token_kinds
    ids = [int(source.number("tokenizer.ggml.eos_token_id"))]
    if "tokenizer.ggml.eot_token_id" in source.metadata:
        ids.append(int(source.number("tokenizer.ggml.eot_token_id")))
    for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == _CONTROL and token in _END_OF_TURN:
            ids.append(i)
    return list(dict.fromkeys(ids))


def _template(source: GgufFile) -> str:
    template = source.metadata.get("tokenizer.chat_template")
    if not template:
        raise ModelImportError(
            "it has no chat template, so it cannot be asked; take an instruct model's file"
        )
    return str(template)


def write_tokenizer(source: GgufFile, folder: Path) -> None:
    """Write both files, and Mistral's own file if the vocabulary is one of Mistral's.

    Raises:
        ModelImportError: the vocabulary cannot be converted, or there is no chat template.
    """
    tokens = source.tokens
    is_sentencepiece = source.metadata.get("tokenizer.ggml.model") == "llama"
    if is_sentencepiece and copy_tokenizer(tokens, folder):
        # mistral-common makes the prompts, so the template may be missing.
        template = source.metadata.get("tokenizer.chat_template", "")
    else:
        template = _template(source)
    config: dict[str, Any] = {
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.shape.context_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token_id = source.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    contents = {"tokenizer.json": _tokenizer(source), "tokenizer_config.json": config}
    for name, content in contents.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (folder / name).write_text(text, encoding="utf-8")
