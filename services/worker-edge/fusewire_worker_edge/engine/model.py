"""The model in onnxruntime: token ids in, logits out, with the KV cache updated in place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto

from fusewire_worker_edge.engine.cache import KvCache
from fusewire_worker_edge.engine.kernels import is_row_alone_different
from fusewire_worker_edge.engine.options import CPU, EngineOptions
from fusewire_worker_edge.engine.processors import usable_processors
from fusewire_worker_edge.engine.providers import ProviderError, find_provider
from fusewire_worker_edge.engine.sampling import Floats
from fusewire_worker_edge.folder import GRAPH, Manifest, ModelFolderError

SPIN_US = "20"
"""How long threads spin for their next operator, in microseconds.

Measured on two cores against no spinning, for the same CPU time: 10% more tokens a second with 1.5B
parameters, 40% more with 135M. Spinning longer gains nothing.
"""
FIRST_ROW = "first_row"
"""Name of an optional input of a graph, int64 [1]: the first row of `logits` to compute.

A negative number counts from the end. The product with the vocabulary's matrix is the largest of
all, and prefill needs it for the last row only.
"""
EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"
"""Onnxruntime's name for the folder of the weights of a graph that is handed over as bytes."""


class OnnxModel:
    """A loaded model with its KV cache; implements `fusewire_worker_edge.engine.scheduler.Model`.

    A slot is a batch row of the KV cache. The cache's arrays are bound as both past and present, so
    GroupQueryAttention appends in place (docs/decisions/0029).

    Args:
        folder: a verified model folder.
        manifest: the folder's manifest.
        options: threads, slots, memory and the execution provider.

    Raises:
        ModelFolderError: onnxruntime cannot load the graph, or its inputs do not fit the manifest.
        ProviderError: the provider cannot be used.
    """

    def __init__(self, folder: Path, manifest: Manifest, options: EngineOptions) -> None:
        self.manifest = manifest
        self._session = self._load(folder, options)
        self._check_inputs(folder)
        self.budget = options.kv_tokens(manifest)
        self.slots = options.slots
        self.positions = min(manifest.context_length, self.budget)
        # One position more, for the token that keeps another company.
        self._cache = KvCache(
            manifest.layers, manifest.kv_heads, manifest.head_size, self.slots, self.positions + 1
        )
        self.move, self.swap = self._cache.move, self._cache.swap
        self.keep = self._cache.keep
        self.restore, self.release = self._cache.restore, self._cache.release
        self._bindings: dict[tuple[int, int], Any] = {}
        optional_inputs = {node.name for node in self._session.get_overridable_initializers()}
        self._has_first_row = FIRST_ROW in optional_inputs
        self.avoids_one_row = options.provider == CPU and is_row_alone_different()
        """Whether it never computes a single row (docs/decisions/0028)."""

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Floats:
        """See `Model.prefill`."""
        padding = self._padding(len(ids))
        logits = self._advance(slot, ids, past, last_rows=2 if self.avoids_one_row else 1)
        return np.asarray(logits[-1 - padding])

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Floats:
        """See `Model.decode`."""
        # The spare row, an empty sequence, keeps a single one company.
        padding = self._padding(len(tokens))
        ids = [tokens[0]] * padding + list(tokens)
        new_lengths = np.array([0] * padding + list(lengths), np.int64) + 1
        mask = (np.arange(new_lengths.max()) < new_lengths[:, None]).astype(np.int64)
        batch = np.array(ids, np.int64)[:, None]
        return np.asarray(self._run(-padding, len(tokens), batch, mask)[padding:, 0])

    def advance(self, slot: int, ids: Sequence[int], past: int) -> Floats:
        """See `Model.advance`."""
        return self._advance(slot, ids, past)[: len(ids)]

    def _advance(
        self, slot: int, ids: Sequence[int], past: int, *, last_rows: int | None = None
    ) -> Floats:
        # What is computed after the last token is overwritten later, and seen by none before it.
        batch = np.array([[*ids, *[ids[-1]] * self._padding(len(ids))]], np.int64)
        mask = np.ones((1, past + batch.shape[1]), np.int64)
        return np.asarray(self._run(slot, slot + 1, batch, mask, last_rows=last_rows)[0])

    def _padding(self, rows: int) -> int:
        """How many rows to compute besides."""
        return int(self.avoids_one_row and rows == 1)

    def _run(
        self,
        start: int,
        stop: int,
        ids: np.ndarray[Any, Any],
        mask: np.ndarray[Any, Any],
        *,
        last_rows: int | None = None,
    ) -> Floats:
        """Run the model on the slots from `start` up to, but not including, `stop`.

        Args:
            start: the first slot; -1 for the spare row.
            stop: the slot after the last.
            ids: [slots, n], the tokens to append to each sequence.
            mask: [slots, longest]; ones for the positions of a sequence after this run, then zeros.
            last_rows: after how many of the last tokens logits are needed; None for all.

        Returns:
            the logits, [slots, n, vocabulary]; [slots, last_rows, vocabulary] if that is set and
            the graph has the input `FIRST_ROW`.
        """
        binding = self._bindings.get((start, stop)) or self._bind(start, stop)
        rows = ids.shape[1]
        if self._has_first_row:
            rows = last_rows or rows
            first_row = np.array([-last_rows if last_rows else 0], np.int64)
            # `bind_cpu_input` knows the required inputs only; an OrtValue can bind an optional one.
            binding.bind_ortvalue_input(FIRST_ROW, ort.OrtValue.ortvalue_from_numpy(first_row))
        logits = np.empty((stop - start, rows, self.manifest.vocab_size), np.float32)
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        self._session.run_with_iobinding(binding)
        return logits

    def _bind(self, start: int, stop: int) -> Any:
        """Bind the KV cache of the slots from `start` to `stop` as past and as present."""
        binding = self._session.io_binding()
        rows = iter(self._cache.rows)
        for layer in range(self.manifest.layers):
            for part in ("key", "value"):
                value = ort.OrtValue.ortvalue_from_numpy(next(rows)[start + 1 : stop + 1])
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
        self._bindings[start, stop] = binding
        return binding

    def _load(self, folder: Path, options: EngineOptions) -> ort.InferenceSession:
        provider = find_provider(options.provider)
        session = ort.SessionOptions()
        session.intra_op_num_threads = options.threads or usable_processors()
        session.inter_op_num_threads = 1
        session.log_severity_level = 3
        # Within a step, threads spin for the next operator, since waking up takes longer than the
        # operator. Between steps they sleep: spinning starves others on a shared machine.
        session.add_session_config_entry("session.intra_op.allow_spinning", "1")
        session.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
        session.add_session_config_entry("session.force_spinning_stop", "1")
        graph: Path | bytes = options.graph or folder / GRAPH
        if provider.name != CPU:
            graph = without_first_row(folder / GRAPH)
            session.add_session_config_entry(EXTERNAL_DATA, str(folder))
        try:
            return provider.open_session(graph, session)
        except ProviderError:
            raise
        except Exception as exc:  # noqa: BLE001 - onnxruntime's own exceptions share no base class
            raise ModelFolderError(
                folder, f"onnxruntime {ort.__version__} does not load it: {exc}"
            ) from None

    def _check_inputs(self, folder: Path) -> None:
        m = self.manifest
        cache = [None, m.kv_heads, None, m.head_size]
        expected: dict[str, list[Any]] = {"input_ids": [None, None], "attention_mask": [None, None]}
        for layer in range(m.layers):
            expected[f"past_key_values.{layer}.key"] = cache
            expected[f"past_key_values.{layer}.value"] = cache
        actual = {node.name: node.shape for node in self._session.get_inputs()}
        for name in sorted(expected.keys() | actual.keys()):
            if not _fits(actual.get(name), expected.get(name)):
                raise ModelFolderError(
                    folder, f"its graph and its manifest disagree about the input '{name}'"
                )


def without_first_row(graph: Path) -> bytes:
    """Return a graph that always computes all rows.

    Inputs that may be left out are unknown to most providers; OpenVINO refuses such a graph.
    """
    model = ModelProto.FromString(graph.read_bytes())
    inputs = [node for node in model.graph.input if node.name != FIRST_ROW]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return bytes(model.SerializeToString())


def _fits(actual: Sequence[int | str | None] | None, expected: Sequence[int | None] | None) -> bool:
    """Whether an input has the expected sizes. An open size of the graph is a name or None."""
    if actual is None or expected is None or len(actual) != len(expected):
        return False
    pairs = zip(actual, expected, strict=True)
    return all(size == expected_size for size, expected_size in pairs if isinstance(size, int))
