"""How far a batch is, and which commands go on with it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fusewire_console.figures.batches import BatchProgress

NOW = datetime(2026, 11, 30, tzinfo=UTC)
ROW: dict[str, Any] = {
    "batch_id": "batch_1",
    "status": "in_progress",
    "stop_reason": None,
    "total": 100,
    "completed": 30,
    "failed": 10,
    "created_at": NOW - timedelta(seconds=80),
    "finished_at": None,
    "eta_at": NOW + timedelta(seconds=120),
    "cost_usd": 0.5,
    "max_cost_usd": 2.0,
}


def batch(**changes: Any) -> BatchProgress:
    return BatchProgress(ROW | changes, NOW)


def test_a_batch_that_runs() -> None:
    running = batch()
    assert running.is_running
    assert (running.ended_lines, running.done_share, running.failed_share) == (40, 0.4, 0.1)
    assert (running.time_left_s, running.lines_per_s) == (120.0, 0.5)
    assert running.cost_share == 0.25
    assert running.retry_command is None
    assert running.resume_command is None


def test_a_batch_that_has_ended_has_the_speed_of_its_whole_time() -> None:
    over = {"status": "completed", "finished_at": NOW, "eta_at": None, "completed": 90}
    ended = batch(**over)
    assert not ended.is_running
    assert (ended.time_left_s, ended.lines_per_s) == (None, 1.25)
    assert ended.retry_command == "fusewire batch retry batch_1"
    assert batch(**over | {"failed": 0}).retry_command is None


def test_a_batch_whose_lines_are_not_counted_yet() -> None:
    new = batch(status="validating", total=0, completed=0, failed=0, eta_at=None, cost_usd=None)
    assert (new.done_share, new.failed_share, new.lines_per_s, new.cost_share) == (
        None,
        0.0,
        None,
        None,
    )


def test_what_is_late_has_no_time_left() -> None:
    late = batch(eta_at=NOW - timedelta(seconds=1))
    assert (late.time_left_s, late.lines_per_s) == (0.0, None)


@pytest.mark.parametrize(
    ("status", "reason", "command"),
    [
        ("cancelled", "request", "fusewire batch resume batch_1"),
        ("cancelled", "budget", "fusewire batch resume batch_1 --max-cost USD"),
        ("cancelling", "interrupted", "fusewire batch resume batch_1"),
        ("cancelling", "request", None),
        ("expired", "expired", None),
        ("in_progress", None, None),
    ],
)
def test_what_was_stopped_is_resumed(status: str, reason: str | None, command: str | None) -> None:
    assert batch(status=status, stop_reason=reason).resume_command == command


def test_what_expired_is_asked_again_and_what_was_refused_is_not() -> None:
    assert batch(status="expired", failed=0, eta_at=None).retry_command is not None
    assert batch(status="failed", eta_at=None).retry_command is None
