"""For tests: a tiny language model as a GGUF file, with random weights and a real tokenizer."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from gguf.quants import quantize

LAYERS, HIDDEN, HEADS, KV_HEADS, CONTEXT = 2, 64, 4, 2, 4096
HEADS_APART = ("qwen3", "gemma3")
"""Architectures whose tiny models have another size of heads than the hidden size divided by their
number."""
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
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = count(256)
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


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
    """Rows of Q4_K, Q5_K or Q6_K blocks with random weights of about the size of the others."""
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
    architecture: str, vocabulary: int, width: int, *, is_tied: bool
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (vocabulary, width),
        "output_norm": (width,),
    }
    if not is_tied:
        shapes["output"] = (vocabulary, width)
    layer_shapes = _layer_shapes(architecture, width)
    for layer in range(_layers(architecture)):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in layer_shapes.items()}
    return shapes


def _layer_shapes(architecture: str, width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer, which are the same for all layers of a model."""
    size, inner = _head_size(architecture, width), 2 * width
    queries, keys = HEADS * size, KV_HEADS * size
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (width,),
        "ffn_norm": (width,),
        "attn_q": (queries, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_output": (width, queries),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    if architecture == "qwen2":
        shapes |= {f"attn_{part}.bias": (shapes[f"attn_{part}"][0],) for part in "qkv"}
    if architecture in ("qwen3", "gemma3"):
        shapes |= {"attn_q_norm": (size,), "attn_k_norm": (size,)}
    if architecture == "gemma3":
        shapes |= {"post_attention_norm": (width,), "post_ffw_norm": (width,)}
    if architecture == "phi3":
        shapes |= {"attn_qkv": (queries + 2 * keys, width), "ffn_up": (2 * inner, width)}
        for separate_name in ("attn_q", "attn_k", "attn_v", "ffn_gate"):
            del shapes[separate_name]
    return shapes


def _head_size(architecture: str, width: int) -> int:
    """The heads together are wider than the model where the file says how large they are."""
    return width // HEADS * (2 if architecture in HEADS_APART else 1)


def _layers(architecture: str) -> int:
    """Gemma's sixth layer is the first of its kind."""
    return 6 if architecture == "gemma3" else LAYERS


def _write_sizes(writer: GGUFWriter, architecture: str, width: int) -> None:
    size = _head_size(architecture, width)
    writer.add_block_count(_layers(architecture))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
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
    added_tokens = metadata.get("added", [])
    tokens = [*TOKENS, *added_tokens, *fillers]
    plain = [1] * (len(TOKENS) - len(SPECIAL))
    writer.add_token_list(tokens)
    writer.add_token_types(
        [3] * len(SPECIAL) + plain + [4] * len(added_tokens) + [5] * len(fillers)
    )
    writer.add_token_merges(MERGES)
    return tokens


def _random_weights(
    name: str, shape: tuple[int, ...], tokens: list[str], random: np.random.Generator
) -> np.ndarray[Any, Any]:
    is_vocabulary = name in ("output", "token_embd")
    # The layers weigh more than the embedding, or every answer would repeat one letter.
    factor = 1 if is_vocabulary else 3
    weights: np.ndarray[Any, Any] = random.normal(size=shape).astype(np.float32)
    weights = weights / np.sqrt(shape[-1]) * factor
    if len(shape) == 1 and not name.endswith(".bias"):
        weights = 1 + weights
    if is_vocabulary:
        # Greedy answers are then plain letters, and do not end by chance.
        weights[[not _is_letter_or_digit(token) for token in tokens]] = 0
    return weights


def _is_letter_or_digit(token: str) -> bool:
    return len(token) == 1 and token.isascii() and token.isalnum()


def _tensor_type(name: str, shape: tuple[int, ...], types: dict[str, str]) -> str:
    """The quantization type of a tensor, by the end of its name; vectors are F32."""
    if len(shape) == 1:
        return "F32"
    return next(kind for end, kind in types.items() if name.endswith(end))


def _write_tensors(
    writer: GGUFWriter,
    shapes: dict[str, tuple[int, ...]],
    types: dict[str, str],
    tokens: list[str],
    drop: str,
) -> None:
    """Write all tensors but `drop`, with weights that are the same each time."""
    random = np.random.default_rng(4)
    for name, shape in shapes.items():
        weights = _random_weights(name, shape, tokens, random)
        kind = _tensor_type(name, shape, types)
        if name == drop:
            continue
        qtype = GGMLQuantizationType[kind]
        is_random = kind in _BLOCK_BYTES
        blocks = random_blocks(kind, shape[0], shape[1], random) if is_random else None
        data = quantize(weights, qtype) if blocks is None else blocks
        tensor_name = name if name.endswith(".bias") else f"{name}.weight"
        writer.add_tensor(tensor_name, data, raw_dtype=qtype)


def write_gguf(
    path: Path,
    types: dict[str, str],
    *,
    is_tied: bool,
    metadata: dict[str, Any],
    drop: str,
    add: str,
) -> None:
    """Write the model.

    Args:
        types: a tensor's type by the end of its name, "" the type of the others.
        is_tied: whether the head is the embedding.
        metadata: `architecture`, `hidden`, `tokenizer`, `pre`, `vocabulary` (SentencePiece: tokens,
            scores, types), `rope_scaling`, `rope_factors`, `add_bos`, `template`, `name`, where
            they differ; `added` tokens that are not special, and a number of `fillers`.
        drop, add: a tensor that is missing, one too many.
    """
    architecture, width = metadata.get("architecture", "llama"), metadata.get("hidden", HIDDEN)
    writer = GGUFWriter(path, architecture)
    _write_sizes(writer, architecture, width)
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
    shapes = _shapes(architecture, len(tokens), width, is_tied=is_tied)
    if add:
        shapes[add] = (width,)
    if metadata.get("rope_factors"):
        factors = np.linspace(1, 8, width // HEADS // 2, dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", factors, raw_dtype=GGMLQuantizationType.F32)
    _write_tensors(writer, shapes, types, tokens, drop)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
