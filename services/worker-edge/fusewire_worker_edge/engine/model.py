"""The model in onnxruntime: token ids in, logits out, with the key-value cache updated in place."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fusewire_worker_edge.engine.cache import KvCache
from fusewire_worker_edge.engine.options import EngineOptions
from fusewire_worker_edge.engine.sampling import Floats
from fusewire_worker_edge.folder import Manifest, ModelFolderError

SPIN_US = "20"
"""Measured on two cores: a tenth more tokens a second with 1.5B parameters and four tenths with 135M than without, for
the same CPU time; longer gains nothing."""
FIRST_ROW = "first_row"
"""An input that a graph may have and that may be left out, int64 [1]: the first row of `logits`, counted from the end
where it is negative. A vocabulary's product is the largest of all, and of a prompt the last row is wanted."""


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class OnnxModel:
    """A loaded model with its slots; implements `fusewire_worker_edge.engine.scheduler.Model`.

    The cache's arrays are bound as both past and present, so that GroupQueryAttention appends in place.

    Args:
        folder: a verified model folder.
        manifest: its manifest.
        options: threads, slots, memory.

    Raises:
        ModelFolderError: onnxruntime does not load it, or its inputs are not those of the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, options: EngineOptions) -> None:
        self.manifest = manifest
        self._session = self._load(folder, options)
        self._check_inputs(folder)
        self.budget = options.kv_tokens(manifest)
        self.slots = options.slots
        self.positions = min(manifest.context_length, self.budget)
        self._cache = KvCache(
            manifest.layers, manifest.kv_heads, manifest.head_size, self.slots, self.positions
        )
        self.move, self.keep = self._cache.move, self._cache.keep
        self.restore, self.release = self._cache.restore, self._cache.release
        self._bindings: dict[tuple[int, int], Any] = {}
        optional = {one.name for one in self._session.get_overridable_initializers()}
        self._gives_last_row = FIRST_ROW in optional
        self._all_rows, self._last_row = (
            ort.OrtValue.ortvalue_from_numpy(np.array([n], np.int64)) for n in (0, -1)
        )

    def prefill(self, slot: int, ids: Sequence[int], past: int) -> Floats:
        """See `Model.prefill`."""
        return np.asarray(self._advance(slot, ids, past, last_row=True)[-1])

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Floats:
        """See `Model.decode`."""
        total = np.array(lengths, np.int64) + 1
        mask = (np.arange(total.max()) < total[:, None]).astype(np.int64)
        return np.asarray(
            self._run(0, len(tokens), np.array(tokens, np.int64)[:, None], mask)[:, 0]
        )

    def advance(self, slot: int, ids: Sequence[int], past: int) -> Floats:
        """Append tokens to a sequence of `past`. Returns the logits after each of them, [ids, vocabulary]."""
        return self._advance(slot, ids, past, last_row=False)

    def _advance(self, slot: int, ids: Sequence[int], past: int, *, last_row: bool) -> Floats:
        mask = np.ones((1, past + len(ids)), np.int64)
        return np.asarray(
            self._run(slot, slot + 1, np.array([ids], np.int64), mask, last_row=last_row)[0]
        )

    def _run(
        self,
        start: int,
        stop: int,
        ids: np.ndarray[Any, Any],
        mask: np.ndarray[Any, Any],
        *,
        last_row: bool = False,
    ) -> Floats:
        """Run the slots from `start` to `stop`.

        Args:
            start, stop: which.
            ids: [slots, n], appended to each.
            mask: [slots, longest]; ones for what a slot then has, zeros behind it.
            last_row: whether the logits after the last token are enough.

        Returns:
            [slots, n, vocabulary], or [slots, 1, vocabulary] where the last row is enough and the graph can give it.
        """
        binding = self._bindings.get((start, stop)) or self._bind(start, stop)
        rows = ids.shape[1]
        if self._gives_last_row:
            rows = 1 if last_row else rows
            # As a value that exists already: the other way looks among the inputs that must be given alone.
            binding.bind_ortvalue_input(FIRST_ROW, self._last_row if last_row else self._all_rows)
        logits = np.empty((stop - start, rows, self.manifest.vocab_size), np.float32)
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        self._session.run_with_iobinding(binding)
        return logits

    def _bind(self, start: int, stop: int) -> Any:
        binding = self._session.io_binding()
        arrays = iter(self._cache.arrays)
        for layer in range(self.manifest.layers):
            for part in ("key", "value"):
                value = ort.OrtValue.ortvalue_from_numpy(next(arrays)[start:stop])
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
        self._bindings[start, stop] = binding
        return binding

    def _load(self, folder: Path, options: EngineOptions) -> ort.InferenceSession:
        session = ort.SessionOptions()
        session.intra_op_num_threads = options.threads or _usable_processors()
        session.inter_op_num_threads = 1
        session.log_severity_level = 3
        # Threads wait for the next operator of a step without sleeping, which would take longer than it; never for the
        # next step: a thread that spins for long starves its neighbours on a shared machine.
        session.add_session_config_entry("session.intra_op.allow_spinning", "1")
        session.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
        session.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            return ort.InferenceSession(
                folder / "model.onnx", session, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # noqa: BLE001 - onnxruntime's own exceptions share no base class
            raise ModelFolderError(
                folder, f"onnxruntime {ort.__version__} does not load it: {exc}"
            ) from None

    def _check_inputs(self, folder: Path) -> None:
        m = self.manifest
        cache = [None, m.kv_heads, None, m.head_size]
        wanted: dict[str, list[Any]] = {"input_ids": [None, None], "attention_mask": [None, None]}
        for layer in range(m.layers):
            wanted[f"past_key_values.{layer}.key"] = wanted[f"past_key_values.{layer}.value"] = (
                cache
            )
        found = {one.name: one.shape for one in self._session.get_inputs()}
        wrong = sorted(
            name
            for name in wanted.keys() | found.keys()
            if not _fits(found.get(name), wanted.get(name))
        )
        if wrong:
            raise ModelFolderError(
                folder, f"its graph and its manifest disagree about the input '{wrong[0]}'"
            )


def _fits(found: Sequence[int | str | None] | None, wanted: Sequence[int | None] | None) -> bool:
    """Whether an input has the sizes that are wanted. One that its graph leaves open has a name, or none."""
    if found is None or wanted is None or len(found) != len(wanted):
        return False
    return all(
        size == one for size, one in zip(found, wanted, strict=True) if isinstance(size, int)
    )
