import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from fusewire_worker_edge.importers.repack import repack, stack

WEIGHTS = np.random.default_rng(1).normal(size=(5, 96)).astype(np.float32)


@pytest.mark.parametrize(("kind", "tolerance"), [("Q4_0", 0), ("Q8_0", 0), ("Q4_1", 1e-6)])
def test_no_weight_changes(kind: str, tolerance: float) -> None:
    raw = quantize(WEIGHTS, GGMLQuantizationType[kind])
    packed = repack(raw, kind)
    assert (packed.rows, packed.columns) == WEIGHTS.shape
    np.testing.assert_allclose(
        packed.dequantize(), dequantize(raw, GGMLQuantizationType[kind]), rtol=tolerance, atol=tolerance
    )


def test_only_q4_1_needs_offsets() -> None:
    packed = {k: repack(quantize(WEIGHTS, GGMLQuantizationType[k]), k) for k in ("Q4_0", "Q4_1", "Q8_0")}
    assert {k: p.offsets is not None for k, p in packed.items()} == {"Q4_0": False, "Q4_1": True, "Q8_0": False}


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_stacking_puts_rows_below_each_other(kind: str) -> None:
    parts = [repack(quantize(w, GGMLQuantizationType[kind]), kind) for w in (WEIGHTS, WEIGHTS[:2] * 3)]
    np.testing.assert_array_equal(stack(parts).dequantize(), np.concatenate([p.dequantize() for p in parts]))
