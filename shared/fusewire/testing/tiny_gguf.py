"""For tests: a tiny language model as a GGUF file, with random weights and a real tokenizer."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from gguf.quants import quantize

LAYERS, HIDDEN, HEADS, KV_HEADS, CONTEXT = 2, 64, 4, 2, 4096
HEADS_APART = ("qwen3", "gemma3")
"""Architectures whose tiny models have another size of heads than the hidden size divided by their number."""
WINDOW = 16
"""Positions that Gemma's first layers look back over."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = count(256)
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]


TOKENS = [*SPECIAL, *_byte_characters(), "Ġt", "Ġth", "Ġthe", "er", "Ċ{"]
MERGES = ["Ġ t", "Ġt h", "Ġth e", "e r", "Ċ {"]


SPACE = "\u2581"
PIECES = [
    *("<unk>", "<s>", "</s>"),
    *(f"<0x{b:02X}>" for b in range(256)),
    *(SPACE, "\n", *"abcdefghijklmnopqrstuvwxyz.,?ABCDEFGHIJKLMNOPQRSTUVWXYZ|<>_"),
    *(f"{SPACE}t", "he", f"{SPACE}the", "er", f"{SPACE}a", "in"),
]
"""A SentencePiece vocabulary: what it cannot spell with its pieces, it spells in bytes."""


_BLOCK_BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
_SCALE = {"Q4_K": (0.0013, 7.5), "Q5_K": (0.00065, 15.5)}


def random_blocks(
    kind: str, rows: int, columns: int, random: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Rows of Q4_K, Q5_K or Q6_K blocks that hold random weights of about the size of the others."""
    count = rows * columns // 256
    blocks = random.integers(0, 256, (count, _BLOCK_BYTES[kind]), np.uint8)
    if kind in _SCALE:
        # The minimum puts the middle of the codes at zero.
        scale, middle = _SCALE[kind]
        blocks[:, :4] = np.array([[scale, scale * middle]], "<f2").view(np.uint8)
    else:
        blocks[:, 192:208] = random.integers(-20, 21, (count, 16), np.int8).view(np.uint8)
        blocks[:, 208:] = np.array([[0.0009]], "<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


def _shapes(
    architecture: str, vocabulary: int, hidden: int, *, tied: bool
) -> dict[str, tuple[int, ...]]:
    size, inner = _head_size(architecture, hidden), 2 * hidden
    queries, keys = HEADS * size, KV_HEADS * size
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (vocabulary, hidden),
        "output_norm": (hidden,),
    }
    if not tied:
        shapes["output"] = (vocabulary, hidden)
    for layer in range(_layers(architecture)):
        found: dict[str, tuple[int, ...]] = {
            "attn_norm": (hidden,),
            "ffn_norm": (hidden,),
            "attn_q": (queries, hidden),
            "attn_k": (keys, hidden),
            "attn_v": (keys, hidden),
            "attn_output": (hidden, queries),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        if architecture == "qwen2":
            found |= {f"attn_{part}.bias": (found[f"attn_{part}"][0],) for part in "qkv"}
        if architecture in ("qwen3", "gemma3"):
            found |= {"attn_q_norm": (size,), "attn_k_norm": (size,)}
        if architecture == "gemma3":
            found |= {"post_attention_norm": (hidden,), "post_ffw_norm": (hidden,)}
        if architecture == "phi3":
            found |= {"attn_qkv": (queries + 2 * keys, hidden), "ffn_up": (2 * inner, hidden)}
            for gone in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
                del found[gone]
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in found.items()}
    return shapes


def _head_size(architecture: str, hidden: int) -> int:
    """The heads together are wider than the model where the file says how large they are."""
    return hidden // HEADS * (2 if architecture in HEADS_APART else 1)


def _layers(architecture: str) -> int:
    """Gemma's sixth layer is the first of its kind."""
    return 6 if architecture == "gemma3" else LAYERS


def _write_sizes(writer: GGUFWriter, architecture: str, hidden: int) -> None:
    size = _head_size(architecture, hidden)
    writer.add_block_count(_layers(architecture))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(2 * hidden)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(1e6 if architecture == "gemma3" else 1e4)
    writer.add_layer_norm_rms_eps(1e-5)
    if architecture in HEADS_APART:
        writer.add_key_length(size)
        writer.add_value_length(size)
    if architecture == "phi3":
        writer.add_rope_dimension_count(size // 2)
        writer.add_rope_scaling_orig_ctx_len(CONTEXT // 2)
        writer.add_rope_scaling_attn_factors(1.19)
        for name, most in (("short", 2), ("long", 8)):
            factors = np.linspace(1, most, size // 4, dtype=np.float32)
            writer.add_tensor(
                f"rope_factors_{name}.weight", factors, raw_dtype=GGMLQuantizationType.F32
            )
    else:
        writer.add_rope_dimension_count(size)
    if architecture == "gemma3":
        writer.add_sliding_window(WINDOW)
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)


def _write_tokenizer(writer: GGUFWriter, metadata: dict[str, Any]) -> list[str]:
    kind = metadata.get("tokenizer", "gpt2")
    writer.add_tokenizer_model(kind)
    if "vocabulary" in metadata:
        tokens, scores, kinds = metadata["vocabulary"]
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        return list(tokens)
    if kind == "llama":
        writer.add_token_list(PIECES)
        writer.add_token_scores(
            [0.0] * 3 + [-1e4] * 256 + [-float(i) for i in range(len(PIECES) - 259)][::-1]
        )
        writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(PIECES) - 259))
        return PIECES
    writer.add_tokenizer_pre(metadata.get("pre", "smollm"))
    fillers = [f"[PAD{i}]" for i in range(metadata.get("fillers", 0))]
    called = metadata.get("added", [])
    tokens = [*TOKENS, *called, *fillers]
    plain = [1] * (len(TOKENS) - len(SPECIAL))
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + plain + [4] * len(called) + [5] * len(fillers))
    writer.add_token_merges(MERGES)
    return tokens


