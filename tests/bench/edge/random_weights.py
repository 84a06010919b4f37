"""Model folders of a large model's shape with random weights, as its own cannot be had here.

They compute at a real model's speed and answer nonsense. Their manifest says so.
"""

import hashlib
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from fusewire.contracts import Message
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import (
    MANIFEST,
    GoldenAnswer,
    Manifest,
    ModelOrigin,
    build_folder,
    hash_file,
)
from fusewire_worker_edge.importers.graph import write_graph
from fusewire_worker_edge.importers.repack import Floats, PackedMatrix, Rows
from fusewire_worker_edge.importers.source import LARGE, DecoderShape, RotaryEmbedding

SEED = 7
_VOCABULARY = 32_768
_GOLDEN_TOKENS = 8
_DEVIATION = {4: 4.61, 8: 73.9}
"""Standard deviation of uniform codes, by their bits."""


@dataclass(frozen=True)
class RandomShape:
    """The sizes of a model of Mistral's architecture."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    inner: int
    head_size: int = 128


SHAPES = {
    "random-7b": RandomShape(layers=32, hidden=4096, heads=32, kv_heads=8, inner=14_336),
    "random-3b": RandomShape(layers=28, hidden=3072, heads=24, kv_heads=8, inner=8192),
    "random-tiny": RandomShape(layers=2, hidden=256, heads=2, kv_heads=1, inner=512),
}
"""Mistral 7B, Llama 3.2 3B, and one to try the bench itself."""


class RandomSource:
    """Random weights; implements `fusewire_worker_edge.importers.source.ModelSource`.

    Stored as an import with `--block-size 128` stores a GGUF file of type Q4_K_M: 4 bits with
    offsets, the head 8 bits.
    """

    architecture = "llama"
    block_size = LARGE
    is_rounded = True

    def __init__(self, name: str) -> None:
        self.name = f"{name}, random weights of seed {SEED}"
        self._sizes = sizes = SHAPES[name]
        self.shape = DecoderShape(
            layers=sizes.layers,
            hidden=sizes.hidden,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_size=sizes.head_size,
            vocab_size=_VOCABULARY,
            context_length=LARGE * 256,
            rms_epsilon=1e-5,
            rotation=RotaryEmbedding(sizes.head_size, 1e6, is_interleaved=True),
            attention_scale=sizes.head_size**-0.5,
        )
        self.matrix_rows = {"token_embd.weight": _VOCABULARY, "output.weight": _VOCABULARY}
        for layer in range(sizes.layers):
            for part, rows in (
                ("attn_q", sizes.heads * sizes.head_size),
                ("attn_k", sizes.kv_heads * sizes.head_size),
                ("attn_v", sizes.kv_heads * sizes.head_size),
                ("attn_output", sizes.hidden),
                ("ffn_gate", sizes.inner),
                ("ffn_up", sizes.inner),
                ("ffn_down", sizes.hidden),
            ):
                self.matrix_rows[f"blk.{layer}.{part}.weight"] = rows

    @property
    def names(self) -> set[str]:
        """See `ModelSource`."""
        norms = {"output_norm.weight"}
        for layer in range(self.shape.layers):
            norms |= {f"blk.{layer}.attn_norm.weight", f"blk.{layer}.ffn_norm.weight"}
        return self.matrix_rows.keys() | norms

    @property
    def quantisation(self) -> dict[str, int]:
        """See `ModelSource`."""
        return {"random, 4 bits": len(self.matrix_rows) - 1, "random, 8 bits": 1}

    def sha256(self) -> str:
        """See `ModelSource`."""
        return hashlib.sha256(f"{self.name} {self._sizes}".encode()).hexdigest()

    def columns(self, name: str) -> int | None:
        """See `ModelSource`."""
        return self.shape.hidden if name in self.matrix_rows else None

    def floats(self, name: str, rows: Rows = slice(None)) -> Floats:
        """The gain of a norm; see `ModelSource`."""
        gain = np.ones(self.shape.hidden, np.float32)
        return gain[rows] if name in self.names - self.matrix_rows.keys() else gain[:0]

    def matrix(self, name: str, columns: int) -> PackedMatrix:
        """See `ModelSource`. Keeps the variance of what the matrix is multiplied with."""
        bits = 8 if name == "output.weight" else 4
        random = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        blocks = (self.matrix_rows[name], columns // LARGE)
        codes = random.integers(0, 256, (*blocks, LARGE * bits // 8), np.uint8)
        scale = columns**-0.5 / _DEVIATION[bits]
        scales = (scale * random.uniform(0.5, 1.5, blocks)).astype(np.float32)
        # Codes from 0 to 15 have their mean at 7.5, and the product's zero point is 8.
        return PackedMatrix(bits, codes, scales, scales / 2 if bits == 4 else None)


def _copy_vocabulary(source: Path, target: Path) -> None:
    """Copy a byte-level tokenizer's first `_VOCABULARY` tokens, and the merges that make them."""
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    vocabulary = {token: i for token, i in model["vocab"].items() if i < _VOCABULARY}
    model["vocab"] = vocabulary
    model["merges"] = [
        merge for merge in model["merges"] if merge.replace(" ", "", 1) in vocabulary
    ]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    shutil.copy(source / "tokenizer_config.json", target)


def make_random_folder(name: str, target: Path, tokenizer: Path) -> None:
    """Make the model folder `target` with random weights, matrix by matrix.

    Args:
        name: a key of `SHAPES`.
        target: the folder to make.
        tokenizer: a model folder whose byte-level tokenizer to take the beginning of.
    """
    source = RandomSource(name)
    with build_folder(target) as folder:
        write_graph(source, folder)
        _copy_vocabulary(tokenizer, folder)
        draft = Manifest(
            name=name,
            source=ModelOrigin(name=source.name, sha256=source.sha256()),
            architecture=source.architecture,
            quantisation=source.quantisation,
            block_size=source.block_size,
            context_length=source.shape.context_length,
            vocab_size=_VOCABULARY,
            layers=source.shape.layers,
            kv_heads=source.shape.kv_heads,
            head_size=source.shape.head_size,
            end_tokens=(2,),
            onnxruntime=onnxruntime.__version__,
            golden=GoldenAnswer(message="Hello", prompt_ids=(), ids=()),
            files={path.name: hash_file(folder, path.name) for path in sorted(folder.iterdir())},
        )
        generator = Generator(folder, draft, EngineOptions(slots=1))
        prompt = generator.vocabulary.prompt([Message(role="user", content=draft.golden.message)])
        ids = generator.greedy(prompt, _GOLDEN_TOKENS)
        golden = GoldenAnswer(message="Hello", prompt_ids=tuple(prompt), ids=tuple(ids))
        manifest = draft.model_copy(update={"golden": golden})
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
