"""The ONNX graph of a decoder, with the names and shapes that onnxruntime-genai expects.

Operators of the domain com.microsoft: onnxruntime's docs/ContribOperators.md. Inputs `input_ids` and
`attention_mask` are int64 [B, S] and [B, T]; `past_key_values.<i>.key|value` and `present.<i>.key|value`
are float32 [B, kv_heads, P, head_size]; `logits` is float32 [B, S, vocabulary], or fewer rows, see `FIRST_ROW`.
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
"""Activations are quantised to int8 for the product: the fast kernels of onnxruntime on CPUs."""

_END = 2**63 - 1
_OPSET, _IR = 21, 10
_ALIGNMENT = 4096
"""So that onnxruntime can map the weights into memory."""


class WeightFile:
    """The external data of a model, written tensor after tensor so that the weights are never all in memory."""

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
        """Write an array, and describe where it is."""
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
    """Nodes and initialisers as they are added. Each method returns the name of what it computes."""

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
        """Add a node of the standard domain whose first output is `name`; `more` names the others."""
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
        """The same in the domain com.microsoft."""
        return self.node(op, inputs, name, more=more, domain=MICROSOFT, **attributes)

    def weight(self, name: str, array: np.ndarray[Any, Any]) -> str:
        """Add a weight, kept in the external data."""
        self.initialisers.append(self._weights.add(name, array))
        return name

    def constant(self, name: str, values: Sequence[int]) -> str:
        """Add a small int64 vector, kept in the graph; one that is there already is used again."""
        if any(known.name == name for known in self.initialisers):
            return name
        self.initialisers.append(
            helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values))
        )
        return name

    def scalar(self, name: str, value: float) -> str:
        """Add a number, kept in the graph."""
        self.initialisers.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
        return name

    def packed(self, name: str, weights: PackedMatrix) -> dict[str, str]:
        """Add the arrays of a quantised matrix."""
        arrays: dict[str, np.ndarray[Any, Any] | None] = {
            "codes": weights.codes,
            "scales": weights.scales,
            "offsets": weights.offsets,
        }
        return {
            part: self.weight(f"{name}.{part}", a) for part, a in arrays.items() if a is not None
        }

    def quantised_product(
        self, x: str, name: str, weights: PackedMatrix, stored: dict[str, str]
    ) -> str:
        """`x` times the transposed matrix. The offset of a block is multiplied with the sum of x over it."""
        product = self.contrib(
            "MatMulNBits", [x, stored["codes"], stored["scales"]], f"{name}.product",
            K=weights.columns, N=weights.rows, bits=weights.bits, block_size=weights.block_size,
            accuracy_level=ACCURACY_LEVEL,
        )  # fmt: skip
        if "offsets" not in stored:
            return product
        blocks = self.in_blocks(x, f"{name}.blocks", weights)
        sums = self.node("ReduceSum", [blocks, "last_axis"], f"{name}.sums", keepdims=0)
        shift = self.contrib("FusedMatMul", [sums, stored["offsets"]], f"{name}.shift", transB=1)
        return self.node("Add", [product, shift], f"{name}.out")

    def in_blocks(self, x: str, name: str, weights: PackedMatrix) -> str:
        """[B, S, K] -> [B, S, K/b, b]."""
        shape = self.constant(f"in_blocks_of_{weights.block_size}", [0, 0, -1, weights.block_size])
        return self.node("Reshape", [x, shape], name)

    def linear(self, x: str, name: str, matrices: Sequence[PackedMatrix | Floats]) -> str:
        """`x` times each transposed matrix, the results side by side."""
        packed = [m for m in matrices if isinstance(m, PackedMatrix)]
        if len(packed) == len(matrices) and len({m.encoding for m in packed}) == 1:
            whole = stack(packed)
            return self.quantised_product(x, name, whole, self.packed(name, whole))
        outputs = []
        for i, matrix in enumerate(matrices):
            part = f"{name}.{i}"
            if isinstance(matrix, PackedMatrix):
                outputs.append(self.quantised_product(x, part, matrix, self.packed(part, matrix)))
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
        self._used: set[str] = set()

    def floats(self, name: str) -> Floats:
        self._used.add(name)
        return self.source.floats(name)

    def matrix(self, name: str, columns: int) -> PackedMatrix | Floats:
        self._used.add(name)
        return self.source.matrix(name, columns)

    def build(self) -> None:
        g = self.graph
        g.constant("last_axis", [-1])
        self._lengths()
        self._rotary_cache("rotary", self.shape.rotation)
        if self.shape.window:
            self._rotary_cache("rotary.window", self.shape.window.rotation)
        tied = "output.weight" not in self.source.names
        embedding = self.matrix("token_embd.weight", self.shape.hidden)
        x, stored = self._embed(embedding)
        if self.shape.embedding_scale != 1:
            x = g.node(
                "Mul",
                [x, g.scalar("embedding.scale", self.shape.embedding_scale)],
                "embedding.scaled",
            )
        residual = ""
        for layer in range(self.shape.layers):
            x, residual = self._layer(layer, x, residual)
        x, _ = self._norm("output_norm", x, residual)
        x = self._wanted_rows(x)
        if tied:
            logits = self._tied_head(x, embedding, stored)
        else:
            logits = g.linear(x, "head", [self.matrix("output.weight", self.shape.hidden)])
        g.node("Identity", [logits], "logits")
        # LongRoPE's second set of factors is for lengths that are not offered.
        unused = sorted(self.source.names - self._used - {LONG_FACTORS})
        if unused:
            raise ModelImportError(
                f"{len(unused)} tensors have no place in such a decoder, the first is '{unused[0]}'"
            )

    def _wanted_rows(self, x: str) -> str:
        """Those from `FIRST_ROW` on, all of them where it is not given."""
        g = self.graph
        g.constant(FIRST_ROW, [0])
        return g.node("Slice", [x, FIRST_ROW, g.constant("last_row", [_END]), "one"], "wanted_rows")

    def _lengths(self) -> None:
        """GroupQueryAttention wants the last position of each row and the length of the longest, as int32."""
        g = self.graph
        g.constant("one", [1])
        g.constant("length_axis", [1])
        row_lengths = g.node(
            "ReduceSum", ["attention_mask", "length_axis"], "row_lengths", keepdims=0
        )
        g.node(
            "Cast", [g.node("Sub", [row_lengths, "one"], "last")], "seqlens_k", to=TensorProto.INT32
        )
        g.initialisers.append(helper.make_tensor("length_index", TensorProto.INT64, [], [1]))
        total = g.node(
            "Gather",
            [g.node("Shape", ["attention_mask"], "mask_shape"), "length_index"],
            "mask_length",
        )
        g.node("Cast", [total], "total_length", to=TensorProto.INT32)

    def _rotary_cache(self, name: str, rotation: RotaryEmbedding) -> None:
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
        """Look the tokens up. Also returns the names of the stored arrays, which a tied head uses again."""
        g = self.graph
        if not isinstance(weights, PackedMatrix):
            stored = {"weight": g.weight("embedding.weight", weights)}
            return g.node("Gather", [stored["weight"], "input_ids"], "embedding"), stored
        # Stored flat, as GatherBlockQuantized wants it; MatMulNBits is given a reshaped view.
        flat = weights.codes.reshape(weights.rows, -1)
        stored = {
            "flat": g.weight("embedding.codes", flat),
            "scales": g.weight("embedding.scales", weights.scales),
        }
        x = g.contrib(
            "GatherBlockQuantized", [stored["flat"], "input_ids", stored["scales"]], "embedding",
            bits=weights.bits, block_size=weights.block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        if weights.offsets is None:
            return x, stored
        stored["offsets"] = g.weight("embedding.offsets", weights.offsets)
        per_block = g.node("Gather", [stored["offsets"], "input_ids"], "embedding.shift")
        shift = g.node("Unsqueeze", [per_block, "last_axis"], "embedding.shift.column")
        blocks = g.node(
            "Add", [g.in_blocks(x, "embedding.blocks", weights), shift], "embedding.shifted"
        )
        whole = g.constant("whole_rows", [0, 0, self.shape.hidden])
        return g.node("Reshape", [blocks, whole], "embedding.out"), stored

    def _tied_head(self, x: str, weights: PackedMatrix | Floats, stored: dict[str, str]) -> str:
        g = self.graph
        if not isinstance(weights, PackedMatrix):
            return g.contrib("FusedMatMul", [x, stored["weight"]], "head", transB=1)
        codes_shape = g.constant("head.codes_shape", weights.codes.shape)
        codes = g.node("Reshape", [stored["flat"], codes_shape], "head.codes")
        return g.quantised_product(x, "head", weights, {**stored, "codes": codes})

    def _norm(self, name: str, x: str, residual: str) -> tuple[str, str]:
        """Add `x` to the residual stream (where there is one) and normalise it. Returns (normalised, residual)."""
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
        x = self._after(f"{prefix}.post_attention_norm", self._attention(layer, x))
        x, residual = self._norm(f"{prefix}.ffn_norm", x, residual)
        return self._after(f"{prefix}.post_ffw_norm", self._mlp(prefix, x)), residual

    def _after(self, name: str, x: str) -> str:
        """Normalise what a block adds to the residual stream, where the model does."""
        return self._norm(name, x, "")[0] if f"{name}.weight" in self.source.names else x

    def _attention(self, layer: int, x: str) -> str:
        g, s, prefix = self.graph, self.shape, f"blk.{layer}"
        rotation, window = s.rotation_of(layer), s.window_of(layer)
        rotary = "rotary.window" if window else "rotary"
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        attention = g.contrib(
            "GroupQueryAttention",
            [*self._projections(prefix, x), *past, "seqlens_k", "total_length", f"{rotary}.cos", f"{rotary}.sin"],
            f"{prefix}.attention", more=[f"present.{layer}.{part}" for part in ("key", "value")],
            num_heads=s.heads, kv_num_heads=s.kv_heads, scale=s.attention_scale,
            local_window_size=window.positions if window else -1,
            # GGUF stores a llama with the rows of q and k permuted for neighbouring pairs.
            do_rotary=1, rotary_interleaved=int(rotation.is_interleaved),
        )  # fmt: skip
        output = self.matrix(f"{prefix}.attn_output.weight", s.heads * s.head_size)
        return g.linear(attention, f"{prefix}.attn_output", [output])

    def _projections(self, prefix: str, x: str) -> list[str]:
        """Query, key and value: as one packed tensor and two empty names, or as three tensors."""
        g, s = self.graph, self.shape
        is_one = f"{prefix}.attn_qkv.weight" in self.source.names
        parts = ["attn_qkv"] if is_one else [f"attn_{part}" for part in "qkv"]
        matrices = [self.matrix(f"{prefix}.{part}.weight", s.hidden) for part in parts]
        packed = g.linear(x, f"{prefix}.attn_qkv", matrices)
        if f"{prefix}.attn_q.bias" in self.source.names:
            bias = np.concatenate([self.floats(f"{prefix}.attn_{part}.bias") for part in "qkv"])
            packed = g.node(
                "Add", [packed, g.weight(f"{prefix}.attn_bias", bias)], f"{prefix}.attn_biased"
            )
        if f"{prefix}.attn_q_norm.weight" not in self.source.names:
            return [packed, "", ""]
        queries, keys = s.heads * s.head_size, s.kv_heads * s.head_size
        sizes = g.constant("qkv_sizes", [queries, keys, keys])
        query, key, value = (f"{prefix}.attn_{part}" for part in "qkv")
        g.node("Split", [packed, sizes], query, more=[key, value], axis=-1)
        return [
            self._head_norm(f"{query}_norm", query, queries),
            self._head_norm(f"{key}_norm", key, keys),
            value,
        ]

    def _head_norm(self, name: str, x: str, width: int) -> str:
        """Normalise each head apart."""
        g = self.graph
        heads = g.node(
            "Reshape",
            [x, g.constant("in_heads", [0, 0, -1, self.shape.head_size])],
            f"{name}.heads",
        )
        normed, _ = self._norm(name, heads, "")
        return g.node(
            "Reshape", [normed, g.constant(f"heads_of_{width}", [0, 0, width])], f"{name}.out"
        )

    def _mlp(self, prefix: str, x: str) -> str:
        g, s = self.graph, self.shape
        up_weights = self.matrix(f"{prefix}.ffn_up.weight", s.hidden)
        inner = up_weights.rows if isinstance(up_weights, PackedMatrix) else up_weights.shape[0]
        up = g.linear(x, f"{prefix}.ffn_up", [up_weights])
        if f"{prefix}.ffn_gate.weight" in self.source.names:
            gate = g.linear(
                x, f"{prefix}.ffn_gate", [self.matrix(f"{prefix}.ffn_gate.weight", s.hidden)]
            )
        else:
            # One matrix: the gate's rows, then as many of the other.
            inner //= 2
            gate = f"{prefix}.ffn_gate"
            g.node(
                "Split",
                [up, g.constant("ffn_sizes", [inner, inner])],
                gate,
                more=[f"{prefix}.ffn_only_up"],
                axis=-1,
            )
            up = f"{prefix}.ffn_only_up"
        if s.activation == "gelu":
            active = g.node("Gelu", [gate], f"{prefix}.gelu", approximate="tanh")
        else:
            active = g.contrib("QuickGelu", [gate], f"{prefix}.silu", alpha=1.0)
        gated = g.node("Mul", [active, up], f"{prefix}.gated")
        return g.linear(
            gated, f"{prefix}.ffn_down", [self.matrix(f"{prefix}.ffn_down.weight", inner)]
        )


def _values(shape: DecoderShape) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    def cache(name: str, length: str) -> list[onnx.ValueInfoProto]:
        dims: list[str | int | None] = ["batch", shape.kv_heads, length, shape.head_size]
        return [
            helper.make_tensor_value_info(f"{name}.{layer}.{part}", TensorProto.FLOAT, dims)
            for layer in range(shape.layers)
            for part in ("key", "value")
        ]

    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        *cache("past_key_values", "past"),
    ]
    # Its value among the initialisers is what it is where it is not given.
    inputs.append(helper.make_tensor_value_info(FIRST_ROW, TensorProto.INT64, [1]))
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch", "rows", shape.vocab_size]
    )
    return inputs, [logits, *cache("present", "present")]


def write_graph(source: ModelSource, folder: Path) -> None:
    """Write `model.onnx` and `model.onnx.data` into the folder.

    Raises:
        ModelImportError: a tensor is missing, has another shape, or has no place in the graph.
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