def write_gguf(
    path: Path, types: dict[str, str], *, tied: bool, metadata: dict[str, Any], drop: str, add: str
) -> None:
    """Write the model.

    Args:
        types: a tensor's type by the end of its name, "" the type of the others.
        tied: whether the head is the embedding.
        metadata: `architecture`, `hidden`, `tokenizer`, `pre`, `vocabulary` (SentencePiece: tokens, scores, types),
            `rope_scaling`, `rope_factors`, `add_bos`, `template`, `name`, where they differ; `added` tokens that
            are not special, and a number of `fillers`.
        drop, add: a tensor that is missing, one too many.
    """
    architecture, hidden = metadata.get("architecture", "llama"), metadata.get("hidden", HIDDEN)
    writer = GGUFWriter(path, architecture)
    _write_sizes(writer, architecture, hidden)
    if "rope_scaling" in metadata:
        writer.add_string(f"{architecture}.rope.scaling.type", metadata["rope_scaling"])
    if "name" in metadata:
        writer.add_name(metadata["name"])
    tokens = _write_tokenizer(writer, metadata)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(metadata.get("add_bos", False))
    if metadata.get("template", TEMPLATE):
        writer.add_chat_template(metadata.get("template", TEMPLATE))
    random = np.random.default_rng(4)
    shapes = _shapes(architecture, len(tokens), hidden, tied=tied)
    if add:
        shapes[add] = (hidden,)
    if metadata.get("rope_factors"):
        factors = np.linspace(1, 8, hidden // HEADS // 2, dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", factors, raw_dtype=GGMLQuantizationType.F32)
    for name, shape in shapes.items():
        # The layers weigh more than the embedding, or every answer would repeat one letter.
        is_vocabulary = name in ("output", "token_embd")
        weights = (
            random.normal(size=shape).astype(np.float32)
            / np.sqrt(shape[-1])
            * (1 if is_vocabulary else 3)
        )
        if len(shape) == 1 and not name.endswith(".bias"):
            weights = 1 + weights
        if is_vocabulary:
            # Greedy answers are then plain letters, and do not end by chance.
            weights[[not (len(t) == 1 and t.isascii() and t.isalnum()) for t in tokens]] = 0
        kind = (
            "F32" if len(shape) == 1 else next(t for end, t in types.items() if name.endswith(end))
        )
        if name != drop:
            made = random_blocks(kind, shape[0], shape[1], random) if kind in _BLOCK_BYTES else None
            qtype = GGMLQuantizationType[kind]
            data = quantize(weights, qtype) if made is None else made
            writer.add_tensor(
                name if name.endswith(".bias") else f"{name}.weight", data, raw_dtype=qtype
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
