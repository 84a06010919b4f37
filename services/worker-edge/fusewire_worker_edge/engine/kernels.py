"""What onnxruntime's kernels do on this processor."""

from functools import lru_cache

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from fusewire_worker_edge.engine.sampling import Floats

COLUMNS, INNER, BLOCK = 256, 1024, 32
INT8 = 4
"""The accuracy level at which products are computed in 8-bit integers."""


@lru_cache(maxsize=1)
def is_row_alone_different() -> bool:
    """Whether a product with 4-bit or 8-bit weights has other rounding for a single row.

    Onnxruntime has kernels of its own for a single row. On x86 without AVX-512 they add up in
    another order, so that the last bits differ; seen with onnxruntime 1.32.
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, INNER)).astype(np.float32)
    return any(not np.array_equal(*_row_alone_and_of_two(bits, rows)) for bits in (4, 8))


def _row_alone_and_of_two(bits: int, rows: Floats) -> tuple[Floats, Floats]:
    session = _product(bits)
    (alone,) = session.run(None, {"rows": rows[1:]})
    (both,) = session.run(None, {"rows": rows})
    return np.asarray(alone[0]), np.asarray(both[1])


def _product(bits: int) -> ort.InferenceSession:
    """A session that multiplies `rows` [n, INNER] by random weights [COLUMNS, INNER]."""
    rng = np.random.default_rng(bits)
    blocks = INNER // BLOCK
    codes = rng.integers(0, 256, COLUMNS * blocks * BLOCK * bits // 8, dtype=np.uint8)
    scales = rng.uniform(0.01, 0.1, COLUMNS * blocks).astype(np.float32)
    code_shape, scale_shape = [COLUMNS, blocks, BLOCK * bits // 8], [COLUMNS * blocks]
    node = helper.make_node(
        "MatMulNBits",
        ["rows", "codes", "scales"],
        ["product"],
        domain="com.microsoft",
        K=INNER,
        N=COLUMNS,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=INT8,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", INNER])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["n", COLUMNS])],
        [
            helper.make_tensor("codes", TensorProto.UINT8, code_shape, codes.tobytes(), raw=True),
            helper.make_tensor("scales", TensorProto.FLOAT, scale_shape, scales),
        ],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options)
