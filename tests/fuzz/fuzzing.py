"""Runs one target under libFuzzer, or over the inputs that the repository keeps.

Imports no atheris until it fuzzes, as it has wheels for Linux alone.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
KEPT = Path(__file__).parent / "corpus"
"""By target: seeds, and inputs that once passed what they should not have."""
MEMORY_MB, INPUT_S = 2048, 120
"""More memory or time for one input is a fault as well: far more, as a busy machine is slow."""

Target = Callable[[bytes, Path], None]
Seeds = Callable[[str, Path, Path], None]


def kept_inputs(target: str) -> list[Path]:
    """Return the inputs that the repository keeps for a target."""
    return sorted(path for path in (KEPT / target).glob("*") if path.is_file())


def main(
    targets: Mapping[str, Target], refusals: tuple[type[Exception], ...], seeds: Seeds
) -> None:
    """Fuzz one target until its time or runs are over; ends with 1 if an input passed.

    Args:
        targets: by name; each takes the input, and the folder that `seeds` has filled.
        refusals: errors that refuse an input as they should.
        seeds: writes whole inputs into a folder for a target, and what stands around them.
    """
    parser = argparse.ArgumentParser(description=f"Fuzz {', '.join(targets)}.")
    parser.add_argument("target", choices=[*targets, "replay"])
    parser.add_argument("--seconds", type=int, default=0, help="how long; 0 is without end")
    parser.add_argument("--runs", type=int, default=-1, help="how many inputs; -1 is without end")
    parser.add_argument(
        "--folder",
        type=Path,
        default=BUILD,
        help="where to work, and to leave what was not refused",
    )
    options = parser.parse_args()
    if options.target == "replay":
        _replay(targets, refusals)
        return
    # Here and not in a temporary folder: libFuzzer ends the process, and nothing would remove it.
    root = options.folder / options.target
    shutil.rmtree(root, ignore_errors=True)
    folder, corpus = root / "model", root / "corpus"
    folder.mkdir(parents=True)
    corpus.mkdir()
    seeds(options.target, folder, corpus)
    for path in kept_inputs(options.target):
        shutil.copy(path, corpus)
    largest = max((path.stat().st_size for path in corpus.iterdir()), default=2048)
    limits = [f"-max_len={2 * largest}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={INPUT_S}"]
    lasts = [
        f"-max_total_time={options.seconds}",
        f"-runs={options.runs}",
        f"-artifact_prefix={options.folder}/{options.target}-",
    ]
    import atheris  # type: ignore[import-untyped]  # it publishes none

    target = targets[options.target]
    atheris.Setup(
        [sys.argv[0], str(corpus), *limits, *lasts],
        lambda data: _try(target, refusals, data, folder),
    )
    atheris.Fuzz()


def _replay(targets: Mapping[str, Target], refusals: tuple[type[Exception], ...]) -> None:
    count = 0
    for name, target in targets.items():
        for path in kept_inputs(name):
            _try(target, refusals, path.read_bytes(), path.parent)
            count += 1
    print(f"Done {count} inputs")


def _try(target: Target, refusals: tuple[type[Exception], ...], data: bytes, folder: Path) -> None:
    try:
        target(data, folder)
    except refusals as exc:
        if not str(exc):
            raise AssertionError("it was refused without a reason") from exc
