"""Adopt a folder for onnxruntime-genai, made by its model builder or published.

Its graph is run as it is, so it must have the inputs and outputs that `graph.py` describes and no
others, as the builder's graphs for CPUs have:
https://onnxruntime.ai/docs/genai/howto/build-model.html.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.numpy_helper import to_array

from fusewire_worker_edge.folder import GRAPH
from fusewire_worker_edge.graph_check import graph_problem
from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.snapshot_tokenizer import SnapshotTokenizer, read_json
from fusewire_worker_edge.importers.source import parse_size

CONFIG = "genai_config.json"

ValueType = tuple[int, list[int | None]]
"""The element type of an input or output, and its sizes with None for those left open."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model, from the folder's configuration."""

    layers: int
    kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int


class GenaiFolder:
    """A folder for onnxruntime-genai.

    Raises:
        ModelImportError: the engine cannot run its graph, or a file is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.name
        try:
            model: dict[str, Any] = read_json(folder / CONFIG)["model"]
            decoder = model["decoder"]
            self.architecture = str(model["type"])
            self._graph_file = _check_file_name(decoder["filename"])
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
        self._data_files = _external_files(self._model)
        self._check()
        context_length = min([self.sizes.context_length, *self._table_limits()])
        self.sizes = replace(self.sizes, context_length=context_length)

    @property
    def quantisation(self) -> dict[str, int]:
        """How many quantised matrices there are of each number of bits."""
        counts = Counter(_attribute(node, "bits", 4) for node in self._products())
        return {f"{bits} bits": count for bits, count in sorted(counts.items())}

    @property
    def block_size(self) -> int:
        """The smallest block that weights are stored in; 0 if none is quantised."""
        return min((_attribute(node, "block_size", 0) for node in self._products()), default=0)

    def sha256(self) -> str:
        """Return the hash of the hashes of graph and external data, in the order of their names."""
        whole = hashlib.sha256()
        for name in sorted({self._graph_file, *self._data_files}):
            with (self.folder / name).open("rb") as file:
                whole.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()

    def copy(self, folder: Path) -> None:
        """Copy the files that the engine reads into a model folder."""
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
        """Raise ModelImportError if the engine cannot run the graph."""
        files = {
            path.name for path in self.folder.iterdir() if path.is_file() and not path.is_symlink()
        }
        if problem := graph_problem(self._data, files):
            raise ModelImportError(f"{self._graph_file} {problem}")
        if any(_attribute(node, "sliding_window_cache", 0) for node in self._model.graph.node):
            raise ModelImportError(
                "its graph keeps a window of the past alone in some layers, which this engine"
                " cannot share between prompts; build it with"
                " --extra_options windowed_kv_cache=false"
            )
        self._check_values()

    def _check_values(self) -> None:
        """Check that the inputs and outputs of the graph are those that the engine binds."""
        actual, expected = self._graph_values(), self._expected_values()
        for name in sorted(expected.keys() - actual.keys()):
            raise ModelImportError(f"its graph has no '{name}'")
        for name in sorted(actual.keys() - expected.keys()):
            raise ModelImportError(f"its graph has '{name}', which this engine does not know")
        for name, expected_type in expected.items():
            if not _fits(actual[name], expected_type):
                raise ModelImportError(
                    f"'{name}' of its graph is {_describe(actual[name])}, where"
                    f" {_describe(expected_type)} was expected; build it with -p int4 -e cpu"
                )

    def _graph_values(self) -> dict[str, ValueType]:
        """The inputs and outputs of the graph by name, without optional inputs."""
        # An input with a value among the initialisers is optional.
        optional = {tensor.name for tensor in self._model.graph.initializer}
        values = (*self._model.graph.input, *self._model.graph.output)
        return {value.name: _value_type(value) for value in values if value.name not in optional}

    def _expected_values(self) -> dict[str, ValueType]:
        """The inputs and outputs that the engine binds."""
        integer, number = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
        cache = (number, [None, self.sizes.kv_heads, None, self.sizes.head_size])
        values: dict[str, ValueType] = {
            "input_ids": (integer, [None, None]),
            "attention_mask": (integer, [None, None]),
            "logits": (number, [None, None, self.sizes.vocab_size]),
        }
        for layer in range(self.sizes.layers):
            for part in ("key", "value"):
                values[f"past_key_values.{layer}.{part}"] = cache
                values[f"present.{layer}.{part}"] = cache
        return values

    def _table_limits(self) -> Iterator[int]:
        """Yield lengths beyond which the graph uses another rotary table, as LongRoPE does.

        It then does so for all sequences of a batch, also for shorter ones. So none may be longer.
        """
        producers: dict[str, onnx.NodeProto] = {}
        for node in self._model.graph.node:
            producers |= dict.fromkeys(node.output, node)
        constants = self._constants()
        for node in self._model.graph.node:
            if node.op_type != "If":
                continue
            condition = producers.get(node.input[0])
            limit = None
            if condition and condition.op_type == "Greater":
                limit = constants.get(condition.input[1])
            if limit is None or limit.size != 1:
                raise ModelImportError(
                    f"its graph decides by '{node.input[0]}', which this engine does not know"
                )
            yield int(limit.item())

    def _constants(self) -> dict[str, np.ndarray[Any, Any]]:
        """The constants inside the graph's own file, by name."""
        constants = {
            tensor.name: to_array(tensor)
            for tensor in self._model.graph.initializer
            if not tensor.external_data
        }
        for node in self._model.graph.node:
            if node.op_type == "Constant":
                constants[node.output[0]] = to_array(node.attribute[0].t)
        return constants

    def _products(self) -> list[onnx.NodeProto]:
        return [node for node in self._model.graph.node if node.op_type == "MatMulNBits"]


def _check_file_name(name: Any) -> str:
    if not isinstance(name, str) or name != Path(name).name:
        raise ModelImportError(f"{CONFIG} names {name!r}, which is not a file of the folder")
    return name


def _external_files(model: onnx.ModelProto) -> set[str]:
    """The names of the files with the graph's external data."""
    names = set()
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                names.add(_check_file_name(entry.value))
    return names


def _value_type(value: onnx.ValueInfoProto) -> ValueType:
    tensor = value.type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return tensor.elem_type, sizes


def _fits(actual: ValueType, expected: ValueType) -> bool:
    """Whether a value has the expected type. A size that the graph leaves open fits any."""
    actual_kind, actual_sizes = actual
    expected_kind, expected_sizes = expected
    if actual_kind != expected_kind or len(actual_sizes) != len(expected_sizes):
        return False
    pairs = zip(actual_sizes, expected_sizes, strict=True)
    return all(size in (None, expected_size) for size, expected_size in pairs)


def _describe(value_type: ValueType) -> str:
    kind, sizes = value_type
    return f"{onnx.TensorProto.DataType.Name(kind).lower()}{[size or '…' for size in sizes]}"


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    for attribute in node.attribute:
        if attribute.name == name:
            return int(attribute.i)
    return default
