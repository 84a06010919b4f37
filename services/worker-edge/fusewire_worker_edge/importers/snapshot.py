"""Read a snapshot of a Hugging Face model: `config.json`, `*.safetensors` and the tokenizer.

Tensors have their names in GGUF, so that both formats give the same graph. Configurations:
transformers' `configuration_llama.py`, `_mistral`, `_qwen2`, `_qwen3`, `_phi3`, `_gemma3`; rotary
embeddings: `modeling_rope_utils.py`.
"""

import hashlib
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.repack import Floats, PackedMatrix, Rows, quantize_rows
from fusewire_worker_edge.importers.safetensors import Stored, read_tensors
from fusewire_worker_edge.importers.snapshot_tokenizer import SnapshotTokenizer, read_json
from fusewire_worker_edge.importers.source import (
    LARGE,
    LONGEST,
    ROPE_FACTORS,
    SHORT_FACTORS,
    VOCABULARY,
    DecoderShape,
    ImportOptions,
    RotaryEmbedding,
    Window,
    check_rotary_size,
    is_magnitude,
    parse_size,
)

_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma3_text": "gemma3",
    "gemma3": "gemma3",
}
"""GGUF's name of the architecture, by `model_type`."""
_MODEL_NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA_LAYER_NAMES = _LAYER_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_PREFIX = re.compile(r"^(language_model\.)?(model\.)?(language_model\.)?")
_VISION = re.compile(r"vision_tower|multi_modal_projector")
"""The tensors of a multimodal model that its language model does not need."""


