"""Measure a model folder on this machine: speed, memory, and fidelity to its source."""

from fusewire_worker_edge.measure.loads import StartMeasurement, measure_loads
from fusewire_worker_edge.measure.model import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    Measurement,
    compare,
    measure,
)

__all__ = [
    "ANSWER_TOKENS",
    "PROMPT_TOKENS",
    "Measurement",
    "StartMeasurement",
    "compare",
    "measure",
    "measure_loads",
]
