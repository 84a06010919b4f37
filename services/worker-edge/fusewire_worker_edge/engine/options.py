"""Options of an engine: its library, threads, batch rows, the KV cache's memory, its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fusewire_worker_edge.folder import Manifest

EngineName = Literal["onnxruntime", "genai"]
"""The library that runs the model: onnxruntime, or onnxruntime-genai."""

CPU = "cpu"
"""The name of onnxruntime's own execution provider."""
_FLOAT_BYTES = 4
_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class EngineOptions:
    """The options of an edge model's engine, from the configuration.

    Args:
        threads: threads of one step of the model; None uses the processors that this process may
            use.
        slots: the largest batch, the answers that are generated at once.
        kv_cache_mb: mebibytes of KV cache, for running sequences and for cached prompts together.
        prepacked_dir: folder of prepacked weights; None packs the weights at each start.
        providers: execution providers in the order in which they are tried, the CPU last.
        speculate: how the next tokens of an answer are guessed while it runs alone: `prompt` looks
            them up in its prompt and in itself, `off` guesses none.
        graph: the graph with prepacked weights that the engine's process found in `prepacked_dir`.
        engine: the library that runs the model. `genai` has one slot and no prepacked weights.
        provider: that of `providers` which the engine's process is trying.
    """

    threads: int | None = None
    slots: int = 4
    kv_cache_mb: int = 2048
    prepacked_dir: str | None = None
    providers: Sequence[str] = (CPU,)
    speculate: Literal["off", "prompt"] = "off"
    graph: Path | None = None
    engine: EngineName = "onnxruntime"
    provider: str = CPU

    def kv_tokens(self, manifest: Manifest) -> int:
        """Return how many positions fit into `kv_cache_mb`, at least 1."""
        per_token = 2 * manifest.layers * manifest.kv_heads * manifest.head_size * _FLOAT_BYTES
        return max(1, self.kv_cache_mb * _MEBIBYTE // per_token)


def library_problem(engine: EngineName) -> tuple[str, str] | None:
    """Return why an engine cannot be used here, and how to mend it; None if it can."""
    if engine == "genai" and find_spec("onnxruntime_genai") is None:
        what = 'engine = "genai" needs onnxruntime-genai, which is not installed'
        return what, "install onnxruntime-genai>=0.18 where worker-edge runs, or leave `engine` out"
    return None
