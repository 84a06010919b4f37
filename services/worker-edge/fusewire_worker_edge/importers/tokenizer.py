"""Write `tokenizer.json` and `tokenizer_config.json` from the vocabulary inside a GGUF file.

The formats are those of Hugging Face's `tokenizers` and `transformers`. The pre-tokenizers are named
as llama.cpp names them (`tokenizer.ggml.pre`), the splits are those of its llama-vocab.cpp.
"""

import json
from pathlib import Path
from typing import Any

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.gguf import GgufFile
from fusewire_worker_edge.importers.mistral import copy_tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>")
"""Control tokens that end an answer whatever the metadata names as the end token."""

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def _split(pattern: str) -> dict[str, Any]:
    """Words by a pattern, then bytes."""
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
"""Words that change from capitals to small letters once at most."""
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
    "qwen2": _split(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
    ),
    "llama-bpe": _split(
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
    ),
    "tekken": _split(rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"),
    "gpt-4o": _split(
        rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
    ),
}
_NORMALISED = frozenset({"qwen2"})
"""Those whose text is brought into Unicode's form NFC first."""


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
        "pair": [
            begin,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _tokenizer(source: GgufFile) -> dict[str, Any]:
    kind = source.require("tokenizer.ggml.model")
    made = {"gpt2": _byte_level, "llama": _sentencepiece}.get(kind)
    if made is None:
        raise ModelImportError(
            f"tokenizer '{kind}' cannot be converted; 'gpt2' (byte-level BPE) and 'llama' (SentencePiece) can"
        )
    tokens = source.tokens
    post_processor = None
    # SentencePiece's own default is to begin every text with a token, byte-level BPE's is not to.
    if source.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        begin = int(source.number("tokenizer.ggml.bos_token_id"))
        post_processor = _begin_with(tokens[begin], begin)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, source.token_kinds),
        "post_processor": post_processor,
        **made(source, tokens),
    }


def _bpe(tokens: list[str], merges: list[Any], **differs: Any) -> dict[str, Any]:
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
        **differs,
    }


def _byte_level(source: GgufFile, tokens: list[str]) -> dict[str, Any]:
    pre = source.metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        raise ModelImportError(
            f"pre-tokenizer '{pre}' cannot be converted; {', '.join(_PRE_TOKENIZERS)} can"
        )
    return {
        "normalizer": {"type": "NFC"} if pre in _NORMALISED else None,
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
    """SentencePiece's BPE: a merge for every way to make a piece of two others, the best scored piece first.

    As `SentencePieceExtractor` of transformers does it.
    """
    scores = source.require("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens):
        raise ModelImportError("'tokenizer.ggml.scores' does not give each token a score")
    rank = {token: i for i, token in enumerate(tokens)}
    merges = []
    for piece in sorted((t for t in rank if len(t) > 1), key=lambda t: (-scores[rank[t]], rank[t])):
        ways = [
            (piece[:i], piece[i:])
            for i in range(1, len(piece))
            if piece[:i] in rank and piece[i:] in rank
        ]
        merges += [list(way) for way in sorted(ways, key=lambda way: (rank[way[0]], rank[way[1]]))]
    space = {"String": " "}
    prefixed = source.metadata.get("tokenizer.ggml.add_space_prefix", True)
    prepend = [{"type": "Prepend", "prepend": "\u2581"}] if prefixed else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    replaced = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prepend, {"type": "Replace", "pattern": space, "content": "\u2581"}],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [replaced, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": _bpe(tokens, merges, unk_token=tokens[0], fuse_unk=True, byte_fallback=True),
    }


def end_tokens(source: GgufFile) -> list[int]:
    """The ids that end an answer, the model's own end token first."""
    tokens, kinds = source.tokens, source.token_kinds
    ids = [int(source.number("tokenizer.ggml.eos_token_id"))]
    if "tokenizer.ggml.eot_token_id" in source.metadata:
        ids.append(int(source.number("tokenizer.ggml.eot_token_id")))
    ids += [
        i
        for i, (t, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL and t in _END_OF_TURN
    ]
    return list(dict.fromkeys(ids))


def _template(source: GgufFile) -> str:
    template = source.metadata.get("tokenizer.chat_template")
    if not template:
        raise ModelImportError(
            "it has no chat template, so it cannot be asked; take an instruct model's file"
        )
    return str(template)


def write_tokenizer(source: GgufFile, folder: Path) -> None:
    """Write both files, and Mistral's own where the vocabulary is one of its.

    Raises:
        ModelImportError: the vocabulary is of a kind that cannot be converted, or there is no chat template.
    """
    tokens = source.tokens
    is_mistral = source.metadata.get("tokenizer.ggml.model") == "llama" and copy_tokenizer(
        tokens, folder
    )
    config: dict[str, Any] = {
        "chat_template": source.metadata.get("tokenizer.chat_template", "")
        if is_mistral
        else _template(source),
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.shape.context_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token_id = source.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    for name, content in (
        ("tokenizer.json", _tokenizer(source)),
        ("tokenizer_config.json", config),
    ):
        (folder / name).write_text(
            json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8"
        )
