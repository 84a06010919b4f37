from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.jobs import Event
from fusewire_worker_edge.folder import GRAPH
from fusewire_worker_edge.importers.graph import WeightFile
from fusewire_worker_edge.measure import measure
from fusewire_worker_edge.measure.bandwidth import MemoryReader, step_bytes
from fusewire_worker_edge.measure.batches import batch_speed, late_join_steps, prefix_reuse

TEXT = list(range(10, 110)) * 10


def test_a_folder_is_measured_against_the_file_that_it_was_made_from(
    tiny_folder: Path, tiny_gguf: Path
) -> None:
    measurement = measure(tiny_folder, tiny_gguf, tokens=300, threads=1)

    assert measurement.tokens == 300
    assert measurement.kl is not None
    assert measurement.top1 is not None
    assert 0 <= measurement.kl < 0.05
    assert measurement.top1 > 0.8
    assert (
        min(
            measurement.load_s,
            measurement.prefill_tok_s,
            measurement.decode_tok_s,
            measurement.guided_over_unguided,
            measurement.slots4_over_1,
            measurement.slots8_over_1,
            measurement.prefix_reuse_cpu,
        )
        > 0
    )
    assert measurement.step_bytes == step_bytes(tiny_folder / GRAPH)


def test_without_the_file_there_is_nothing_to_compare(tiny_folder: Path) -> None:
    measurement = measure(tiny_folder, threads=1)

    assert (measurement.kl, measurement.top1, measurement.tokens) == (None, None, None)


@pytest.mark.parametrize("head", ["head", "table"])
def test_a_step_reads_matrices_and_one_row_of_tables(tmp_path: Path, head: str) -> None:
    """Of a table that is the head too, a step reads all."""
    arrays = {"table": np.ones((100, 8), np.float32), "head": np.ones((100, 8), np.float32)}
    with WeightFile(tmp_path / "data") as weights:
        tensors = [weights.add(name, array) for name, array in arrays.items()]
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("FusedMatMul", ["x", head], ["y"], domain="com.microsoft"),
        helper.make_node("Add", ["y", "bias"], ["z"]),
    ]
    tensors.append(numpy_helper.from_array(np.ones(2, np.float32), "bias"))
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    (tmp_path / "g.onnx").write_bytes(helper.make_model(graph).SerializeToString())

    assert step_bytes(tmp_path / "g.onnx") == 100 * 8 * 4 + 2 * 4


def test_memory_is_read_with_any_number_of_threads() -> None:
    with MemoryReader(2) as reader:
        assert reader.measure() > 0


def test_a_batch_has_all_its_sequences_and_ends_empty(
    tiny_generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step brings a token of each: at one step a second, their number is the speed."""
    seconds = iter(range(2))
    steps = 0
    step = tiny_generator.scheduler.step

    def counted_step() -> list[Event]:
        nonlocal steps
        steps += 1
        return step()

    monkeypatch.setattr(tiny_generator.scheduler, "step", counted_step)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    tokens = batch_speed(tiny_generator, TEXT, 4)

    assert tokens == 4 * 24
    assert steps > 24
    assert not tiny_generator.scheduler.is_busy


def test_what_a_late_request_waits_for_is_counted_in_steps(tiny_generator: Generator) -> None:
    steps = late_join_steps(tiny_generator, TEXT)

    assert 0 <= steps <= 1
    assert late_join_steps(tiny_generator, TEXT[::-1]) == steps
    assert not tiny_generator.scheduler.is_busy


def test_a_prefix_is_reused_but_for_the_end_of_the_prompt(
    tiny_generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_tokens: list[int] = []
    step = tiny_generator.scheduler.step

    def recorded_step() -> list[Event]:
        events = step()
        cached_tokens.extend(event.completion.cached_tokens for event in events if event.completion)
        return events

    monkeypatch.setattr(tiny_generator.scheduler, "step", recorded_step)
    text = np.random.default_rng(3).integers(10, 200, 600).tolist()

    assert prefix_reuse(tiny_generator, text) > 0
    assert cached_tokens == [0, 500]
