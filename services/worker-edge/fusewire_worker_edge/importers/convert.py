"""GGUF to a model folder: convert, prove, and put in place in one step."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import onnxruntime

from fusewire.contracts import Message
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.folder import MANIFEST, Fidelity, Golden, Manifest, Source, hash_file, staged
from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.gguf import EXACT, GgufFile, ImportOptions
from fusewire_worker_edge.importers.graph import write_graph
from fusewire_worker_edge.importers.reference import AsStored, divergence, reference_logits
from fusewire_worker_edge.importers.tokenizer import end_tokens, write_tokenizer

GOLDEN_MESSAGE = "What is the capital of France?"
GOLDEN_TOKENS = 16

MAX_KL = 0.05
"""A faithful conversion stays near 0.01, the price of int8 activations; a wrong one is far above 0.1."""

Progress = Callable[[str], None]
"""Told the stage that begins: `download`, `convert`, `prove`."""


def _genai_config(source: GgufFile) -> dict[str, Any]:
    """What onnxruntime-genai reads: https://onnxruntime.ai/docs/genai/reference/config.html."""
    shape, ends = source.shape, end_tokens(source)
    pad = source.metadata.get("tokenizer.ggml.padding_token_id", ends[0])
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": shape.head_size,
        "hidden_size": shape.hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
    }
    return {
        "model": {
            "bos_token_id": source.metadata.get("tokenizer.ggml.bos_token_id", ends[0]),
            "context_length": shape.context_length,
            "decoder": decoder,
            "eos_token_id": ends,
            "pad_token_id": pad,
            "type": source.architecture,
            "vocab_size": shape.vocab_size,
        },
        "search": {"do_sample": False, "max_length": shape.context_length, "past_present_share_buffer": True},
    }


def _tool_calls(source: GgufFile) -> Literal["fenced"] | None:
    names = (source.metadata.get("general.basename"), source.metadata.get("general.name"))
    is_coder = any(str(name).lower().replace(" ", "-").startswith("qwen2.5-coder") for name in names)
    return "fenced" if is_coder else None


def _unproven(source: GgufFile, name: str, folder: Path) -> Manifest:
    """The manifest but for what only running the model can tell."""
    shape = source.shape
    return Manifest(
        name=name,
        source=Source(name=source.path.name, sha256=source.sha256()),
        architecture=source.architecture,
        quantisation=source.quantisation,
        block_size=source.options.block_size or EXACT,
        context_length=shape.context_length,
        vocab_size=shape.vocab_size,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        end_tokens=tuple(end_tokens(source)),
        tool_calls=_tool_calls(source),
        onnxruntime=onnxruntime.__version__,
        golden=Golden(message=GOLDEN_MESSAGE, prompt_ids=(), ids=()),
        fidelity=Fidelity(tokens=0, kl=0, top1=0),
        files={path.name: hash_file(folder, path.name) for path in sorted(folder.iterdir())},
    )


def _prove(source: GgufFile, folder: Path, manifest: Manifest) -> Manifest:
    """Run the model once: record its golden answer, and measure it against the reference."""
    generator = Generator(folder, manifest)
    prompt = generator.vocabulary.prompt([Message(role="user", content=GOLDEN_MESSAGE)])
    ids = generator.greedy(prompt, GOLDEN_TOKENS)
    text = [*prompt, *ids]
    computed = generator.logits(text)
    # Its memory is needed for the reference.
    del generator
    measured = graph = divergence(reference_logits(source, text), computed)
    if measured.kl > MAX_KL and source.is_rounded:
        # What quantising anew costs is the importer's choice; what the graph adds to it would be a fault.
        graph = divergence(reference_logits(AsStored(source), text), computed)
    if graph.kl > MAX_KL:
        raise ModelImportError(
            f"the converted model computes something else than the file: its KL divergence over"
            f" {graph.tokens} tokens is {graph.kl:.3f}, where {MAX_KL} is the most that rounding explains"
        )
    golden = Golden(message=GOLDEN_MESSAGE, prompt_ids=tuple(prompt), ids=tuple(ids))
    return manifest.model_copy(update={"golden": golden, "fidelity": Fidelity(**dataclasses.asdict(measured))})


def import_gguf(
    path: Path, target: Path, progress: Progress = lambda _: None, options: ImportOptions | None = None
) -> Manifest:
    """Convert a GGUF file into the model folder `target`, which appears whole or not at all.

    Raises:
        ModelImportError: the file is of a kind that cannot be converted, or the conversion is not faithful.
        ModelFolderError: `target` exists already.
    """
    with staged(target) as folder:
        progress("convert")
        source = GgufFile(path, options)
        write_graph(source, folder)
        write_tokenizer(source, folder)
        (folder / "genai_config.json").write_text(json.dumps(_genai_config(source), indent=2), encoding="utf-8")
        progress("prove")
        manifest = _prove(source, folder, _unproven(source, target.name, folder))
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return manifest
