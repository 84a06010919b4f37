"""How far a batch is, and what can be done about it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

RUNNING = ("validating", "in_progress", "finalizing", "cancelling")
_TONES = {"completed": "good", "failed": "bad", "expired": "bad", "cancelled": "warn"}


@dataclass(frozen=True)
class BatchProgress:
    """A batch with what follows from its row of `v_batch`."""

    row: Mapping[str, Any]
    now: datetime

    @property
    def is_running(self) -> bool:
        """Whether it may still change by itself."""
        return self.row["status"] in RUNNING

    @property
    def tone(self) -> str:
        """The colour of its status."""
        return _TONES.get(self.row["status"], "accent")

    @property
    def ended_lines(self) -> int:
        """Lines that ended."""
        return int(self.row["completed"]) + int(self.row["failed"])

    @property
    def done_share(self) -> float | None:
        """The share of its lines that ended; None before they are counted."""
        return self.ended_lines / self.row["total"] if self.row["total"] else None

    @property
    def failed_share(self) -> float:
        """The share of its lines that failed."""
        return int(self.row["failed"]) / self.row["total"] if self.row["total"] else 0.0

    @property
    def time_left_s(self) -> float | None:
        """Seconds until it is done, if it goes on as it went so far; None unless it runs."""
        eta_at = self.row["eta_at"]
        return None if eta_at is None else max((eta_at - self.now).total_seconds(), 0.0)

    @property
    def lines_per_s(self) -> float | None:
        """Lines per second: of what is left in the time left, or of all from begin to end."""
        if self.time_left_s:
            return (int(self.row["total"]) - self.ended_lines) / self.time_left_s
        if self.is_running or self.row["finished_at"] is None or not self.ended_lines:
            return None
        length_s = (self.row["finished_at"] - self.row["created_at"]).total_seconds()
        return self.ended_lines / length_s if length_s > 0 else None

    @property
    def cost_share(self) -> float | None:
        """The cost so far, of its limit; None without either."""
        cost_usd, most_usd = self.row["cost_usd"], self.row["max_cost_usd"]
        return cost_usd / most_usd if cost_usd is not None and most_usd else None

    @property
    def resume_command(self) -> str | None:
        """How it goes on with the lines that it still holds; None unless it was stopped.

        As in ingest: a batch that was cancelled, or that drains without a request to.
        """
        status, reason = self.row["status"], self.row["stop_reason"]
        if status != "cancelled" and (status != "cancelling" or reason == "request"):
            return None
        limit = " --max-cost USD" if reason == "budget" else ""
        return f"fusewire batch resume {self.row['batch_id']}{limit}"

    @property
    def retry_command(self) -> str | None:
        """How lines that failed are asked again; None where there are none, or while it runs.

        As in ingest: what was refused has no lines to ask, and what expired has those that it held.
        """
        is_cut = self.row["status"] == "expired" and self.ended_lines < self.row["total"]
        if self.is_running or self.row["status"] == "failed" or not (self.row["failed"] or is_cut):
            return None
        return f"fusewire batch retry {self.row['batch_id']}"
