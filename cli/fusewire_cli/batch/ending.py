"""The end of a batch: its report and the exit code."""

import shlex

from fusewire import replies
from fusewire.errors import EXIT_BAD_INPUT
from fusewire_cli.batch.faults import LineFault
from fusewire_cli.batch.output import Output
from fusewire_cli.screen import EXIT_BUDGET, EXIT_INTERRUPTED, EXIT_SOME_FAILED, note


def conclude(
    batch: replies.batches.Batch, output: Output | None, *, is_interrupted: bool = False
) -> int:
    """Report how a batch has ended and what can be done about it. Returns the exit code."""
    if batch["status"] == "failed":
        _report_refusal(batch)
        return EXIT_BAD_INPUT
    counts = batch["request_counts"]
    destination = f" → {output.name}" if output else ""
    note(f"{counts['completed']} answered, {counts['failed']} failed{destination}")
    if counts["failed"]:
        note(f"ask the failed again with: fusewire batch retry {batch['id']}")
    if batch["status"] == "expired":
        open_count = counts["total"] - counts["completed"]
        note(f"the completion window is over; {open_count} lines have no answer")
    if batch["status"] in ("cancelled", "cancelling"):
        _report_stop(batch, output)
    return exit_code(batch, is_interrupted=is_interrupted)


def _report_refusal(batch: replies.batches.Batch) -> None:
    """Print why a batch was refused, fault by fault."""
    errors = batch.get("errors")
    for error in errors["data"] if errors else ():
        note(str(LineFault(error.get("line") or 0, error.get("param"), error["message"])))
    note(f"fusewire: {batch['id']} was refused; nothing was spent")


def _report_stop(batch: replies.batches.Batch, output: Output | None) -> None:
    """Print why a batch was stopped, and the commands to go on with it."""
    reason = batch["x_fusewire"]["stop_reason"]
    options = ""
    if output and output.name != "stdout":
        options += f" -o {shlex.quote(output.name)}"
    if reason == "budget":
        options += " --max-cost USD"
    note(f"stopped: {reason}; nothing is lost. Go on with:")
    note(f"  fusewire batch resume {batch['id']}{options}")
    note("write the results so far with:")
    note(f"  fusewire batch results {batch['id']} --as-completed -o FILE")


def exit_code(batch: replies.batches.Batch, *, is_interrupted: bool = False) -> int:
    """The exit code of a command that has followed this batch."""
    if is_interrupted:
        return EXIT_INTERRUPTED
    if batch["status"] == "failed":
        return EXIT_BAD_INPUT
    if batch["status"] == "cancelled" and batch["x_fusewire"]["stop_reason"] == "budget":
        return EXIT_BUDGET
    if batch["status"] == "completed" and not batch["request_counts"]["failed"]:
        return 0
    return EXIT_SOME_FAILED
