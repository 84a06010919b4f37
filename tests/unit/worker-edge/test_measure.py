from pathlib import Path

from fusewire_worker_edge.measure import measure


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
        )
        > 0
    )


def test_without_the_file_there_is_nothing_to_compare(tiny_folder: Path) -> None:
    measurement = measure(tiny_folder, threads=1)

    assert (measurement.kl, measurement.top1, measurement.tokens) == (None, None, None)
