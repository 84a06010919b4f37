"""The metrics of an edge engine, from the loads that its process reports."""

from fusewire import metrics
from fusewire.contracts import PRIORITIES
from fusewire_worker_edge.engine.load import Load


class LoadMetrics:
    """`OnLoad` that sets the metrics of one engine.

    What a process computed after its last report is not counted when it is killed.

    Args:
        model: the name of the model in the configuration.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._last = Load()
        self(None)

    def __call__(self, load: Load | None) -> None:
        """Take over a report; None sets the gauges to 0, as the process has ended."""
        current = load or Load()
        self._set_gauges(current)
        # The counts begin at 0 in each process.
        self._count("prefill", current.prefilled_tokens - self._last.prefilled_tokens)
        self._count("decode", current.decoded_tokens - self._last.decoded_tokens)
        self._count("cached", current.cached_tokens - self._last.cached_tokens)
        self._last = current

    def _set_gauges(self, load: Load) -> None:
        metrics.EDGE_KV.labels(self._model, "running").set(load.kv_running)
        metrics.EDGE_KV.labels(self._model, "prefixes").set(load.kv_prefixes)
        metrics.EDGE_KV.labels(self._model, "limit").set(load.kv_limit)
        metrics.EDGE_DECODING.labels(self._model).set(load.decoding)
        for priority, count in zip(PRIORITIES, load.waiting, strict=True):
            metrics.EDGE_QUEUE.labels(self._model, priority).set(count)

    def _count(self, kind: str, tokens: int) -> None:
        metrics.EDGE_TOKENS.labels(self._model, kind).inc(max(0, tokens))
