"""The ONNX graph of a decoder, with the names and shapes that onnxruntime-genai expects.

Operators of the domain com.microsoft: onnxruntime's docs/ContribOperators.md. Inputs `input_ids`
and `attention_mask` are int64 [B, S] and [B, T]; `past_key_values.<i>.key|value` and
`present.<i>.key|value` are float32 [B, kv_heads, P, head_size]; `logits` is float32
[B, S, vocabulary], or fewer rows, see `FIRST_ROW`.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from onnx import TensorProto, helper

from fusewire_worker_edge.engine.model import FIRST_ROW
from fusewire_worker_edge.importers import ModelImportError
from fusewire_worker_edge.importers.repack import Floats, PackedMatrix, stack
from fusewire_worker_edge.importers.source import (
    LONG_FACTORS,
    DecoderShape,
    ModelSource,
    RotaryEmbedding,
)

MICROSOFT = "com.microsoft"
ACCURACY_LEVEL = 4
"""Quantise activations to int8 in matrix products, for onnxruntime's fast kernels on CPUs."""

_END = 2**63 - 1
_OPSET, _IR = 21, 10
_ALIGNMENT = 4096
"""Alignment of weights in bytes, so that onnxruntime can map them into memory."""


class WeightFile:
    """The external data of a model. Written tensor by tensor: all would not fit into memory."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("xb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, array: np.ndarray[Any, Any]) -> TensorProto:
        """Write an array. Return the tensor that refers to it."""
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(array).tobytes())
        tensor = TensorProto(
            name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class _Graph:
    """The nodes and initialisers of a graph. Methods return the name of the value they add."""

    def __init__(self, weights: WeightFile) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[TensorProto] = []
        self._weights = weights

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        more: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add a node of the standard domain; its outputs are `name` and those of `more`."""
        self.nodes.append(helper.make_node(op, inputs, [name, *more], name, **attributes))
        return name

    def contrib(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        more: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add a node of the domain com.microsoft, like `node`."""
        return self.node(op, inputs, name, more=more, domain=MICROSOFT, **attributes)

    def weight(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Add a weight, stored in the external data."""
        self.initialisers.append(self._weights.add(name, array))
        return name

    def constant(self, name: str, values: Sequence[int]) -> str:
        """Add a small int64 vector, stored in the graph, unless there is one with this name."""
        if any(tensor.name == name for tensor in self.initialisers):
            return name
        self.initialisers.append(
            helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values))
        )
        return name

    def scalar(self, name: str, value: float) -> str:
        """Add a float, stored in the graph."""
        self.initialisers.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        return name

    def packed_weights(self, name: str, weights: PackedMatrix) -> dict[str, str]:
        """Add the codes, scales and offsets of a quantised matrix. Return their names."""
        names = {
            "codes": self.weight(f"{name}.codes", weights.codes),
            "scales": self.weight(f"{name}.scales", weights.scales),
        }
        if weights.offsets is not None:
            names["offsets"] = self.weight(f"{name}.offsets", weights.offsets)
        return names

    def quantised_product(
        self, x: str, name: str, weights: PackedMatrix, names: dict[str, str]
    ) -> str:
        """Multiply `x` with a transposed matrix, whose arrays have these names.

        The offset of a block is multiplied with the sum of `x` over the block.
        """
        product = self.contrib(
            "MatMulNBits", [x, names["codes"], names["scales"]], f"{name}.product",
            K=weights.columns, N=weights.rows, bits=weights.bits, block_size=weights.block_size,
            accuracy_level=ACCURACY_LEVEL,
        )  # fmt: skip
        if "offsets" not in names:
            return product
        blocks = self.in_blocks(x, f"{name}.blocks", weights)
        sums = self.node("ReduceSum", [blocks, "last_axis"], f"{name}.sums", keepdims=0)
        shift = self.contrib("FusedMatMul", [sums, names["offsets"]], f"{name}.shift", transB=1)
        return self.node("Add", [product, shift], f"{name}.out")

    def in_blocks(self, x: str, name: str, weights: PackedMatrix) -> str:
        """Reshape [B, S, K] to the blocks of a matrix, [B, S, K/b, b]."""
        shape = self.constant(f"in_blocks_of_{weights.block_size}", [0, 0, -1, weights.block_size])
        return self.node("Reshape", [x, shape], name)

    def linear(self, x: str, name: str, matrices: Sequence[PackedMatrix | Floats]) -> str:
        """Multiply `x` with each transposed matrix, and concatenate the results."""
        packed_matrices = [matrix for matrix in matrices if isinstance(matrix, PackedMatrix)]
        encodings = {matrix.encoding for matrix in packed_matrices}
        if len(packed_matrices) == len(matrices) and len(encodings) == 1:
            # One product of the stacked matrices is faster than several.
            stacked_matrix = stack(packed_matrices)
            names = self.packed_weights(name, stacked_matrix)
            return self.quantised_product(x, name, stacked_matrix, names)
        outputs = []
        for i, matrix in enumerate(matrices):
            part = f"{name}.{i}"
            if isinstance(matrix, PackedMatrix):
                names = self.packed_weights(part, matrix)
                outputs.append(self.quantised_product(x, part, matrix, names))
            else:
                weight = self.weight(f"{part}.weight", matrix)
                outputs.append(self.contrib("FusedMatMul", [x, weight], part, transB=1))
        return outputs[0] if len(outputs) == 1 else self.node("Concat", outputs, name, axis=-1)


