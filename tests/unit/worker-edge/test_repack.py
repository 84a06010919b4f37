import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from fusewire.testing.tiny_gguf import random_blocks
from fusewire_worker_edge.importers.repack import quantize as round_anew
from fusewire_worker_edge.importers.repack import repack, stack

WEIGHTS = np.random.default_rng(1).normal(size=(5, 96)).astype(np.float32)


@pytest.mark.parametrize(("kind", "tolerance"), [("Q4_0", 0), ("Q8_0", 0), ("Q4_1", 1e-6)])
def test_no_weight_changes(kind: str, tolerance: float) -> None:
    raw = quantize(WEIGHTS, GGMLQuantizationType[kind])
    matrix = repack(raw, kind)
    assert (matrix.rows, matrix.columns) == WEIGHTS.shape
    np.testing.assert_allclose(
        matrix.dequantize(),
        dequantize(raw, GGMLQuantizationType[kind]),
        rtol=tolerance,
        atol=tolerance,
    )


def test_only_q4_1_needs_offsets() -> None:
    matrices = {
        k: repack(quantize(WEIGHTS, GGMLQuantizationType[k]), k) for k in ("Q4_0", "Q4_1", "Q8_0")
    }
    assert {k: p.offsets is not None for k, p in matrices.items()} == {
        "Q4_0": False,
        "Q4_1": True,
        "Q8_0": False,
    }


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_stacking_puts_rows_below_each_other(kind: str) -> None:
    parts = [
        repack(quantize(w, GGMLQuantizationType[kind]), kind) for w in (WEIGHTS, WEIGHTS[:2] * 3)
    ]
    np.testing.assert_array_equal(
        stack(parts).dequantize(), np.concatenate([p.dequantize() for p in parts])
    )


@pytest.mark.parametrize(("kind", "bits", "block_size"), [("Q4_K", 4, 32), ("Q6_K", 8, 16)])
def test_k_quants_are_kept_block_by_block(kind: str, bits: int, block_size: int) -> None:
    raw = random_blocks(kind, 7, 768, np.random.default_rng(3))
    matrix = repack(raw, kind)
    weights = dequantize(raw, GGMLQuantizationType[kind])

    assert (matrix.rows, matrix.columns, matrix.bits, matrix.block_size) == (
        7,
        768,
        bits,
        block_size,
    )
    np.testing.assert_allclose(matrix.dequantize(), weights, atol=1e-5 * np.abs(weights).max())


@pytest.mark.parametrize(("bits", "codes"), [(4, 15), (8, 254)])
@pytest.mark.parametrize(("block_size", "expected_size"), [(32, 32), (128, 32), (16, 16)])
def test_rounding_anew_is_off_by_half_a_step_at_most(
    bits: int, codes: int, block_size: int, expected_size: int
) -> None:
    matrix = round_anew(WEIGHTS, bits, block_size)
    blocks = WEIGHTS.reshape(5, -1, expected_size)
    reach = np.ptp(blocks, axis=-1) if bits == 4 else 2 * np.abs(blocks).max(axis=-1)

    assert matrix.block_size == expected_size  # 96 columns are no multiple of 128
    wrong = np.abs(matrix.dequantize() - WEIGHTS).reshape(blocks.shape).max(axis=-1)
    assert (wrong <= reach / codes / 2 * 1.001).all()


def test_a_block_of_equal_weights_is_kept() -> None:
    for bits in (4, 8):
        np.testing.assert_allclose(
            round_anew(np.full((1, 32), 0.5, np.float32), bits, 32).dequantize(), 0.5, rtol=1e-6
        )
        np.testing.assert_array_equal(
            round_anew(np.zeros((1, 32), np.float32), bits, 32).dequantize(), 0
        )
