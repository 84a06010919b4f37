"""The model in onnxruntime: token ids in, logits out, with the key-value cache updated in place."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fusewire_worker_edge.engine.sampling import Floats
from fusewire_worker_edge.folder import Manifest, ModelFolderError

CHUNK = 128
"""The most tokens that go through the model at once; between chunks a request can be cancelled."""


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Slot:
    """The key-value cache of one sequence, and how many of its positions are filled.

    The arrays are as long as the context. They are bound as both past and present, so that
    GroupQueryAttention appends in place; memory that was never written is never touched.
    """

    def __init__(self, session: ort.InferenceSession, manifest: Manifest) -> None:
        self.length = 0
        self.binding = session.io_binding()
        shape = (1, manifest.kv_heads, manifest.context_length, manifest.head_size)
        for layer in range(manifest.layers):
            for part in ("key", "value"):
                cache = ort.OrtValue.ortvalue_from_numpy(np.empty(shape, np.float32))
                self.binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", cache)
                self.binding.bind_ortvalue_output(f"present.{layer}.{part}", cache)

    def clear(self) -> None:
        """Forget the sequence."""
        self.length = 0


class OnnxModel:
    """A loaded model.

    Args:
        folder: a verified model folder.
        manifest: its manifest.
        threads: how many threads one step uses; None takes the processors that this process may use.

    Raises:
        ModelFolderError: onnxruntime does not load it, or its inputs are not those of the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None) -> None:
        self.manifest = manifest
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or _usable_processors()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A spinning thread starves its neighbours on a shared machine, and gains little on an idle one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # noqa: BLE001 - onnxruntime's own exceptions share no base class
            raise ModelFolderError(folder, f"onnxruntime {ort.__version__} does not load it: {exc}") from None
        self._check_inputs(folder)
        self._ones = np.ones((1, manifest.context_length), np.int64)
        self._logits = np.empty(CHUNK * manifest.vocab_size, np.float32)

    def new_slot(self) -> Slot:
        """An empty slot."""
        return Slot(self._session, self.manifest)

    def advance(self, slot: Slot, ids: Sequence[int]) -> Floats:
        """Append at most `CHUNK` tokens to the sequence.

        Returns:
            The logits after each of them, [len(ids), vocabulary]; overwritten by the next call.
        """
        count, vocabulary = len(ids), self.manifest.vocab_size
        total = slot.length + count
        logits = self._logits[: count * vocabulary].reshape(1, count, vocabulary)
        slot.binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        slot.binding.bind_cpu_input("attention_mask", self._ones[:, :total])
        slot.binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        self._session.run_with_iobinding(slot.binding)
        slot.length = total
        return np.asarray(logits[0])

    def _check_inputs(self, folder: Path) -> None:
        m = self.manifest
        cache: list[Any] = ["batch", m.kv_heads, "past", m.head_size]
        wanted: dict[str, list[Any]] = {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "total"]}
        for layer in range(m.layers):
            wanted[f"past_key_values.{layer}.key"] = wanted[f"past_key_values.{layer}.value"] = cache
        found = {i.name: i.shape for i in self._session.get_inputs()}
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if wrong:
            raise ModelFolderError(folder, f"its graph and its manifest disagree about the input '{wrong[0]}'")
