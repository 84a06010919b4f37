"""The options of `fusewire batch`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusewire import ids
from fusewire_cli.batch.inputs import Columns
from fusewire_cli.client import Form, Order

RUN_KEY = "fusewire_run"
"""The metadata key that identifies the file and options a batch was made of."""


@dataclass(frozen=True)
class RunOptions:
    """A file of prompts, and the options to run it with."""

    source: Path
    columns: Columns = field(default_factory=Columns)
    pool: str | None = None
    mode: str | None = None
    priority: str | None = None
    max_cost_usd: float | None = None
    completion_window: str = "24h"
    name: str | None = None

    def key(self, digest: str) -> str:
        """The idempotency key of the batch.

        It is made of the file's digest and the options that decide its answers, so the same file
        with the same options is the same batch.
        """
        key = ids.digest("run", digest, self.pool or "", self.mode or "", self.name or "")
        return key.hex()[:40]

    def body(self, file_id: str, endpoint: str, key: str) -> dict[str, Any]:
        """The body of the request that creates the batch."""
        extensions = {
            "pool": self.pool,
            "mode": self.mode,
            "priority": self.priority,
            "max_cost_usd": self.max_cost_usd,
        }
        metadata = {RUN_KEY: key}
        if self.name:
            metadata["name"] = self.name
        return {
            "input_file_id": file_id,
            "endpoint": endpoint,
            "completion_window": self.completion_window,
            "metadata": metadata,
            "x_fusewire": {name: value for name, value in extensions.items() if value is not None},
        }


@dataclass(frozen=True)
class ResultFormat:
    """Where and how results are written."""

    out: Path | None
    order: Order
    form: Form
