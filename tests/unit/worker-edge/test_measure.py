from pathlib import Path

from fusewire_worker_edge.measure import measure


def test_a_folder_is_measured_against_the_file_that_it_was_made_from(
    tiny_folder: Path, tiny_gguf: Path
) -> None:
    found = measure(tiny_folder, tiny_gguf, tokens=300, threads=1)

    assert found.tokens == 300
    assert found.kl is not None
    assert found.top1 is not None
    assert 0 <= found.kl < 0.05
    assert found.top1 > 0.8
    assert (
        min(found.load_s, found.prefill_tok_s, found.decode_tok_s, found.guided_over_unguided) > 0
    )


def test_without_the_file_there_is_nothing_to_compare(tiny_folder: Path) -> None:
    found = measure(tiny_folder, threads=1)

    assert (found.kl, found.top1, found.tokens) == (None, None, None)