class _Decoder:
    """Adds the parts of a decoder to a graph."""

    def __init__(self, graph: _Graph, source: ModelSource) -> None:
        self.graph = graph
        self.source = source
        self.shape = source.shape
        self._used_names: set[str] = set()

    def floats(self, name: str) -> Floats:
        self._used_names.add(name)
        return self.source.floats(name)

    def matrix(self, name: str, columns: int) -> PackedMatrix | Floats:
        self._used_names.add(name)
        return self.source.matrix(name, columns)

    def build(self) -> None:
        g = self.graph
        g.constant("last_axis", [-1])
        self._lengths()
        self._rotary_cache("rotary", self.shape.rotation)
        if self.shape.window:
            self._rotary_cache("rotary.window", self.shape.window.rotation)
        is_tied = "output.weight" not in self.source.names
        embedding = self.matrix("token_embd.weight", self.shape.hidden)
        x, embedding_names = self._embed(embedding)
        if self.shape.embedding_scale != 1:
            scale = g.scalar("embedding.scale", self.shape.embedding_scale)
            x = g.node("Mul", [x, scale], "embedding.scaled")
        residual = ""
        for layer in range(self.shape.layers):
            x, residual = self._layer(layer, x, residual)
        x, _ = self._norm("output_norm", x, residual)
        x = self._rows_from_first(x)
        if is_tied:
            logits = self._tied_head(x, embedding, embedding_names)
        else:
            logits = g.linear(x, "head", [self.matrix("output.weight", self.shape.hidden)])
        g.node("Identity", [logits], "logits")
        self._refuse_unused_tensors()

    def _refuse_unused_tensors(self) -> None:
        # LongRoPE's long factors are for lengths beyond the context length of the graph.
        unused_names = sorted(self.source.names - self._used_names - {LONG_FACTORS})
        if unused_names:
            raise ModelImportError(
                f"{len(unused_names)} tensors have no place in such a decoder,"
                f" the first is '{unused_names[0]}'"
            )

    def _rows_from_first(self, x: str) -> str:
        """The rows from `FIRST_ROW` on; all rows if that input is left out."""
        g = self.graph
        g.constant(FIRST_ROW, [0])
        return g.node("Slice", [x, FIRST_ROW, g.constant("last_row", [_END]), "one"], "wanted_rows")

    def _lengths(self) -> None:
        """Add the inputs of GroupQueryAttention: each row's last position and the longest length.

        Both are int32.
        """
        g = self.graph
        g.constant("one", [1])
        g.constant("length_axis", [1])
        row_lengths = g.node(
            "ReduceSum", ["attention_mask", "length_axis"], "row_lengths", keepdims=0
        )
        last_positions = g.node("Sub", [row_lengths, "one"], "last")
        g.node("Cast", [last_positions], "seqlens_k", to=TensorProto.INT32)
        g.initialisers.append(helper.make_tensor("length_index", TensorProto.INT64, [], [1]))
        mask_shape = g.node("Shape", ["attention_mask"], "mask_shape")
        total = g.node("Gather", [mask_shape, "length_index"], "mask_length")
        g.node("Cast", [total], "total_length", to=TensorProto.INT32)

    def _rotary_cache(self, name: str, rotation: RotaryEmbedding) -> None:
        """Add the tables of cosines and sines, [context length, size / 2] each."""
        frequency = rotation.theta ** (
            -np.arange(0, rotation.size, 2, dtype=np.float64) / rotation.size
        )
        if rotation.factors:
            frequency /= self.floats(rotation.factors)
        positions = np.arange(self.shape.context_length, dtype=np.float64) * rotation.position_scale
        angle = positions[:, None] * frequency
        self.graph.weight(f"{name}.cos", (np.cos(angle) * rotation.magnitude).astype(np.float32))
        self.graph.weight(f"{name}.sin", (np.sin(angle) * rotation.magnitude).astype(np.float32))

    def _embed(self, weights: PackedMatrix | Floats) -> tuple[str, dict[str, str]]:
        """Look up the embeddings. Also return the names of the matrix's arrays, for a tied head."""
        g = self.graph
        if not isinstance(weights, PackedMatrix):
            names = {"weight": g.weight("embedding.weight", weights)}
            return g.node("Gather", [names["weight"], "input_ids"], "embedding"), names
        # Flat, as GatherBlockQuantized needs it; MatMulNBits gets a reshaped view.
        flat = weights.codes.reshape(weights.rows, -1)
        names = {
            "flat": g.weight("embedding.codes", flat),
            "scales": g.weight("embedding.scales", weights.scales),
        }
        x = g.contrib(
            "GatherBlockQuantized", [names["flat"], "input_ids", names["scales"]], "embedding",
            bits=weights.bits, block_size=weights.block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        if weights.offsets is None:
            return x, names
        names["offsets"] = g.weight("embedding.offsets", weights.offsets)
        per_block = g.node("Gather", [names["offsets"], "input_ids"], "embedding.shift")
        shift = g.node("Unsqueeze", [per_block, "last_axis"], "embedding.shift.column")
        blocks = g.node(
            "Add", [g.in_blocks(x, "embedding.blocks", weights), shift], "embedding.shifted"
        )
        whole = g.constant("whole_rows", [0, 0, self.shape.hidden])
        return g.node("Reshape", [blocks, whole], "embedding.out"), names

    def _tied_head(self, x: str, weights: PackedMatrix | Floats, names: dict[str, str]) -> str:
        g = self.graph
        if not isinstance(weights, PackedMatrix):
            return g.contrib("FusedMatMul", [x, names["weight"]], "head", transB=1)
        codes_shape = g.constant("head.codes_shape", weights.codes.shape)
        codes = g.node("Reshape", [names["flat"], codes_shape], "head.codes")
        return g.quantised_product(x, "head", weights, {**names, "codes": codes})

    def _norm(self, name: str, x: str, residual: str) -> tuple[str, str]:
        """Add `x` to the residual stream, if there is one, and normalise the sum.

        Returns:
            the normalised value, and the residual stream.
        """
        g, epsilon = self.graph, self.shape.rms_epsilon
        gain = g.weight(f"{name}.weight", self.floats(f"{name}.weight"))
        if not residual:
            g.node(
                "SimplifiedLayerNormalization",
                [x, gain],
                name,
                epsilon=epsilon,
                axis=-1,
                stash_type=1,
            )
            return name, x
        total = f"{name}.residual"
        g.contrib(
            "SkipSimplifiedLayerNormalization",
            [x, residual, gain],
            name,
            more=["", "", total],
            epsilon=epsilon,
        )
        return name, total

    def _layer(self, layer: int, x: str, residual: str) -> tuple[str, str]:
        prefix = f"blk.{layer}"
        x, residual = self._norm(f"{prefix}.attn_norm", x, residual)
        x = self._post_norm(f"{prefix}.post_attention_norm", self._attention(layer, x))
        x, residual = self._norm(f"{prefix}.ffn_norm", x, residual)
        return self._post_norm(f"{prefix}.post_ffw_norm", self._mlp(prefix, x)), residual

    def _post_norm(self, name: str, x: str) -> str:
        """Normalise the output of a block, if the model has such a norm."""
        if f"{name}.weight" not in self.source.names:
            return x
        return self._norm(name, x, "")[0]

    def _attention(self, layer: int, x: str) -> str:
        g, s, prefix = self.graph, self.shape, f"blk.{layer}"
        rotation, window = s.rotation_of(layer), s.window_of(layer)
        rotary = "rotary.window" if window else "rotary"
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        attention = g.contrib(
            "GroupQueryAttention",
            [
                *self._projections(prefix, x), *past,
                "seqlens_k", "total_length", f"{rotary}.cos", f"{rotary}.sin",
            ],
            f"{prefix}.attention", more=[f"present.{layer}.{part}" for part in ("key", "value")],
            num_heads=s.heads, kv_num_heads=s.kv_heads, scale=s.attention_scale,
            local_window_size=window.positions if window else -1,
            # GGUF permutes the rows of q and k of a llama, so that pairs are neighbours.
            do_rotary=1, rotary_interleaved=int(rotation.is_interleaved),
        )  # fmt: skip
        output = self.matrix(f"{prefix}.attn_output.weight", s.heads * s.head_size)
        return g.linear(attention, f"{prefix}.attn_output", [output])

    def _projections(self, prefix: str, x: str) -> list[str]:
        """Project to query, key and value: three names, or one of all and two empty ones."""
        g, s = self.graph, self.shape
        has_one_matrix = f"{prefix}.attn_qkv.weight" in self.source.names
        parts = ["attn_qkv"] if has_one_matrix else [f"attn_{part}" for part in "qkv"]
        matrices = [self.matrix(f"{prefix}.{part}.weight", s.hidden) for part in parts]
        qkv = g.linear(x, f"{prefix}.attn_qkv", matrices)
        if f"{prefix}.attn_q.bias" in self.source.names:
            bias = np.concatenate([self.floats(f"{prefix}.attn_{part}.bias") for part in "qkv"])
            bias_name = g.weight(f"{prefix}.attn_bias", bias)
            qkv = g.node("Add", [qkv, bias_name], f"{prefix}.attn_biased")
        if f"{prefix}.attn_q_norm.weight" not in self.source.names:
            return [qkv, "", ""]
        query_width, key_width = s.heads * s.head_size, s.kv_heads * s.head_size
        widths = g.constant("qkv_sizes", [query_width, key_width, key_width])
        query, key, value = (f"{prefix}.attn_{part}" for part in "qkv")
        g.node("Split", [qkv, widths], query, more=[key, value], axis=-1)
        return [
            self._head_norm(f"{query}_norm", query, query_width),
            self._head_norm(f"{key}_norm", key, key_width),
            value,
        ]

    def _head_norm(self, name: str, x: str, width: int) -> str:
        """Normalise each head by itself. `width` is the size of all heads together."""
        g = self.graph
        split_shape = g.constant("in_heads", [0, 0, -1, self.shape.head_size])
        heads = g.node("Reshape", [x, split_shape], f"{name}.heads")
        norm, _ = self._norm(name, heads, "")
        joined_shape = g.constant(f"heads_of_{width}", [0, 0, width])
        return g.node("Reshape", [norm, joined_shape], f"{name}.out")

    def _mlp(self, prefix: str, x: str) -> str:
        g, s = self.graph, self.shape
        up_weights = self.matrix(f"{prefix}.ffn_up.weight", s.hidden)
        inner = up_weights.rows if isinstance(up_weights, PackedMatrix) else up_weights.shape[0]
        up = g.linear(x, f"{prefix}.ffn_up", [up_weights])
        if f"{prefix}.ffn_gate.weight" in self.source.names:
            gate_weights = self.matrix(f"{prefix}.ffn_gate.weight", s.hidden)
            gate = g.linear(x, f"{prefix}.ffn_gate", [gate_weights])
        else:
            # One matrix: the rows of the gate, then as many rows of `up`.
            inner //= 2
            sizes = g.constant("ffn_sizes", [inner, inner])
            up_name = f"{prefix}.ffn_only_up"
            gate = g.node("Split", [up, sizes], f"{prefix}.ffn_gate", more=[up_name], axis=-1)
            up = up_name
        if s.activation == "gelu":
            active = g.node("Gelu", [gate], f"{prefix}.gelu", approximate="tanh")
        else:
            active = g.contrib("QuickGelu", [gate], f"{prefix}.silu", alpha=1.0)
        product = g.node("Mul", [active, up], f"{prefix}.gated")
        down_weights = self.matrix(f"{prefix}.ffn_down.weight", inner)
        return g.linear(product, f"{prefix}.ffn_down", [down_weights])


def _cache_values(shape: DecoderShape, name: str, length: str) -> list[onnx.ValueInfoProto]:
    """The inputs or outputs of the KV cache; `length` names the dimension of its positions."""
    dims: list[str | int | None] = ["batch", shape.kv_heads, length, shape.head_size]
    values = []
    for layer in range(shape.layers):
        for part in ("key", "value"):
            name_of_part = f"{name}.{layer}.{part}"
            values.append(helper.make_tensor_value_info(name_of_part, TensorProto.FLOAT, dims))
    return values


def _values(shape: DecoderShape) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The inputs and the outputs of the graph."""
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        *_cache_values(shape, "past_key_values", "past"),
    ]
    # The initialiser of this name is its value if the input is left out.
    inputs.append(helper.make_tensor_value_info(FIRST_ROW, TensorProto.INT64, [1]))
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch", "rows", shape.vocab_size]
    )
    return inputs, [logits, *_cache_values(shape, "present", "present")]


def write_graph(source: ModelSource, folder: Path) -> None:
    """Write `model.onnx` and `model.onnx.data` into the folder.

    Raises:
        ModelImportError: a tensor is missing, has a wrong shape, or has no place in the graph.
    """
    with WeightFile(folder / "model.onnx.data") as weights:
        graph = _Graph(weights)
        _Decoder(graph, source).build()
    inputs, outputs = _values(source.shape)
    model = helper.make_model(
        helper.make_graph(graph.nodes, source.architecture, inputs, outputs, graph.initialisers),
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=_IR,
        producer_name="fusewire",
    )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
