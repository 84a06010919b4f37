import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fusewire_worker_edge.engine import prepacked
from fusewire_worker_edge.engine.child import load
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.prepacked import (
    PackedWeights,
    key_of,
    make,
    obtain,
    processor_flags,
)
from fusewire_worker_edge.folder import GRAPH, WEIGHTS, FileEntry, ModelFolderError, hash_file


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the tiny model's entry."""
    cache = tmp_path_factory.mktemp("prepacked")
    make(tiny_folder, cache)
    return cache


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "cache"))


def entry_of(cache: Path) -> Path:
    (entry,) = [path for path in cache.iterdir() if path.is_dir()]
    return entry


def load_with(folder: Path, cache: Path) -> tuple[Generator, PackedWeights]:
    loaded = load(folder, EngineOptions(threads=1, prepacked_dir=str(cache)))
    assert loaded.weights
    return loaded.generator, loaded.weights


def test_the_first_makes_them_and_the_next_uses_them(tiny_folder: Path, tmp_path: Path) -> None:
    states = [obtain(tiny_folder, tmp_path / "a" / "b").state for _ in range(2)]
    assert states == ["made", "used"]


def test_answers_are_the_same_as_without(
    tiny_folder: Path, tiny_generator: Generator, cache: Path
) -> None:
    generator, outcome = load_with(tiny_folder, cache)
    ids = tiny_generator.vocabulary.ids("hello there, how are you?")
    assert outcome.state == "used"
    assert np.array_equal(generator.logits(ids), tiny_generator.logits(ids))
    assert generator.greedy(ids, 20) == tiny_generator.greedy(ids, 20)


def test_the_weights_are_mapped_from_the_entry(tiny_folder: Path, cache: Path) -> None:
    generator, _ = load_with(tiny_folder, cache)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(entry_of(cache) / WEIGHTS) in maps
    assert generator.manifest.files


def test_several_that_start_at_once_make_them_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[Path] = []
    pack = prepacked._pack

    def counted(folder: Path, target: Path) -> None:
        packed.append(target)
        pack(folder, target)

    monkeypatch.setattr(prepacked, "_pack", counted)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: make(tiny_folder, tmp_path), range(4)))
    assert len(packed) == 1


@pytest.mark.parametrize("damage", ["byte", "size", "record", "files", "missing"])
def test_a_damaged_entry_is_made_anew(tiny_folder: Path, cache: Path, damage: str) -> None:
    entry = entry_of(cache)
    weights, record = entry / WEIGHTS, entry / prepacked.RECORD
    whole = hash_file(entry, WEIGHTS)
    raw = bytearray(weights.read_bytes())
    if damage == "byte":
        raw[len(raw) // 2] ^= 1
        weights.write_bytes(raw)
    elif damage == "size":
        weights.write_bytes(raw[:-4096])
    elif damage == "record":
        record.write_text("{", encoding="utf-8")
    elif damage == "files":
        record.write_text(record.read_text(encoding="utf-8").replace(WEIGHTS, "../x"))
    else:
        weights.unlink()
    assert obtain(tiny_folder, cache).state == "made"
    assert hash_file(entry, WEIGHTS) == whole


def test_what_was_made_for_something_else_is_deleted(
    tiny_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = entry_of(cache)
    other = cache / f"{tiny_folder.name}-other"
    shutil.copytree(old, other)
    record = other / prepacked.RECORD
    text = record.read_text(encoding="utf-8").replace(str(tiny_folder.resolve()), "/models/other")
    record.write_text(text, encoding="utf-8")

    monkeypatch.setattr("onnxruntime.__version__", "0.0.0")
    make(tiny_folder, cache)
    assert not old.exists()
    assert other.exists()


def test_the_key_is_that_of_version_processor_and_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {key_of(tiny_folder)}
    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.__version__", "0.0.0")
        keys.add(key_of(tiny_folder))
    with monkeypatch.context() as patch:
        patch.setattr(prepacked, "processor_flags", lambda _: "sse2")
        keys.add(key_of(tiny_folder))
    changed = Path(shutil.copytree(tiny_folder, tmp_path / tiny_folder.name))
    with (changed / "manifest.json").open("a", encoding="utf-8") as file:
        file.write(" ")
    keys.add(key_of(changed))
    assert len(keys) == 4


def test_flags_are_read_on_two_kinds_of_processor() -> None:
    assert processor_flags("processor\t: 0\nflags\t\t: fpu avx2 aes\n") == "aes avx2 fpu"
    assert processor_flags("Features\t: fp asimd\nCPU part\t: 1\n") == "asimd fp"
    assert processor_flags("") == ""


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_without_room_none_are_made(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10, 10, 1000))
    with pytest.raises(ModelFolderError, match="are free"):
        make(tiny_folder, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_where_nothing_can_be_written_the_model_loads_without(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    generator, outcome = load_with(tiny_folder, tmp_path / "file")
    assert (outcome.state, outcome.graph) == ("off", None)
    assert "File exists" in outcome.reason
    assert generator.golden_agreement() == 1.0


def replace_file(entry: Path, name: str, raw: bytes) -> None:
    """Replace a file of an entry, and its hash in the record."""
    (entry / name).write_bytes(raw)
    path = entry / prepacked.RECORD
    record = prepacked._Record.model_validate_json(path.read_bytes())
    files: dict[str, FileEntry] = {**record.files, name: hash_file(entry, name)}
    path.write_text(record.model_copy(update={"files": files}).model_dump_json(), encoding="utf-8")


def test_an_entry_that_computes_something_else_is_given_up(tiny_folder: Path, cache: Path) -> None:
    entry = entry_of(cache)
    size = (entry / WEIGHTS).stat().st_size
    noise: Any = np.random.default_rng(1).integers(0, 255, size, np.uint8)
    replace_file(entry, WEIGHTS, noise.tobytes())
    generator, outcome = load_with(tiny_folder, cache)
    assert outcome.state == "off"
    assert "golden answer" in outcome.reason
    assert not entry.exists()
    assert generator.golden_agreement() == 1.0


def test_a_dangerous_graph_in_an_entry_is_not_loaded(tiny_folder: Path, cache: Path) -> None:
    entry = entry_of(cache)
    raw = (entry / GRAPH).read_bytes()
    replace_file(entry, GRAPH, raw.replace(WEIGHTS.encode(), b"../../et.passwd"))
    _, outcome = load_with(tiny_folder, cache)
    assert outcome.state == "made"