class Snapshot:
    """A snapshot in a folder. By default, weights are quantised to 8 bits in blocks of 128.

    Raises:
        ModelImportError: a file or a tensor is missing, or cannot be converted.
    """

    def __init__(self, folder: Path, options: ImportOptions | None = None) -> None:
        self.folder = folder
        self.name = folder.name
        self._bits = (options and options.bits) or 8
        self.block_size = (options and options.block_size) or LARGE
        self.is_rounded = True
        whole = read_json(folder / "config.json")
        kind = str(whole.get("model_type"))
        if kind not in _ARCHITECTURES:
            raise ModelImportError(
                f"model_type '{kind}' cannot be converted; {', '.join(sorted(_ARCHITECTURES))} can"
            )
        self.architecture = _ARCHITECTURES[kind]
        self._config: dict[str, Any] = {**whole, **whole.get("text_config", {})}
        if self._config.get("quantization_config"):
            raise ModelImportError(
                "its weights are quantised already; take the model's own snapshot, or a GGUF"
            )
        self._tensors = self._find_tensors()
        self._factors: dict[str, Floats] = {}
        self._vocabulary = SnapshotTokenizer(folder).size
        try:
            self.shape = self._shape()
        except (KeyError, TypeError, ValueError, ArithmeticError) as exc:
            raise ModelImportError(
                f"config.json does not describe a model: {type(exc).__name__}: {exc}"
            ) from None

    @property
    def names(self) -> set[str]:
        """See `Weights.names`."""
        return {*self._tensors, *self._factors}

    @property
    def quantisation(self) -> dict[str, int]:
        """See `ModelSource.quantisation`."""
        return dict(sorted(Counter(tensor.kind for tensor in self._tensors.values()).items()))

    def sha256(self) -> str:
        """Return the hash of the hashes of configuration and weights, ordered by name."""
        files = sorted({"config.json", *(tensor.file.name for tensor in self._tensors.values())})
        whole = hashlib.sha256()
        for name in files:
            with (self.folder / name).open("rb") as file:
                whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """See `Weights.floats`."""
        if name in self._factors:
            return self._factors[name]
        tensor = self._tensor(name)
        if isinstance(rows, slice):
            # Embedding and head may end with rows of padding tokens.
            row_count = self.shape.vocab_size if name in VOCABULARY else tensor.shape[0]
            start, stop, _ = rows.indices(row_count)
            floats = tensor.read(slice(start, stop))
        else:
            floats = np.concatenate([tensor.read(slice(row, row + 1)) for row in rows])
        if self.architecture == "gemma3" and name.endswith("norm.weight"):
            # Gemma stores the weights of its norms minus one.
            return floats + 1
        return floats

    def columns(self, name: str) -> int | None:
        """See `ModelSource.columns`."""
        if name in self._factors:
            return None
        shape = self._tensor(name).shape
        return shape[1] if len(shape) == 2 else None

    def matrix(self, name: str, columns: int) -> PackedMatrix | Floats:
        """See `ModelSource.matrix`."""
        tensor = self._tensor(name)
        if len(tensor.shape) != 2 or tensor.shape[1] != columns:
            raise ModelImportError(
                f"tensor '{name}' is {list(tensor.shape)} where {columns} columns were expected"
            )
        if name not in VOCABULARY:
            return quantize_rows(tensor.shape[0], tensor.read, self._bits, self.block_size)
        if tensor.shape[0] < self.shape.vocab_size:
            raise ModelImportError(
                f"tensor '{name}' has {tensor.shape[0]} rows for {self.shape.vocab_size} tokens"
            )
        # Embedding and head stay at 8 bits: they suffer most from fewer.
        return quantize_rows(self.shape.vocab_size, tensor.read, 8, self.block_size)

    def _tensor(self, name: str) -> Stored:
        if name not in self._tensors:
            raise ModelImportError(f"tensor '{name}' is missing")
        return self._tensors[name]

    def _find_tensors(self) -> dict[str, Stored]:
        """The tensors of the language model, by their names in GGUF."""
        tensors: dict[str, Stored] = {}
        for file in sorted(self._weight_files()):
            for name, tensor in read_tensors(self.folder / file).items():
                if not _VISION.search(name):
                    tensors[self._gguf_name(name)] = tensor
        if self._config.get("tie_word_embeddings", self.architecture == "gemma3"):
            tensors.pop("output.weight", None)
        return tensors

    def _weight_files(self) -> set[str]:
        """The names of the files with weights: one file, or those in the index."""
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            return {"model.safetensors"}
        names = set(read_json(index).get("weight_map", {}).values())
        for name in names:
            if not isinstance(name, str) or name != Path(name).name:
                raise ModelImportError(
                    f"{index.name} names {name!r}, which is not a file of the folder"
                )
        return names

    def _gguf_name(self, name: str) -> str:
        """GGUF's name of a tensor. An unknown one keeps its name, and the graph will refuse it."""
        short_name = _PREFIX.sub("", name)
        if short_name in _MODEL_NAMES:
            return _MODEL_NAMES[short_name]
        layer_names = _GEMMA_LAYER_NAMES if self.architecture == "gemma3" else _LAYER_NAMES
        match = _LAYER.fullmatch(short_name)
        if match is None or match[2] not in layer_names:
            return name
        return f"blk.{match[1]}.{layer_names[match[2]]}.{match[3]}"

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._config.get(key)
        value = default if value is None else value
        if not is_magnitude(value):
            raise ModelImportError(
                f"'{key}' of config.json is {value!r}, which is no number that could be meant"
            )
        return float(value)

    def _size(self, key: str, default: float | None = None) -> int:
        return parse_size(key, self._number(key, default))

    def _shape(self) -> DecoderShape:
        hidden_size, heads = self._size("hidden_size"), self._size("num_attention_heads")
        head_size = self._size("head_dim", hidden_size // heads)
        is_gemma = self.architecture == "gemma3"
        activation = self._config.get("hidden_activation") or self._config.get("hidden_act", "silu")
        if activation != ("gelu_pytorch_tanh" if is_gemma else "silu"):
            raise ModelImportError(f"activation '{activation}' cannot be converted")
        length = min(self._size("max_position_embeddings", LONGEST), LONGEST)
        rotation = self._rotation(self._rope("full_attention"), head_size)
        length = min(length, self._faithful_length(rotation))
        return DecoderShape(
            layers=self._size("num_hidden_layers"),
            hidden=hidden_size,
            heads=heads,
            kv_heads=self._size("num_key_value_heads", heads),
            head_size=head_size,
            vocab_size=self._vocabulary,
            context_length=length,
            rms_epsilon=self._number("rms_norm_eps", 1e-6),
            rotation=rotation,
            window=self._window(head_size) if is_gemma else None,
            attention_scale=self._query_size(head_size) ** -0.5,
            embedding_scale=math.sqrt(hidden_size) if is_gemma else 1.0,
            activation="gelu" if is_gemma else "silu",
        )

    def _query_size(self, head_size: int) -> float:
        """The size by whose root the attention scores are divided; Gemma names it."""
        if self.architecture != "gemma3":
            return head_size
        return self._number("query_pre_attn_scalar", head_size)

    def _faithful_length(self, rotation: RotaryEmbedding) -> int:
        """The positions up to which the graph computes what the model does."""
        length = LONGEST
        if rotation.factors == SHORT_FACTORS:
            length = min(length, self._original_length(self._rope("full_attention")))
        has_window = self._config.get("sliding_window") and self._config.get(
            "use_sliding_window", True
        )
        if has_window and self.architecture != "gemma3":
            # The graph has no window for these; a shorter sequence does not need one.
            length = min(length, self._size("sliding_window"))
        return length

    def _rope(self, layer_type: str) -> dict[str, Any]:
        """The parameters of a layer type's rotary embedding, from either form of configuration."""
        rope = self._config.get("rope_parameters")
        if not isinstance(rope, dict):
            rope = {
                **(self._config.get("rope_scaling") or {}),
                "rope_theta": self._config.get("rope_theta", 10_000.0),
            }
            if layer_type == "sliding_attention":
                return {"rope_theta": self._config.get("rope_local_base_freq", 10_000.0)}
        nested = rope.get(layer_type)
        return nested if isinstance(nested, dict) else rope

    def _rotation(self, rope: dict[str, Any], head_size: int) -> RotaryEmbedding:
        share = (
            rope.get("partial_rotary_factor") or self._config.get("partial_rotary_factor") or 1.0
        )
        size = check_rotary_size("partial_rotary_factor", int(head_size * share), head_size)
        theta = float(rope.get("rope_theta") or 10_000.0)
        plain = RotaryEmbedding(size, theta)
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind == "default":
            return plain
        if kind == "linear":
            return RotaryEmbedding(size, theta, position_scale=1 / float(rope["factor"]))
        if kind == "llama3":
            self._factors[ROPE_FACTORS] = _llama3_factors(rope, plain)
            return RotaryEmbedding(size, theta, factors=ROPE_FACTORS)
        if kind == "longrope":
            self._factors[SHORT_FACTORS] = np.asarray(rope["short_factor"], np.float32)
            return RotaryEmbedding(
                size, theta, magnitude=self._magnitude(rope), factors=SHORT_FACTORS
            )
        raise ModelImportError(f"rope scaling '{kind}' cannot be converted")

    def _magnitude(self, rope: dict[str, Any]) -> float:
        """LongRoPE's attention factor (Ding et al., arXiv:2402.13753)."""
        if rope.get("attention_factor"):
            return float(rope["attention_factor"])
        original = self._original_length(rope)
        stretch = self._number("max_position_embeddings") / original
        return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0

    def _original_length(self, rope: dict[str, Any]) -> int:
        return self._size(
            "original_max_position_embeddings", rope.get("original_max_position_embeddings", 4096)
        )

    def _window(self, head_size: int) -> Window:
        kinds = self._config.get("layer_types")
        every = self._size("sliding_window_pattern", 6)
        if isinstance(kinds, list) and "full_attention" in kinds:
            every = kinds.index("full_attention") + 1
        rotation = self._rotation(self._rope("sliding_attention"), head_size)
        return Window(self._size("sliding_window"), every, rotation)


def _llama3_factors(rope: dict[str, Any], rotation: RotaryEmbedding) -> Floats:
    """Llama 3.1's divisors of the frequencies: from 1 for high ones to `factor` for low ones."""
    factor = float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    frequency = rotation.theta ** (
        -np.arange(0, rotation.size, 2, dtype=np.float64) / rotation.size
    )
    turns = original * frequency / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / (smooth + (1 - smooth) / factor), np.float32)
