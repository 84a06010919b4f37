"""Execution providers: what onnxruntime computes a graph with.

A provider is named as in the configuration: `openvino`, or `openvino:NPU` for a device of that
kind. Some are parts of an installation of onnxruntime, others libraries of a package of their own
(https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html), which are loaded
only if the configuration names them.
"""

import functools
import importlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from fusewire_worker_edge.engine.options import CPU

DEVICES = ("NPU", "GPU", "CPU")
"""The kinds of devices that onnxruntime tells apart, the one to prefer first."""


class ProviderError(Exception):
    """A provider cannot be used on this machine or for this graph. The message says why."""


@dataclass(frozen=True, slots=True)
class ProviderSource:
    """Where a provider comes from.

    Args:
        name: its name in onnxruntime.
        package: the package with its library; None if it comes with onnxruntime. The package's
            module has the same name, and the function `get_library_path`.
    """

    name: str
    package: str | None = None


SOURCES = {
    CPU: ProviderSource("CPUExecutionProvider"),
    "coreml": ProviderSource("CoreMLExecutionProvider"),
    "cuda": ProviderSource("CUDAExecutionProvider"),
    "openvino": ProviderSource("OpenVINOExecutionProvider", "onnxruntime-ep-openvino"),
    "qnn": ProviderSource("QNNExecutionProvider", "onnxruntime-qnn"),
    "tensorrt-rtx": ProviderSource(
        "NvTensorRTRTXExecutionProvider", "onnxruntime-ep-nv-tensorrt-rtx"
    ),
    "vitisai": ProviderSource("VitisAIExecutionProvider"),
    "webgpu": ProviderSource("WebGpuExecutionProvider", "onnxruntime-ep-webgpu"),
}
"""By the names in the configuration, `fusewire.settings.EDGE_PROVIDERS`."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider that this machine has.

    Args:
        name: as in the configuration, with the kind of its device if onnxruntime tells it.
        source_name: its name in onnxruntime.
        device: the device of a plugin library, an `OrtEpDevice`; None if it is built in.
    """

    name: str
    source_name: str
    device: Any = None

    def open_session(self, graph: Path | bytes, options: ort.SessionOptions) -> Any:
        """Load a graph. What the provider does not know, onnxruntime gives to the CPU.

        Raises:
            ProviderError: the provider knows no operator of the graph.
            Exception: onnxruntime's own, without a common base class, if it cannot load the graph.
        """
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        names: list[str] | None = [self.source_name]
        if self.device is not None:
            options.add_provider_for_devices([self.device], {})
            names = None
        # Without this, onnxruntime turns to the CPU by itself, and only prints that it did.
        session = ort.InferenceSession(graph, options, providers=names, enable_fallback=0)
        parts = session.get_provider_graph_assignment_info()
        if self.source_name not in {part.ep_name for part in parts}:
            raise ProviderError("it computes no operator of this model's graph")
        return session


def split_name(name: str) -> tuple[str, str | None]:
    """Return the source and the kind of device that a name in the configuration tells.

    >>> split_name("openvino:NPU"), split_name("cpu")
    (('openvino', 'NPU'), ('cpu', None))
    """
    source, _, device = name.partition(":")
    return source, device or None


def choose_device(kinds: Collection[str], kind: str | None) -> str | None:
    """Choose among the kinds of devices that there are; None if that which is named is not there.

    >>> choose_device(["CPU", "GPU"], None), choose_device(["CPU", "GPU"], "NPU")
    ('GPU', None)
    """
    choices = [kind] if kind else DEVICES
    return next((choice for choice in choices if choice in kinds), None)


def find_provider(name: str) -> Provider:
    """Find the provider of a name in the configuration. No graph is loaded.

    Raises:
        ProviderError: this machine does not have it.
    """
    source_name, kind = split_name(name)
    source = SOURCES[source_name]
    if source_name == CPU:
        return Provider(CPU, source.name)
    problem = _register_library(source)
    devices = {
        device.device.type.name: device
        # Of several of one kind the first counts.
        for device in reversed(ort.get_ep_devices())
        if device.ep_name == source.name
    }
    if devices:
        choice = choose_device(devices, kind)
        if choice is None:
            raise ProviderError(f"it has no {kind} here, only {', '.join(sorted(devices))}")
        return Provider(f"{source_name}:{choice}", source.name, devices[choice])
    if problem:
        raise ProviderError(problem)
    return _built_in(source_name, source, kind)


def _built_in(source_name: str, source: ProviderSource, kind: str | None) -> Provider:
    if source.name not in ort.get_available_providers():
        if source.package:
            raise ProviderError("its library finds no device here")
        raise ProviderError(f"onnxruntime {ort.__version__} is installed without it")
    if kind:
        raise ProviderError("this onnxruntime does not tell its devices; name it without one")
    return Provider(source_name, source.name)


@functools.cache
def _register_library(source: ProviderSource) -> str | None:
    """Load a provider's library into this process, once. Return why it cannot be, or None."""
    if source.package is None or source.name in ort.get_available_providers():
        return None
    try:
        path = library_path(source.package)
        # By the name in onnxruntime: some libraries take that which they are registered by.
        ort.register_execution_provider_library(source.name, path)
    except ProviderError as exc:
        return str(exc)
    except Exception as exc:  # noqa: BLE001 - onnxruntime's own exceptions share no base class
        return f"its library cannot be loaded: {exc}"
    return None


def library_path(package: str) -> str:
    """Return the path of the library in a provider's package.

    Raises:
        ProviderError: the package is not installed, or cannot be imported.
    """
    try:
        module = importlib.import_module(package.replace("-", "_"))
        return str(module.get_library_path())
    except ModuleNotFoundError:
        raise ProviderError(f"its package {package} is not installed") from None
    except Exception as exc:  # noqa: BLE001 - a package may do anything when it is imported
        raise ProviderError(f"its package {package} cannot be imported: {exc}") from None
