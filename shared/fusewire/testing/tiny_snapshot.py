"""For tests: a tiny language model as a Hugging Face snapshot.

It has random weights and a byte-level tokenizer.
"""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fusewire.testing.tiny_gguf import MERGES, SPECIAL, TEMPLATE, TOKENS

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_SIZE, CONTEXT = 64, 128, 4, 2, 32, 4096

_COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_SIZE,
    "num_hidden_layers": 2,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "vocab_size": len(TOKENS) + 4,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""The last four rows are those of no token."""
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    },
    "qwen2": {"model_type": "qwen2", "head_dim": HIDDEN // HEADS},
    "qwen3": {"model_type": "qwen3"},
    "phi3": {
        "model_type": "phi3",
        "hidden_size": 2 * HIDDEN,
        "partial_rotary_factor": 0.5,
        "original_max_position_embeddings": 256,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + i / 8 for i in range(8)],
            "long_factor": [1.0 + i for i in range(8)],
        },
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "sliding_window": 16,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}
"""By architecture, what differs from the others."""
_NORMS = ("input_layernorm", "post_attention_layernorm")
_NORMS_OF_GEMMA = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _shapes(architecture: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    layer_shapes = _layer_shapes(architecture, config)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in layer_shapes.items()}
    return shapes


def _layer_shapes(architecture: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer, which are the same for all layers of a model."""
    width, size = config["hidden_size"], config["head_dim"]
    queries, keys = HEADS * size, KV_HEADS * size
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.o_proj.weight": (width, queries),
        "mlp.down_proj.weight": (width, INNER),
    }
    rows = {"q": queries, "k": keys, "v": keys}
    if architecture == "phi3":
        shapes |= {
            "self_attn.qkv_proj.weight": (queries + 2 * keys, width),
            "mlp.gate_up_proj.weight": (2 * INNER, width),
        }
    else:
        shapes |= _separate_projections(rows, width)
    if architecture == "qwen2":
        shapes |= {f"self_attn.{part}_proj.bias": (n,) for part, n in rows.items()}
    if architecture in ("qwen3", "gemma3"):
        shapes |= {"self_attn.q_norm.weight": (size,), "self_attn.k_norm.weight": (size,)}
    norms = _NORMS_OF_GEMMA if architecture == "gemma3" else _NORMS
    return shapes | {f"{name}.weight": (width,) for name in norms}


def _separate_projections(rows: dict[str, int], width: int) -> dict[str, tuple[int, ...]]:
    attention = {f"self_attn.{part}_proj.weight": (n, width) for part, n in rows.items()}
    mlp = {f"mlp.{part}_proj.weight": (INNER, width) for part in ("gate", "up")}
    return {**attention, **mlp}


def write_safetensors(
    path: Path, tensors: dict[str, np.ndarray[Any, Any]], kind: str = "F32"
) -> None:
    """Write a file of that format; `BF16` cuts off the lower half of each float32."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = (
            tensor.astype("<f4").view("<u2")[..., 1::2] if kind == "BF16" else tensor.astype("<f4")
        )
        header[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + raw.nbytes],
        }
        data += raw.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def config_of(architecture: str) -> dict[str, Any]:
    """What `config.json` of an architecture says."""
    return {**_COMMON, **CONFIGS[architecture]}


def write_snapshot(folder: Path, architecture: str, *, kind: str = "BF16") -> None:
    """Write a snapshot whose weights are the same each time, in bfloat16 or float32."""
    folder.mkdir(parents=True)
    config = config_of(architecture)
    random = np.random.default_rng(7)
    tensors = {}
    for name, shape in _shapes(architecture, config).items():
        is_norm = name.endswith("norm.weight")
        scale = 0.3 if len(shape) == 1 else 2 / np.sqrt(shape[-1])
        # Gemma's norms are stored as what they differ from one.
        middle = 1.0 if is_norm and architecture != "gemma3" else 0.0
        weights = (middle + scale * random.normal(size=shape)).astype(np.float32)
        tensors[name] = (weights.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    write_safetensors(folder / "model.safetensors", tensors, kind)
    files: dict[str, Any] = {
        "config.json": config,
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "chat_template": TEMPLATE,
            "eos_token": SPECIAL[2],
            "bos_token": {"content": SPECIAL[1]},
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _tokenizer() -> dict[str, Any]:
    plain = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **plain} for i, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(TOKENS)},
            "merges": MERGES,
        },
    }
