"""The model in onnxruntime-genai, for execution providers that need it.

It runs one sequence at a time, whose keys and values it holds itself. On a CPU it computes what
`OnnxModel` does, and everything around the model is the same: scheduler, grammars, sampling.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from fusewire_worker_edge.engine.cache import KeyValues
from fusewire_worker_edge.engine.model import SPIN_US, without_first_row
from fusewire_worker_edge.engine.options import CPU, EngineOptions, library_problem
from fusewire_worker_edge.engine.processors import usable_processors
from fusewire_worker_edge.engine.providers import (
    SOURCES,
    ProviderError,
    library_path,
    split_name,
)
from fusewire_worker_edge.engine.sampling import Floats
from fusewire_worker_edge.folder import GRAPH, Manifest, ModelFolderError

CONFIG = "genai_config.json"
PROVIDERS = {
    "cuda": "cuda",
    "openvino": "OpenVINO",
    "qnn": "QNN",
    "tensorrt-rtx": "NvTensorRtRtx",
    "vitisai": "VitisAI",
    "webgpu": "WebGPU",
}
"""What onnxruntime-genai calls the execution providers, by their names in the configuration."""
_MEND = 'leave `engine = "genai"` out, or import the model again'


class GenaiModel:
    """A model loaded by onnxruntime-genai; implements `engine.scheduler.Model` with one slot.

    Args:
        folder: a verified model folder.
        manifest: the folder's manifest.
        options: threads and memory. The memory is taken at once.

    Raises:
        ModelFolderError: onnxruntime-genai is not installed, or does not load the folder.
    """

    slots = 1

    def __init__(self, folder: Path, manifest: Manifest, options: EngineOptions) -> None:
        if problem := library_problem("genai"):
            raise ModelFolderError(folder, *problem)
        _check_config(folder)
        self.positions = min(manifest.context_length, options.kv_tokens(manifest))
        self.budget = self.positions
        self._generator = _load(folder, options, self.positions)

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Floats:  # noqa: ARG002 - the signature is the protocol's
        """See `Model.prefill`."""
        return self._append(ids, past)

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Floats:
        """See `Model.decode`."""
        return self._append(tokens, lengths[0])[None]

    def advance(self, slot: int, ids: Sequence[int], past: int) -> Floats:  # noqa: ARG002 - the signature is the protocol's
        """See `Model.advance`."""
        self._append(ids, past)
        rows = np.asarray(self._generator.get_output("logits")[0], np.float32)
        if len(rows) == len(ids):
            return rows
        # OpenVINO computes the last row only.
        return np.stack([self._append([token], past + i) for i, token in enumerate(ids)])

    def move(self, source: int, target: int, length: int) -> None:
        """See `Model.move`; there is no second slot."""

    def swap(self, slots: tuple[int, int], lengths: tuple[int, int]) -> None:
        """See `Model.swap`; there is no second slot."""

    def keep(self, slot: int, length: int) -> KeyValues | None:  # noqa: ARG002 - the signature is the protocol's
        """See `Model.keep`; onnxruntime-genai hands no keys and values out."""
        return None

    def restore(self, slot: int, key_values: KeyValues, length: int) -> None:
        """See `Model.restore`; nothing was kept."""

    def release(self, slot: int) -> None:
        """See `Model.release`; the memory is used for the next sequence."""

    def _append(self, ids: Sequence[int], past: int) -> Floats:
        """Append tokens after the first `past` ones. Returns the last logits, [vocabulary]."""
        self._generator.rewind_to(past)
        self._generator.append_tokens(np.array(ids, np.int32))
        return np.asarray(self._generator.get_logits()[0, -1])


def _load(folder: Path, options: EngineOptions, positions: int) -> Any:
    """Return a generator of onnxruntime-genai's with room for `positions` tokens."""
    import onnxruntime_genai as og  # noqa: PLC0415 - not installed with the worker

    session_options: dict[str, Any] = {
        "intra_op_num_threads": options.threads or usable_processors(),
        "inter_op_num_threads": 1,
        "log_severity_level": 3,
        # As in `OnnxModel`.
        "session.intra_op.allow_spinning": "1",
        "session.intra_op.spin_duration_us": SPIN_US,
        "session.force_spinning_stop": "1",
    }
    overlay = {"model": {"decoder": {"filename": GRAPH, "session_options": session_options}}}
    try:
        config = og.Config(str(folder))
        config.clear_providers()
        if options.provider != CPU:
            _add_provider(config, options.provider)
            # It keeps no reference to the bytes, which have to last until the model is loaded.
            graph = without_first_row(folder / GRAPH)
            config.add_model_data(GRAPH, graph)
        config.overlay(json.dumps(overlay))
        model = og.Model(config)
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=positions, past_present_share_buffer=True)
        return og.Generator(model, params)
    except ProviderError:
        raise
    except Exception as exc:  # noqa: BLE001 - its exceptions share no base class
        raise ModelFolderError(
            folder, f"onnxruntime-genai {og.__version__} does not load it: {exc}"
        ) from None


def _add_provider(config: Any, name: str) -> None:
    """Have onnxruntime-genai use an execution provider, of one kind of device if the name has it.

    Raises:
        ProviderError: onnxruntime-genai does not know it, or its package is not installed.
    """
    import onnxruntime_genai as og  # noqa: PLC0415 - not installed with the worker

    source_name, device = split_name(name)
    if source_name not in PROVIDERS:
        raise ProviderError(f"onnxruntime-genai {og.__version__} does not know it")
    source, genai_name = SOURCES[source_name], PROVIDERS[source_name]
    if source.package:
        _register_library(source.name, source.package)
    config.append_provider(genai_name)
    if device:
        config.set_decoder_provider_options_hardware_device_type(genai_name, device)


@functools.cache
def _register_library(name: str, package: str) -> None:
    """Load the library of a provider's package into this process, once. Raises ProviderError."""
    import onnxruntime_genai as og  # noqa: PLC0415 - not installed with the worker

    og.register_execution_provider_library(name, library_path(package))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _DecoderOptions(_Part):
    log_id: str = ""
    provider_options: list[Any] = []


class _Decoder(_Part):
    session_options: _DecoderOptions
    filename: str
    head_size: int
    hidden_size: int
    inputs: dict[Literal["input_ids", "attention_mask", "past_key_names", "past_value_names"], str]
    outputs: dict[Literal["logits", "present_key_names", "present_value_names"], str]
    num_attention_heads: int
    num_hidden_layers: int
    num_key_value_heads: int
    sliding_window: dict[str, Any] = {}


class _DecoderModel(_Part):
    bos_token_id: int
    context_length: int
    decoder: _Decoder
    eos_token_id: int | list[int]
    pad_token_id: int
    type: str
    vocab_size: int


class _GenaiConfig(_Part):
    """The settings that a folder's `genai_config.json` may hold.

    Others would have onnxruntime-genai load libraries and graphs that `folder.verify` has not seen.
    """

    model: _DecoderModel
    search: dict[str, Any] = {}


def _check_config(folder: Path) -> None:
    try:
        _GenaiConfig.model_validate_json((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise ModelFolderError(
            folder, f"it has no '{CONFIG}', which engine = \"genai\" reads"
        ) from None
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFolderError(
            folder,
            f"'{CONFIG}' holds what this engine does not pass on: {where}: {first['msg']}",
            _MEND,
        ) from None
