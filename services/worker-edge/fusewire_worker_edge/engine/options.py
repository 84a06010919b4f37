"""How an engine is to run a model."""

from dataclasses import dataclass

from fusewire_worker_edge.folder import Manifest

_FLOAT = 4
_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class EngineOptions:
    """What the configuration says of an edge model's engine.

    Args:
        threads: of one step; None takes the processors that the process may use.
        slots: answers that are generated at once.
        kv_cache_mb: mebibytes for keys and values, of running answers and of prompts kept for later.
    """

    threads: int | None = None
    slots: int = 4
    kv_cache_mb: int = 2048

    def kv_tokens(self, manifest: Manifest) -> int:
        """How many tokens' keys and values that memory holds."""
        per_token = 2 * manifest.layers * manifest.kv_heads * manifest.head_size * _FLOAT
        return max(1, self.kv_cache_mb * _MEBIBYTE // per_token)
