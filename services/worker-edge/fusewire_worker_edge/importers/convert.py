"""Somebody's model to a model folder: convert, prove, and put in place in one step."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from fusewire.contracts import Message
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.folder import (
    GRAPH,
    MANIFEST,
    Fidelity,
    FileEntry,
    GoldenAnswer,
    Manifest,
    ModelOrigin,
    ToolCalls,
    build_folder,
    hash_file,
)
from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.adopt import CONFIG, GenaiFolder
from fusewire_worker_edge.importers.gguf import GgufFile
from fusewire_worker_edge.importers.graph import write_graph
from fusewire_worker_edge.importers.reference import StoredWeights, divergence, reference_logits
from fusewire_worker_edge.importers.snapshot import Snapshot
from fusewire_worker_edge.importers.snapshot_tokenizer import SnapshotTokenizer
from fusewire_worker_edge.importers.source import ImportOptions, ModelSource
from fusewire_worker_edge.importers.tokenizer import end_tokens, write_tokenizer

GOLDEN_MESSAGE = "What is the capital of France?"
GOLDEN_TOKENS = 16

MAX_KL = 0.05
"""A faithful conversion stays near 0.01, the price of int8 activations; a wrong one is far above 0.1."""

Progress = Callable[[str], None]
"""Told the stage that begins: `convert` or `copy`, `prove`."""
_NO_GOLDEN = GoldenAnswer(message=GOLDEN_MESSAGE, prompt_ids=(), ids=())


@dataclass(frozen=True)
class _ConversionInput:
    """A model to be converted, and its tokens."""

    source: ModelSource
    write_tokenizer: Callable[[Path], None]
    end_tokens: list[int]
    begin_token: int | None
    pad_token: int | None
    tool_calls: ToolCalls | None


def _of_gguf(path: Path, options: ImportOptions | None) -> _ConversionInput:
    source = GgufFile(path, options)
    return _ConversionInput(
        source,
        write_tokenizer=lambda folder: write_tokenizer(source, folder),
        end_tokens=end_tokens(source),
        begin_token=source.metadata.get("tokenizer.ggml.bos_token_id"),
        pad_token=source.metadata.get("tokenizer.ggml.padding_token_id"),
        tool_calls=_tool_calls(
            source.metadata.get("general.basename"), source.metadata.get("general.name")
        ),
    )


def _of_snapshot(folder: Path, options: ImportOptions | None) -> _ConversionInput:
    source, tokenizer = Snapshot(folder, options), SnapshotTokenizer(folder)
    return _ConversionInput(
        source,
        write_tokenizer=lambda target: tokenizer.write(target, source.shape.context_length),
        end_tokens=tokenizer.end_tokens,
        begin_token=tokenizer.token("bos_token"),
        pad_token=tokenizer.token("pad_token"),
        tool_calls=_tool_calls(folder.resolve().name),
    )


def _tool_calls(*names: object) -> ToolCalls | None:
    is_coder = any(
        str(name).lower().replace(" ", "-").startswith("qwen2.5-coder") for name in names
    )
    return "fenced" if is_coder else None


def _genai_config(parts: _ConversionInput) -> dict[str, Any]:
    """What onnxruntime-genai reads: https://onnxruntime.ai/docs/genai/reference/config.html."""
    shape, ends = parts.source.shape, parts.end_tokens
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": GRAPH,
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
            "bos_token_id": ends[0] if parts.begin_token is None else parts.begin_token,
            "context_length": shape.context_length,
            "decoder": decoder,
            "eos_token_id": ends,
            "pad_token_id": ends[0] if parts.pad_token is None else parts.pad_token,
            "type": parts.source.architecture,
            "vocab_size": shape.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": shape.context_length,
            "past_present_share_buffer": True,
        },
    }


def _unproven(parts: _ConversionInput, name: str, folder: Path) -> Manifest:
    """The manifest but for what only running the model can tell."""
    source, shape = parts.source, parts.source.shape
    return Manifest(
        name=name,
        source=ModelOrigin(name=source.name, sha256=source.sha256()),
        architecture=source.architecture,
        quantisation=source.quantisation,
        block_size=source.block_size,
        context_length=shape.context_length,
        vocab_size=shape.vocab_size,
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        end_tokens=tuple(parts.end_tokens),
        tool_calls=parts.tool_calls,
        onnxruntime=onnxruntime.__version__,
        golden=_NO_GOLDEN,
        files=_hashed(folder),
    )


