"""onnxruntime-genai as the engine: the same logits, and nothing loaded that was not checked."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusewire.contracts import Message
from fusewire.errors import StartupError
from fusewire.settings import EdgeModel, Nats, Settings
from fusewire_worker_edge.engine.api import GenerateRequest
from fusewire_worker_edge.engine.child import load
from fusewire_worker_edge.engine.genai import CONFIG, GenaiModel
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.kernels import is_row_alone_different
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.folder import ModelFolderError, verify
from fusewire_worker_edge.service import WorkerEdge

GENAI = EngineOptions(engine="genai", threads=1, kv_cache_mb=1)


@pytest.fixture(scope="module")
def genai_generator(tiny_folder: Path) -> Generator:
    return Generator(tiny_folder, verify(tiny_folder), GENAI)


@pytest.fixture
def prompt(tiny_generator: Generator) -> Sequence[int]:
    return tiny_generator.vocabulary.prompt([Message(role="user", content="Is a whale a fish?")])


def test_every_call_gives_the_logits_that_onnxruntime_gives(
    tiny_generator: Generator, genai_generator: Generator, prompt: Sequence[int]
) -> None:
    half, whole = len(prompt) // 2, len(prompt)
    theirs, ours = genai_generator.model, tiny_generator.model
    calls: tuple[Callable[[Any], Any], ...] = (
        lambda model: model.prefill(0, prompt[:half], 0),
        lambda model: model.prefill(0, prompt[half:], half),
        lambda model: model.decode([7], [whole])[0],
        lambda model: model.decode([9], [whole + 1])[0],
        # Back to the prompt's end, as for the next of several choices.
        lambda model: model.advance(0, [5, 6, 7], whole),
        lambda model: model.advance(0, [8, 9], whole),
        # Back to the beginning, for the next prompt.
        lambda model: model.prefill(0, prompt[3:], 0),
    )
    for call in calls:
        np.testing.assert_allclose(call(theirs), call(ours), atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.9, "seed": 5},
        {"response_schema": {"enum": ["yes", "no"]}},
        {"choices": ("yes", "no " * 20)},
    ],
)
def test_requests_are_answered_the_same_one_after_the_other(
    tiny_generator: Generator, genai_generator: Generator, fields: dict[str, Any]
) -> None:
    assert (genai_generator.model.slots, genai_generator.golden_agreement()) == (1, 1)
    requests = [
        GenerateRequest(
            id=word, messages=(Message(role="user", content=word * 20),), max_tokens=12, **fields
        )
        for word in ("copper ", "rain ")
    ]
    answers = []
    for generator in (tiny_generator, genai_generator):
        for request in requests:
            generator.submit(request)
        completions = {}
        while generator.scheduler.is_busy:
            for event in generator.scheduler.step():
                completions[event.id] = event.completion
        answers.append([completions[request.id] for request in requests])
    # Theirs decodes one row, which ours avoids where its rounding differs (docs/decisions/0028).
    tolerance = 0.02 if is_row_alone_different() else 1e-5
    for ours, theirs in zip(*answers, strict=True):
        assert ours
        assert theirs
        assert theirs.text == ours.text
        assert theirs.mean_logprob == pytest.approx(ours.mean_logprob, abs=tolerance, rel=0)
        assert theirs.cached_tokens == 0


class LastRowOnly:
    """A fake of a provider that computes the last row of a prompt alone, as OpenVINO does."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def get_output(self, name: str) -> Any:
        return self._generator.get_output(name)[:, -1:]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def test_rows_that_a_provider_leaves_out_are_computed_one_by_one(
    tiny_folder: Path, tiny_generator: Generator, prompt: Sequence[int]
) -> None:
    model = GenaiModel(tiny_folder, verify(tiny_folder), GENAI)
    model._generator = LastRowOnly(model._generator)
    rows = model.advance(0, prompt, 0)
    expected = [
        tiny_generator.model.decode([token], [past])[0] for past, token in enumerate(prompt)
    ]
    np.testing.assert_allclose(rows, np.stack(expected), atol=1e-5)


def changed_folder(folder: Path, target: Path, **session_options: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / CONFIG).read_text())
    config["model"]["decoder"]["session_options"] |= session_options
    (target / CONFIG).write_text(json.dumps(config))
    return target


def test_a_library_that_a_folder_names_is_not_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    folder = changed_folder(tiny_folder, tmp_path / "tiny", custom_ops_library="own.so")
    with pytest.raises(ModelFolderError, match=r"session_options\.custom_ops_library"):
        GenaiModel(folder, verify(tiny_folder), GENAI)


def test_a_provider_that_a_folder_names_is_not_used(tiny_folder: Path, tmp_path: Path) -> None:
    folder = changed_folder(tiny_folder, tmp_path / "tiny", provider_options=[{"cuda": {}}])
    model = GenaiModel(folder, verify(tiny_folder), GENAI)
    assert np.isfinite(model.prefill(0, [5, 6], 0)).all()


def test_a_folder_without_its_configuration_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = changed_folder(tiny_folder, tmp_path / "tiny")
    (folder / CONFIG).unlink()
    with pytest.raises(ModelFolderError, match=r"has no 'genai_config\.json'"):
        GenaiModel(folder, verify(tiny_folder), GENAI)


def test_what_it_does_not_load_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    folder = changed_folder(tiny_folder, tmp_path / "tiny")
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelFolderError, match=r"onnxruntime-genai 0\S+ does not load it: "):
        GenaiModel(folder, verify(tiny_folder), GENAI)


@pytest.fixture
def _no_genai(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where onnxruntime-genai is not installed."""
    entries = [entry for entry in sys.path if not (Path(entry) / "onnxruntime_genai").exists()]
    monkeypatch.setattr(sys, "path", entries)
    monkeypatch.delitem(sys.modules, "onnxruntime_genai", raising=False)


@pytest.mark.usefixtures("_no_genai")
def test_a_missing_package_is_named(tiny_folder: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"install onnxruntime-genai>=0\.18"):
        GenaiModel(tiny_folder, verify(tiny_folder), GENAI)


@pytest.mark.usefixtures("_no_genai")
async def test_a_worker_says_at_its_start_that_a_package_is_missing(tiny_folder: Path) -> None:
    models = {"tiny": EdgeModel(kind="edge", path=tiny_folder, engine="genai")}
    worker = WorkerEdge(Settings(nats=Nats(url="nats://127.0.0.1:1"), models=models))
    with pytest.raises(StartupError) as error:
        await worker.start()
    assert error.value.what.startswith('models.tiny: engine = "genai" needs onnxruntime-genai')


def test_a_provider_that_is_not_here_is_passed_over(tiny_folder: Path) -> None:
    options = EngineOptions(engine="genai", providers=("coreml", "qnn", "cuda"), kv_cache_mb=1)
    model = load(tiny_folder, options)
    assert isinstance(model.generator.model, GenaiModel)
    assert model.provider == "cpu"
    assert list(model.passed_over) == ["coreml", "qnn", "cuda"]
    assert "does not know it" in model.passed_over["coreml"]
    assert model.passed_over["qnn"] == "its package onnxruntime-qnn is not installed"
