"""Execution providers: real answers of onnxruntime, whose own two stand in for others here.

The CPU's is listed with its device, as those of plugin libraries are; Azure's is built in and
computes no operator of a model.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from fusewire.settings import EDGE_DEVICES, EDGE_PROVIDERS
from fusewire_worker_edge.engine import providers
from fusewire_worker_edge.engine.child import CheckedModel, load
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.model import OnnxModel
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.providers import (
    Provider,
    ProviderError,
    ProviderSource,
    find_provider,
)
from fusewire_worker_edge.folder import GRAPH

MODULE = "onnxruntime_ep_openvino"


@pytest.fixture(autouse=True)
def _without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no provider's package were installed."""
    monkeypatch.setitem(sys.modules, MODULE, None)
    providers._register_library.cache_clear()


@pytest.fixture
def with_device(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ProviderSource("CPUExecutionProvider")
    monkeypatch.setitem(providers.SOURCES, "openvino", source)


@pytest.fixture
def without_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ProviderSource("AzureExecutionProvider")
    monkeypatch.setitem(providers.SOURCES, "vitisai", source)


def load_on(folder: Path, *names: str, prepacked_dir: Path | None = None) -> CheckedModel:
    cache = str(prepacked_dir) if prepacked_dir else None
    return load(folder, EngineOptions(threads=1, providers=names, prepacked_dir=cache))


def test_the_configuration_knows_the_same_names() -> None:
    assert set(providers.SOURCES) == {*EDGE_PROVIDERS, "cpu"}
    assert set(providers.DEVICES) == set(EDGE_DEVICES)


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(ProviderError, match="its package onnxruntime-ep-openvino is not installed"):
        find_provider("openvino:NPU")


def test_a_provider_that_onnxruntime_lacks_is_not_there() -> None:
    with pytest.raises(ProviderError, match=r"onnxruntime \d.* is installed without it"):
        find_provider("cuda")


def test_a_library_that_cannot_be_loaded_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "provider.so"
    library.write_text("no library")
    module = SimpleNamespace(get_library_path=lambda: str(library))
    monkeypatch.setitem(sys.modules, MODULE, module)
    with pytest.raises(ProviderError, match=r"cannot be loaded: .*provider\.so"):
        find_provider("openvino")


def test_a_package_that_fails_at_its_import_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{MODULE}.py").write_text("raise RuntimeError('no driver')")
    monkeypatch.delitem(sys.modules, MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProviderError, match="cannot be imported: no driver"):
        find_provider("openvino")


def test_the_device_is_the_one_that_is_named_or_the_first_there_is(with_device: None) -> None:
    assert find_provider("openvino").name == find_provider("openvino:CPU").name == "openvino:CPU"
    with pytest.raises(ProviderError, match="it has no NPU here, only CPU"):
        find_provider("openvino:NPU")


def test_a_provider_that_is_built_in_tells_no_devices(without_operators: None) -> None:
    assert find_provider("vitisai").name == "vitisai"
    with pytest.raises(ProviderError, match="name it without one"):
        find_provider("vitisai:NPU")


def test_the_first_that_can_be_used_is(
    tiny_folder: Path, tiny_generator: Generator, with_device: None, without_operators: None
) -> None:
    loaded = load_on(tiny_folder, "cuda", "vitisai", "openvino", "cpu")
    ids = tiny_generator.vocabulary.ids("hello there, how are you?")

    assert loaded.provider == "openvino:CPU"
    assert list(loaded.passed_over) == ["cuda", "vitisai"]
    assert loaded.passed_over["vitisai"] == "it computes no operator of this model's graph"
    assert loaded.generator.greedy(ids, 20) == tiny_generator.greedy(ids, 20)


def test_other_providers_are_given_no_input_that_may_be_left_out(
    tiny_folder: Path, with_device: None
) -> None:
    models = [load_on(tiny_folder, *names).generator.model for names in [("openvino",), ("cpu",)]]
    assert [isinstance(model, OnnxModel) and model._has_first_row for model in models] == [
        False,
        True,
    ]


def test_onnxruntime_does_not_turn_to_the_cpu_by_itself(
    tiny_folder: Path, with_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def refuse(_session: Any, names: Any, *_: Any) -> None:
        attempts.append(names)
        raise RuntimeError("no driver")

    monkeypatch.setattr(ort.InferenceSession, "_create_inference_session", refuse)
    with pytest.raises(RuntimeError, match="no driver"):
        find_provider("openvino").open_session(tiny_folder / GRAPH, ort.SessionOptions())
    assert len(attempts) == 1


def test_the_cpu_is_used_where_no_other_can_be(tiny_folder: Path) -> None:
    loaded = load_on(tiny_folder, "cuda", "openvino:GPU", "cpu")
    assert (loaded.provider, list(loaded.passed_over)) == ("cpu", ["cuda", "openvino:GPU"])
    assert loaded.generator.golden_agreement() == 1


class CopyingBinding(ort.IOBinding):  # type: ignore[misc]  # onnxruntime publishes no types
    """Copies inputs when they are bound, as onnxruntime does into the memory of another device."""

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        copy = ort.OrtValue.ortvalue_from_numpy(value.numpy().copy())
        super().bind_ortvalue_input(name, copy)


def test_a_provider_that_goes_on_with_a_copy_of_the_kv_cache_is_passed_over(
    tiny_folder: Path, with_device: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_session = Provider.open_session

    def open_copying(self: Provider, graph: Path | bytes, options: Any) -> Any:
        session = open_session(self, graph, options)
        if self.device is not None:
            session.io_binding = lambda: CopyingBinding(session)
        return session

    monkeypatch.setattr(Provider, "open_session", open_copying)
    loaded = load_on(tiny_folder, "openvino", "cpu")
    assert loaded.provider == "cpu"
    assert "golden answer" in loaded.passed_over["openvino"]


def test_prepacked_weights_are_for_the_cpu_alone(
    tiny_folder: Path, tmp_path: Path, with_device: None
) -> None:
    other = load_on(tiny_folder, "openvino", "cpu", prepacked_dir=tmp_path)
    assert (other.provider, other.weights) == ("openvino:CPU", None)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - its names are compared

    made, used = (load_on(tiny_folder, "cuda", "cpu", prepacked_dir=tmp_path) for _ in range(2))
    assert made.weights
    assert used.weights
    assert (made.weights.state, used.weights.state) == ("made", "used")