def _unproven_of_genai(source: GenaiFolder, name: str, folder: Path) -> Manifest:
    return Manifest(
        name=name,
        source=ModelOrigin(name=source.name, sha256=source.sha256()),
        architecture=source.architecture,
        quantisation=source.quantisation,
        block_size=source.block_size,
        **dataclasses.asdict(source.sizes),
        end_tokens=tuple(source.tokenizer.end_tokens),
        tool_calls=_tool_calls(source.folder.resolve().name),
        onnxruntime=onnxruntime.__version__,
        golden=_NO_GOLDEN,
        files=_hashed(folder),
    )


def _hashed(folder: Path) -> dict[str, FileEntry]:
    return {path.name: hash_file(folder, path.name) for path in sorted(folder.iterdir())}


def _answered(generator: Generator) -> tuple[GoldenAnswer, list[int]]:
    """The model's golden answer, and the whole text of its prompt and that."""
    prompt = generator.vocabulary.prompt([Message(role="user", content=GOLDEN_MESSAGE)])
    ids = generator.greedy(prompt, GOLDEN_TOKENS)
    return GoldenAnswer(message=GOLDEN_MESSAGE, prompt_ids=tuple(prompt), ids=tuple(ids)), [
        *prompt,
        *ids,
    ]


def _prove(source: ModelSource, folder: Path, manifest: Manifest) -> Manifest:
    """Run the model once: record its golden answer, and measure it against the reference."""
    generator = Generator(folder, manifest)
    golden, text = _answered(generator)
    computed = generator.logits(text)
    # Its memory is needed for the reference.
    del generator
    measured = graph = divergence(reference_logits(source, text), computed)
    if measured.kl > MAX_KL and source.is_rounded:
        # What quantising anew costs is the importer's choice; what the graph adds to it would be a fault.
        graph = divergence(reference_logits(StoredWeights(source), text), computed)
    if graph.kl > MAX_KL:
        raise ModelImportError(
            f"the converted model computes something else than the file: its KL divergence over"
            f" {graph.tokens} tokens is {graph.kl:.3f}, where {MAX_KL} is the most that rounding explains"
        )
    return manifest.model_copy(
        update={"golden": golden, "fidelity": Fidelity(**dataclasses.asdict(measured))}
    )


def _try(folder: Path, manifest: Manifest) -> Manifest:
    """Run a graph of somebody else's once: what it computes token by token must be what it computes at once."""
    generator = Generator(folder, manifest)
    golden, text = _answered(generator)
    at_once = generator.logits(text)
    begun = len(text) // 2
    generator.logits(text[:begun])
    rows = [generator.model.decode([text[at]], [at])[0] for at in range(begun, len(text))]
    found = divergence(at_once[begun:], np.stack(rows))
    if not found.kl <= MAX_KL:
        raise ModelImportError(
            "its graph does not compute the same token by token as it does at once: its KL divergence over"
            f" {found.tokens} tokens is {found.kl:.3f}"
        )
    return manifest.model_copy(update={"golden": golden})


def import_model(
    path: Path,
    target: Path,
    progress: Progress = lambda _: None,
    options: ImportOptions | None = None,
) -> Manifest:
    """Make the model folder `target`, which appears whole or not at all.

    Args:
        path: a GGUF file; a folder that holds a Hugging Face snapshot with safetensors; or one of onnxruntime-genai's,
            which is taken as it is.
        target: where to.
        progress: told each stage.
        options: how to store weights; not for a folder of onnxruntime-genai's.

    Raises:
        ModelImportError: it is of a kind that cannot be converted, or the conversion is not faithful.
        ModelFolderError: `target` exists already.
    """
    if (path / CONFIG).is_file():
        if options and options != ImportOptions():
            raise ModelImportError(
                "a folder of onnxruntime-genai's is taken as it is: leave block size and bits out"
            )
        return _adopt(path, target, progress)
    with build_folder(target) as folder:
        progress("convert")
        parts = _of_snapshot(path, options) if path.is_dir() else _of_gguf(path, options)
        write_graph(parts.source, folder)
        parts.write_tokenizer(folder)
        (folder / CONFIG).write_text(json.dumps(_genai_config(parts), indent=2), encoding="utf-8")
        progress("prove")
        manifest = _prove(parts.source, folder, _unproven(parts, target.name, folder))
        _write_manifest(folder, manifest)
    return manifest


def _adopt(path: Path, target: Path, progress: Progress) -> Manifest:
    with build_folder(target) as folder:
        progress("copy")
        source = GenaiFolder(path)
        source.copy(folder)
        progress("prove")
        manifest = _try(folder, _unproven_of_genai(source, target.name, folder))
        _write_manifest(folder, manifest)
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
