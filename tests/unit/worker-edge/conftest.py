"""A llama with random weights, two layers and a byte vocabulary: the whole path in seconds, no download."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.folder import verify
from fusewire_worker_edge.importers.convert import import_gguf

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INNER, CONTEXT = 2, 64, 4, 2, 16, 128, 4096
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

MakeGguf = Callable[..., Path]


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = count(256)
    return [chr(b) if b in kept else chr(next(moved)) for b in range(256)]


TOKENS = [*SPECIAL, *_byte_characters(), "Ġt", "Ġth", "Ġthe", "er", "Ċ{"]
MERGES = ["Ġ t", "Ġt h", "Ġth e", "e r", "Ċ {"]


def _shapes(*, tied: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    if not tied:
        shapes["output"] = (len(TOKENS), HIDDEN)
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (HIDDEN,),
            f"blk.{layer}.ffn_norm": (HIDDEN,),
            f"blk.{layer}.attn_q": (HEADS * HEAD_SIZE, HIDDEN),
            f"blk.{layer}.attn_k": (KV_HEADS * HEAD_SIZE, HIDDEN),
            f"blk.{layer}.attn_v": (KV_HEADS * HEAD_SIZE, HIDDEN),
            f"blk.{layer}.attn_output": (HIDDEN, HEADS * HEAD_SIZE),
            f"blk.{layer}.ffn_gate": (INNER, HIDDEN),
            f"blk.{layer}.ffn_up": (INNER, HIDDEN),
            f"blk.{layer}.ffn_down": (HIDDEN, INNER),
        }
    return shapes


def write_gguf(path: Path, types: dict[str, str], *, tied: bool, metadata: dict[str, Any], drop: str, add: str) -> None:
    """Write the model. `types` gives a tensor's type by the end of its name, "" the type of the others."""
    writer = GGUFWriter(path, metadata.get("architecture", "llama"))
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-5)
    if "rope_scaling" in metadata:
        writer.add_string("llama.rope.scaling.type", metadata["rope_scaling"])
    writer.add_tokenizer_model(metadata.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(metadata.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(metadata.get("add_bos", False))
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(4)
    shapes = _shapes(tied=tied)
    if add:
        shapes[add] = (HIDDEN,)
    for name, shape in shapes.items():
        # The layers weigh more than the embedding, or every answer would repeat one letter.
        is_vocabulary = name in ("output", "token_embd")
        weights = random.normal(size=shape).astype(np.float32) / np.sqrt(shape[-1]) * (1 if is_vocabulary else 3)
        if len(shape) == 1:
            weights = 1 + weights
        if is_vocabulary:
            # Greedy answers are then plain letters, and do not end by chance.
            weights[[not (len(t) == 1 and t.isascii() and t.isalnum()) for t in TOKENS]] = 0
        kind = "F32" if len(shape) == 1 else next(t for end, t in types.items() if name.endswith(end))
        if name != drop:
            qtype = GGMLQuantizationType[kind]
            if kind == "Q6_K":
                raw = np.zeros((shape[0], 210), np.uint8)
                writer.add_tensor(f"{name}.weight", raw, raw_dtype=qtype)
            else:
                writer.add_tensor(f"{name}.weight", quantize(weights, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def make_gguf(tmp_path_factory: pytest.TempPathFactory) -> MakeGguf:
    """Writes a tiny model: `types` by the end of a tensor's name, `tied` embeddings, `metadata`, `drop`, `add`."""

    def make(
        types: dict[str, str] | None = None,
        *,
        tied: bool = True,
        metadata: dict[str, Any] | None = None,
        drop: str = "",
        add: str = "",
    ) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
        chosen = {**(types or {"token_embd": "Q8_0"}), **({} if types and "" in types else {"": "Q4_1"})}
        write_gguf(path, chosen, tied=tied, metadata=metadata or {}, drop=drop, add=add)
        return path

    return make


@pytest.fixture(scope="session")
def tiny_gguf(make_gguf: MakeGguf) -> Path:
    """The types of the model that the product pulls: Q4_1, and Q8_0 for the tied embedding."""
    return make_gguf()


@pytest.fixture(scope="session")
def tiny_folder(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as a folder. Never written to: tests that damage one copy it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    import_gguf(tiny_gguf, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_generator(tiny_folder: Path) -> Generator:
    """That model, loaded into this process."""
    return Generator(tiny_folder, verify(tiny_folder), threads=1)
