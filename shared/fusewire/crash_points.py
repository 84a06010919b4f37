"""Named points at which a test can end a process, as a crash would (docs/decisions/0059).

For tests alone: without `FUSEWIRE_CRASH_FOLDER` in its environment a process never ends here.
"""

import os
import signal
from enum import StrEnum
from pathlib import Path

CRASH_FOLDER_ENV = "FUSEWIRE_CRASH_FOLDER"
"""Environment variable with the folder of planted points; read once, when this is imported."""

_folder = os.environ.get(CRASH_FOLDER_ENV)


class CrashPoint(StrEnum):
    """A place between two critical statements. The code reaches each in one place."""

    INGEST_STORED = "ingest.stored"
    """Prompts are written and not committed."""
    INGEST_COMMITTED = "ingest.committed"
    """Prompts are committed; nobody was told, and nothing is published."""
    INGEST_PARTS_PUBLISHED = "ingest.parts-published"
    """A prompt is not published; its large parts, if it has any, are in the object store."""
    INGEST_PUBLISHED = "ingest.published"
    """A prompt is published, and not marked as such."""
    INGEST_CANCELLED = "ingest.cancelled"
    """A cancellation is committed; judge and workers were not told."""
    INTAKE_COMMITTED = "intake.committed"
    """A prompt from FW_IN is committed; its producer was not told."""
    INTAKE_REPLIED = "intake.replied"
    """Its producer was told; its message is not acknowledged."""
    PARTS_COMMITTED = "parts.committed"
    """The large parts of a prompt are committed, the prompt is not."""
    PARTS_MARKED = "parts.marked"
    """A large part is marked as published, and not in the object store."""
    PARTS_WITHDRAWN = "parts.withdrawn"
    """The object store has no longer a large part that is marked as published."""

    BATCH_CHECKED = "batch.checked"
    """The lines of a batch are stored; it still counts as unchecked."""
    BATCH_LINES_STORED = "batch.lines-stored"
    """Lines are submitted, and not committed."""
    BATCH_LINES_COMMITTED = "batch.lines-committed"
    """Lines are submitted and committed; nothing is published."""
    BATCH_SETTLED = "batch.settled"
    """Lines are settled, and not committed."""
    BATCH_RENDERED = "batch.rendered"
    """The output of a batch was measured; it has not ended."""

    DISPATCHER_PLANNED = "dispatcher.planned"
    """A prompt is planned; nothing is published."""
    DISPATCHER_PLAN_PUBLISHED = "dispatcher.plan-published"
    """A plan is published, its tasks perhaps not."""
    DISPATCHER_TASKS_PUBLISHED = "dispatcher.tasks-published"
    """One message of tasks is published; the plan and other tasks perhaps not."""
    DISPATCHER_PROMPT_DONE = "dispatcher.prompt-done"
    """The plan and all tasks are published; the prompt is not acknowledged."""
    DISPATCHER_ROUND_DONE = "dispatcher.round-done"
    """All tasks of a round are published; the round is not acknowledged."""

    REMOTE_SENT = "worker-remote.sent"
    """The ledger says that a call is sent; it is not made."""
    REMOTE_CALLED = "worker-remote.called"
    """A call is made; its answer is in memory alone."""
    REMOTE_PAUSED = "worker-remote.paused"
    """The ledger says that a call failed; the next one is not noted."""
    REMOTE_TAKEN_OVER = "worker-remote.taken-over"
    """The ledger says that another worker's calls are unknowable; none is made again yet."""
    WORKER_PIECE_PUBLISHED = "worker.piece-published"
    """A piece of an answer is published; the answer is not whole."""
    WORKER_ANSWERED = "worker.answered"
    """A candidate is made, and not published."""
    WORKER_PUBLISHED = "worker.published"
    """A candidate is published, those of other calls of its message perhaps not."""
    WORKER_DONE = "worker.done"
    """All candidates of a message are published; it is not acknowledged."""
    FORWARDER_FORWARDED = "forwarder.forwarded"
    """The hub has a candidate that the outbox of a site still holds."""

    JUDGE_LOADED = "judge.loaded"
    """Fusions are read and locked; nothing is written."""
    JUDGE_STORED = "judge.stored"
    """What was decided is written, and not committed."""
    JUDGE_COMMITTED = "judge.committed"
    """Rounds or outcomes are committed, and not published."""
    JUDGE_ANNOUNCED = "judge.announced"
    """One message of a turn is published, others perhaps not."""
    JUDGE_TIMER_SET = "judge.timer-set"
    """A timer is set; messages of the same turn are perhaps not published."""
    JUDGE_PUBLISHED = "judge.published"
    """Rounds or outcomes are published; no mark is removed, and nothing is acknowledged."""
    JUDGE_TIMER_DONE = "judge.timer-done"
    """What a timer led to is committed and published; the timer is not acknowledged."""
    JUDGE_SWEPT = "judge.swept"
    """What the sweep decided is committed; nothing is published."""
    JUDGE_REPEATS_READ = "judge.repeats-read"
    """The sweep has found what is perhaps not published; it is not published again."""

    LOOP_ACKNOWLEDGED = "loop.acknowledged"
    """One message of a batch is acknowledged, others perhaps not."""
    BUS_BODY_SEALED = "bus.body-sealed"
    """The body of a message is in FW_DEAD_EDGE; FW_DEAD does not say why."""
    BUS_DEAD_LETTERED = "bus.dead-lettered"
    """A message is in FW_DEAD, and not acknowledged."""

    ERASE_ENTERED = "erase.entered"
    """An erasure is entered; nothing is erased."""
    ERASE_STREAM_ERASED = "erase.stream-erased"
    """The messages of one stream are erased, and not counted."""
    ERASE_MESSAGES_ERASED = "erase.messages-erased"
    """NATS has nothing more of a tenant; SQL has all."""
    ERASE_FUSIONS_ERASED = "erase.fusions-erased"
    """SQL has no fusion of a tenant any more, but all else."""
    ERASE_ROWS_ERASED = "erase.rows-erased"
    """SQL has nothing more; messages that came meanwhile are in NATS."""
    ERASE_FILES_REWRITTEN = "erase.files-rewritten"
    """All is erased; the erasure counts as interrupted."""


def reach(point: CrashPoint) -> None:
    """End this process by SIGKILL if the point is planted: a file of its name is in the folder.

    The file is removed first. So of several processes that reach a point at the same time one ends,
    and the point is passed by those that follow.
    """
    if _folder is not None:
        _end_if_planted(Path(_folder) / point)


def _end_if_planted(file: Path) -> None:
    try:
        file.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
