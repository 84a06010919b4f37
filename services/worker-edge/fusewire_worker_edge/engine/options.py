"""Options of an engine: threads, batch rows, the memory of the KV cache, and its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusewire_worker_edge.folder import Manifest

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
        speculate: how the next tokens of an answer are guessed while it runs alone: `prompt` looks
            them up in its prompt and in itself, `off` guesses none.
        graph: the graph with prepacked weights that the engine's process found in `prepacked_dir`.
    """

    threads: int | None = None
    slots: int = 4
    kv_cache_mb: int = 2048
    prepacked_dir: str | None = None
    speculate: Literal["off", "prompt"] = "off"
    graph: Path | None = None

    def kv_tokens(self, manifest: Manifest) -> int:
        """Return how many positions fit into `kv_cache_mb`, at least 1."""
        per_token = 2 * manifest.layers * manifest.kv_heads * manifest.head_size * _FLOAT_BYTES
        return max(1, self.kv_cache_mb * _MEBIBYTE // per_token)
