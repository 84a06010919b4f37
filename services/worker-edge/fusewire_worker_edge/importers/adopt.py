"""Take over a folder that onnxruntime-genai's own model builder, or its publishers, made.

Its graph is run as it is. It must want what `graph.py` describes and nothing else, as the builder's graphs for CPUs do:
https://onnxruntime.ai/docs/genai/howto/build-model.html.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from onnx.numpy_helper import to_array

from fusewire_worker_edge.folder import GRAPH
from fusewire_worker_edge.graph_check import graph_problem
from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.snapshot_tokenizer import SnapshotTokenizer, read_json
from fusewire_worker_edge.importers.source import parse_size

CONFIG = "genai_config.json"


@dataclass(frozen=True)
class Sizes:
    """What the folder's configuration says of its model."""

    layers: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int


class GenaiFolder:
    """Such a folder.

    Raises:
        ModelImportError: its graph needs something that the engine does not give, or something is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        try:
            model: dict[str, Any] = read_json(folder / CONFIG)["model"]
            decoder = model["decoder"]
            self.architecture = str(model["type"])
            self._graph_file = _plain(decoder["filename"])
            self.sizes = Sizes(
                layers=parse_size("num_hidden_layers", decoder["num_hidden_layers"]),
                kv_heads=parse_size("num_key_value_heads", decoder["num_key_value_heads"]),
                head_size=parse_size("head_size", decoder["head_size"]),
                vocab_size=parse_size("vocab_size", model["vocab_size"]),
                context_length=parse_size("max_position_embeddings", model["context_length"]),
            )
        except (KeyError, TypeError) as exc:
            raise ModelImportError(f"{CONFIG} does not describe a decoder: {exc}") from None
        self.tokenizer = SnapshotTokenizer(folder)
        self._data = self._read_graph()
        self._model = onnx.ModelProto.FromString(self._data)
        self._data_files = _external(self._model)
        self._check()
        self.sizes = replace(
            self.sizes, context_length=min([self.sizes.context_length, *self._switches()])
        )

    @property
    def quantisation(self) -> dict[str, int]:
        """How many products there are of each number of bits."""
        bits = [_attribute(node, "bits", 4) for node in self._products()]
        return {f"{count_of} bits": count for count_of, count in sorted(Counter(bits).items())}

    @property
    def block_size(self) -> int:
        """The smallest block that weights are stored in; 0 where none is quantised."""
        return min((_attribute(node, "block_size", 0) for node in self._products()), default=0)

    def sha256(self) -> str:
        """Of the hashes of its graph and its data, by their names in order."""
        whole = hashlib.sha256()
        for name in sorted({self._graph_file, *self._data_files}):
            with (self.folder / name).open("rb") as file:
                whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()

    def copy(self, folder: Path) -> None:
        """Put what the engine reads into a model folder."""
        (folder / GRAPH).write_bytes(self._data)
        for name in self._data_files:
            shutil.copyfile(self.folder / name, folder / name)
        shutil.copyfile(self.folder / CONFIG, folder / CONFIG)
        self.tokenizer.write(folder, self.sizes.context_length)

    def _read_graph(self) -> bytes:
        try:
            return (self.folder / self._graph_file).read_bytes()
        except OSError as exc:
            raise ModelImportError(
                f"{self._graph_file} cannot be read: {exc.strerror or 'I/O error'}"
            ) from None

    def _check(self) -> None:
        files = {
            path.name for path in self.folder.iterdir() if path.is_file() and not path.is_symlink()
        }
        if problem := graph_problem(self._data, files):
            raise ModelImportError(f"{self._graph_file} {problem}")
        if any(_attribute(node, "sliding_window_cache", 0) for node in self._model.graph.node):
            raise ModelImportError(
                "its graph keeps a window of the past alone in some layers, which this engine cannot share between"
                " prompts; build it with --extra_options windowed_kv_cache=false"
            )
        # An input with a value among the initialisers may be left out.
        optional = {one.name for one in self._model.graph.initializer}
        found = {
            one.name: _typed(one)
            for one in (*self._model.graph.input, *self._model.graph.output)
            if one.name not in optional
        }
        wanted = self._wanted()
        for name in sorted(wanted.keys() - found.keys()):
            raise ModelImportError(f"its graph has no '{name}'")
        for name in sorted(found.keys() - wanted.keys()):
            raise ModelImportError(f"its graph has '{name}', which this engine does not know")
        for name, (kind, sizes) in wanted.items():
            if not _fits(found[name], kind, sizes):
                raise ModelImportError(
                    f"'{name}' of its graph is {_shown(*found[name])}, where {_shown(kind, sizes)} was expected;"
                    " build it with -p int4 -e cpu"
                )

    def _wanted(self) -> dict[str, tuple[int, list[int | None]]]:
        integer, number = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
        cache = (number, [None, self.sizes.kv_heads, None, self.sizes.head_size])
        wanted: dict[str, tuple[int, list[int | None]]] = {
            "input_ids": (integer, [None, None]),
            "attention_mask": (integer, [None, None]),
            "logits": (number, [None, None, self.sizes.vocab_size]),
        }
        for layer in range(self.sizes.layers):
            for part in ("key", "value"):
                wanted[f"past_key_values.{layer}.{part}"] = wanted[f"present.{layer}.{part}"] = (
                    cache
                )
        return wanted

    def _switches(self) -> Iterator[int]:
        """Lengths beyond which the graph rotates by another table, as LongRoPE does.

        It does so for all sequences of a step, also those that are shorter: so none may become longer.
        """
        made_by = {name: node for node in self._model.graph.node for name in node.output}
        constants = {
            one.name: to_array(one)
            for one in self._model.graph.initializer
            if not one.external_data
        }
        for node in self._model.graph.node:
            if node.op_type == "Constant":
                constants[node.output[0]] = to_array(node.attribute[0].t)
        for node in self._model.graph.node:
            if node.op_type != "If":
                continue
            condition = made_by.get(node.input[0])
            limit = (
                constants.get(condition.input[1])
                if condition and condition.op_type == "Greater"
                else None
            )
            if limit is None or limit.size != 1:
                raise ModelImportError(
                    f"its graph decides by '{node.input[0]}', which this engine does not know"
                )
            yield int(limit.item())

    def _products(self) -> list[onnx.NodeProto]:
        return [node for node in self._model.graph.node if node.op_type == "MatMulNBits"]


def _plain(name: Any) -> str:
    if not isinstance(name, str) or name != Path(name).name:
        raise ModelImportError(f"{CONFIG} names {name!r}, which is not a file of the folder")
    return name


def _external(model: onnx.ModelProto) -> set[str]:
    locations = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return {_plain(name) for name in locations}


def _typed(value: onnx.ValueInfoProto) -> tuple[int, list[int | None]]:
    """Its element type, and its sizes with None where they are not fixed."""
    tensor = value.type.tensor_type
    return tensor.elem_type, [
        one.dim_value if one.HasField("dim_value") else None for one in tensor.shape.dim
    ]


def _fits(found: tuple[int, list[int | None]], kind: int, sizes: list[int | None]) -> bool:
    """Whether a tensor may be the one that is wanted; a size that its graph leaves open is what it is given."""
    return (
        found[0] == kind
        and len(found[1]) == len(sizes)
        and all(one in (None, wanted) for one, wanted in zip(found[1], sizes, strict=True))
    )


def _shown(kind: int, sizes: list[int | None]) -> str:
    return f"{onnx.TensorProto.DataType.Name(kind).lower()}{[size or '…' for size in sizes]}"


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == name), default)
