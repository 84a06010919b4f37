"""Read a snapshot of a Hugging Face model: `config.json`, `*.safetensors`, and the tokenizer as it is.

Names are given as GGUF has them, so that one graph is made from both. Configurations: transformers'
`configuration_llama.py`, `_mistral`, `_qwen2`, `_qwen3`, `_phi3`, `_gemma3`; rotations: `modeling_rope_utils.py`.
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
"""By `model_type`, as GGUF names them."""
_OUTER = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_INNER = {
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
_INNER_OF_GEMMA = _INNER | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_PREFIX = re.compile(r"^(language_model\.)?(model\.)?(language_model\.)?")
_SEEING = re.compile(r"vision_tower|multi_modal_projector")
"""The parts of a model that sees, which its language does without."""


class Snapshot:
    """A snapshot in a folder. Weights are rounded to 8 bits in blocks of 128 where the options do not say otherwise.

    Raises:
        ModelImportError: something is missing, or of a kind that cannot be converted.
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
        """Of the hashes of its configuration and its weights, by their names in order."""
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
            # Rows of no token fill the vocabulary up to a round number.
            start, stop, _ = rows.indices(
                self.shape.vocab_size if name in VOCABULARY else tensor.shape[0]
            )
            found = tensor.read(slice(start, stop))
        else:
            found = np.concatenate([tensor.read(slice(row, row + 1)) for row in rows])
        # Gemma's norms are stored as what they differ from one.
        return (
            found + 1 if self.architecture == "gemma3" and name.endswith("norm.weight") else found
        )

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
        # It suffers most from few bits.
        return quantize_rows(self.shape.vocab_size, tensor.read, 8, self.block_size)

    def _tensor(self, name: str) -> Stored:
        if name not in self._tensors:
            raise ModelImportError(f"tensor '{name}' is missing")
        return self._tensors[name]

    def _find_tensors(self) -> dict[str, Stored]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            named = set(read_json(index).get("weight_map", {}).values())
            if odd := [
                name for name in named if not isinstance(name, str) or name != Path(name).name
            ]:
                raise ModelImportError(
                    f"{index.name} names {odd[0]!r}, which is not a file of the folder"
                )
        else:
            named = {"model.safetensors"}
        found: dict[str, Stored] = {}
        for file in sorted(named):
            for name, tensor in read_tensors(self.folder / file).items():
                if not _SEEING.search(name):
                    found[self._named(name)] = tensor
        if self._config.get("tie_word_embeddings", self.architecture == "gemma3"):
            found.pop("output.weight", None)
        return found

    def _named(self, name: str) -> str:
        """A tensor's name in GGUF; its own where it has none there, so that the graph tells of it."""
        short = _PREFIX.sub("", name)
        if short in _OUTER:
            return _OUTER[short]
        inner = _INNER_OF_GEMMA if self.architecture == "gemma3" else _INNER
        match = _LAYER.fullmatch(short)
        if match is None or match[2] not in inner:
            return name
        return f"blk.{match[1]}.{inner[match[2]]}.{match[3]}"

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._config.get(key)
        value = default if value is None else value
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value < 0
        ):
            raise ModelImportError(
                f"'{key}' of config.json is {value!r}, which is no number that could be meant"
            )
        return float(value)

    def _size(self, key: str, default: float | None = None) -> int:
        return parse_size(key, self._number(key, default))

    def _shape(self) -> DecoderShape:
        hidden, heads = self._size("hidden_size"), self._size("num_attention_heads")
        head_size = self._size("head_dim", hidden // heads)
        is_gemma = self.architecture == "gemma3"
        activation = self._config.get("hidden_activation") or self._config.get("hidden_act", "silu")
        if activation != ("gelu_pytorch_tanh" if is_gemma else "silu"):
            raise ModelImportError(f"activation '{activation}' cannot be converted")
        length = min(self._size("max_position_embeddings", LONGEST), LONGEST)
        rotation = self._rotation(self._rope("full_attention"), head_size)
        if rotation.factors == SHORT_FACTORS:
            length = min(length, self._original_length(self._rope("full_attention")))
        if (
            not is_gemma
            and self._config.get("sliding_window")
            and self._config.get("use_sliding_window", True)
        ):
            # Up to there such a window hides nothing.
            length = min(length, self._size("sliding_window"))
        return DecoderShape(
            layers=self._size("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=self._size("num_key_value_heads", heads),
            head_size=head_size,
            vocab_size=self._vocabulary,
            context_length=length,
            rms_epsilon=self._number("rms_norm_eps", 1e-6),
            rotation=rotation,
            window=self._window(head_size) if is_gemma else None,
            attention_scale=self._number("query_pre_attn_scalar", head_size) ** -0.5
            if is_gemma
            else head_size**-0.5,
            embedding_scale=math.sqrt(hidden) if is_gemma else 1.0,
            activation="gelu" if is_gemma else "silu",
        )

    def _rope(self, layers: str) -> dict[str, Any]:
        """What the configuration says of the rotation, for the layers that it names so; in its older form too."""
        rope = self._config.get("rope_parameters")
        if not isinstance(rope, dict):
            rope = {
                **(self._config.get("rope_scaling") or {}),
                "rope_theta": self._config.get("rope_theta", 10_000.0),
            }
            if layers == "sliding_attention":
                return {"rope_theta": self._config.get("rope_local_base_freq", 10_000.0)}
        nested = rope.get(layers)
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
        """LongRoPE's factor of attention."""
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
    """What each frequency is divided by: nothing where it turns fast, all of the factor where it turns slowly."""
    factor, low, high = (
        float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    original = float(rope["original_max_position_embeddings"])
    frequency = rotation.theta ** (
        -np.arange(0, rotation.size, 2, dtype=np.float64) / rotation.size
    )
    turns = original * frequency / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / (kept + (1 - kept) / factor), np.float32)
