"""Import a model: convert it, prove the conversion, and put the folder in place in one step."""

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
"""Largest KL divergence of a conversion from its source, in nats.

A right one is near 0.01, because activations are quantised to int8; a wrong one is far above 0.1.
"""

Progress = Callable[[str], None]
"""Callback with each stage as it begins: `convert` or `copy`, then `prove`."""
_NO_GOLDEN = GoldenAnswer(message=GOLDEN_MESSAGE, prompt_ids=(), ids=())


@dataclass(frozen=True)
class _ConversionInput:
    """A model to convert, and its special tokens."""

    source: ModelSource
    write_tokenizer: Callable[[Path], None]
    end_tokens: list[int]
    begin_token: int | None
    pad_token: int | None
    tool_calls: ToolCalls | None


def _gguf_input(path: Path, options: ImportOptions | None) -> _ConversionInput:
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


def _snapshot_input(folder: Path, options: ImportOptions | None) -> _ConversionInput:
    source, tokenizer = Snapshot(folder, options), SnapshotTokenizer(folder)
    return _ConversionInput(
        source,
        write_tokenizer=lambda target: tokenizer.write(target, source.shape.context_length),
        end_tokens=tokenizer.end_tokens,
        begin_token=tokenizer.token("bos_token"),
        pad_token=tokenizer.token("pad_token"),
        tool_calls=_tool_calls(folder.resolve().name),
    )


def _conversion_input(path: Path, options: ImportOptions | None) -> _ConversionInput:
    return _snapshot_input(path, options) if path.is_dir() else _gguf_input(path, options)


def _tool_calls(*names: object) -> ToolCalls | None:
    """The dialect of a model by its names, if it differs from what its template teaches."""
    is_coder = any(
        str(name).lower().replace(" ", "-").startswith("qwen2.5-coder") for name in names
    )
    return "fenced" if is_coder else None


def _genai_config(parts: _ConversionInput) -> dict[str, Any]:
    """The configuration for onnxruntime-genai.

    Format: https://onnxruntime.ai/docs/genai/reference/config.html.
    """
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


def _draft_manifest(parts: _ConversionInput, name: str, folder: Path) -> Manifest:
    """The manifest without the golden answer and the fidelity, which need a run of the model."""
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
        files=_hash_files(folder),
    )


def _draft_genai_manifest(source: GenaiFolder, name: str, folder: Path) -> Manifest:
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
        files=_hash_files(folder),
    )


def _hash_files(folder: Path) -> dict[str, FileEntry]:
    return {path.name: hash_file(folder, path.name) for path in sorted(folder.iterdir())}


def _golden_answer(generator: Generator) -> tuple[GoldenAnswer, list[int]]:
    """Generate the golden answer. Return it, and the ids of prompt and answer together."""
    prompt = generator.vocabulary.prompt([Message(role="user", content=GOLDEN_MESSAGE)])
    ids = generator.greedy(prompt, GOLDEN_TOKENS)
    golden = GoldenAnswer(message=GOLDEN_MESSAGE, prompt_ids=tuple(prompt), ids=tuple(ids))
    return golden, [*prompt, *ids]


def _prove(source: ModelSource, folder: Path, manifest: Manifest) -> Manifest:
    """Run the model once: record its golden answer, and compare it with the reference.

    Returns:
        the manifest with golden answer and fidelity.

    Raises:
        ModelImportError: the conversion is not faithful.
    """
    generator = Generator(folder, manifest)
    golden, text = _golden_answer(generator)
    logits = generator.logits(text)
    # The reference needs its memory.
    del generator
    source_divergence = divergence(reference_logits(source, text), logits)
    graph_divergence = source_divergence
    if source_divergence.kl > MAX_KL and source.is_rounded:
        # The loss of quantisation is the user's choice, but the graph must not add to it.
        graph_divergence = divergence(reference_logits(StoredWeights(source), text), logits)
    if graph_divergence.kl > MAX_KL:
        raise ModelImportError(
            f"the converted model computes something else than the file: its KL divergence over"
            f" {graph_divergence.tokens} tokens is {graph_divergence.kl:.3f}, where {MAX_KL} is the"
            " most that rounding explains"
        )
    fidelity = Fidelity(**dataclasses.asdict(source_divergence))
    return manifest.model_copy(update={"golden": golden, "fidelity": fidelity})


def _prove_graph(folder: Path, manifest: Manifest) -> Manifest:
    """Run an adopted graph once: record its golden answer, and compare prefill with decode.

    Without the source's weights, only the graph's use of the KV cache can be checked.

    Raises:
        ModelImportError: decoding token by token gives other logits than prefill.
    """
    generator = Generator(folder, manifest)
    golden, text = _golden_answer(generator)
    prefill_logits = generator.logits(text)
    start = len(text) // 2
    generator.logits(text[:start])
    rows = [
        generator.model.decode([text[position]], [position])[0]
        for position in range(start, len(text))
    ]
    comparison = divergence(prefill_logits[start:], np.stack(rows))
    # Not `>`: the divergence may be NaN.
    if not comparison.kl <= MAX_KL:
        raise ModelImportError(
            "its graph does not compute the same token by token as it does at once: its KL"
            f" divergence over {comparison.tokens} tokens is {comparison.kl:.3f}"
        )
    return manifest.model_copy(update={"golden": golden})


def import_model(
    path: Path,
    target: Path,
    progress: Progress = lambda _: None,
    options: ImportOptions | None = None,
) -> Manifest:
    """Make the model folder `target`. It appears complete or not at all.

    Args:
        path: a GGUF file, a folder with a Hugging Face snapshot in safetensors, or a folder for
            onnxruntime-genai, whose graph is adopted as it is.
        target: the model folder to make.
        progress: called with each stage.
        options: how to store weights; not allowed for a folder for onnxruntime-genai.

    Returns:
        the manifest of the folder.

    Raises:
        ModelImportError: the model cannot be converted, or the conversion is not faithful.
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
        parts = _conversion_input(path, options)
        write_graph(parts.source, folder)
        parts.write_tokenizer(folder)
        (folder / CONFIG).write_text(json.dumps(_genai_config(parts), indent=2), encoding="utf-8")
        progress("prove")
        manifest = _prove(parts.source, folder, _draft_manifest(parts, target.name, folder))
        _write_manifest(folder, manifest)
    return manifest


def _adopt(path: Path, target: Path, progress: Progress) -> Manifest:
    with build_folder(target) as folder:
        progress("copy")
        source = GenaiFolder(path)
        source.copy(folder)
        progress("prove")
        manifest = _prove_graph(folder, _draft_genai_manifest(source, target.name, folder))
        _write_manifest(folder, manifest)
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
