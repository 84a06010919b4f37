"""How a batch has ended: what is said of it, and the exit code."""

import shlex

from fusewire import replies
from fusewire.errors import EXIT_BAD_INPUT
from fusewire_cli.batch.faults import LineFault
from fusewire_cli.batch.output import Output
from fusewire_cli.screen import EXIT_BUDGET, EXIT_INTERRUPTED, EXIT_SOME_FAILED, note


def conclude(
    batch: replies.batches.Batch, output: Output | None, *, is_interrupted: bool = False
) -> int:
    """Say how a batch has ended and what can be done; returns the exit code."""
    if batch["status"] == "failed":
        errors = batch.get("errors")
        for one in errors["data"] if errors else ():
            note(str(LineFault(one.get("line") or 0, one.get("param"), one["message"])))
        note(f"fusewire: {batch['id']} was refused; nothing was spent")
        return EXIT_BAD_INPUT
    counts, ours = batch["request_counts"], batch["x_fusewire"]
    where = f" → {output.name}" if output else ""
    note(f"{counts['completed']} answered, {counts['failed']} failed{where}")
    if counts["failed"]:
        note(f"ask the failed again with: fusewire batch retry {batch['id']}")
    if batch["status"] == "expired":
        note(
            f"the completion window is over; {counts['total'] - counts['completed']} lines have no answer"
        )
    if batch["status"] in ("cancelled", "cancelling"):
        out = f" -o {shlex.quote(output.name)}" if output and output.name != "stdout" else ""
        more = " --max-cost USD" if ours["stop_reason"] == "budget" else ""
        note(f"stopped: {ours['stop_reason']}; nothing is lost. Go on with:")
        note(f"  fusewire batch resume {batch['id']}{out}{more}")
        note(
            f"what is settled is got with:\n  fusewire batch results {batch['id']} --as-completed -o FILE"
        )
    return exit_code(batch, is_interrupted=is_interrupted)


def exit_code(batch: replies.batches.Batch, *, is_interrupted: bool = False) -> int:
    """How a command ends that has followed this batch."""
    if is_interrupted:
        return EXIT_INTERRUPTED
    if batch["status"] == "failed":
        return EXIT_BAD_INPUT
    if batch["status"] == "cancelled" and batch["x_fusewire"]["stop_reason"] == "budget":
        return EXIT_BUDGET
    return (
        0
        if batch["status"] == "completed" and not batch["request_counts"]["failed"]
        else EXIT_SOME_FAILED
    )
