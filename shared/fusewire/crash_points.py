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
    """Prompts are committed; nobody was told, nothing is published."""
    INGEST_PARTS_STORED = "ingest.parts-stored"
    """The large parts of a prompt are in the object store; the prompt is not published."""
    INGEST_PUBLISHED = "ingest.published"
    """A prompt is published, and not marked as such."""
    INGEST_MARKED = "ingest.marked"
    """Prompts are marked as published."""
    INGEST_CANCELLED = "ingest.cancelled"
    """Cancellations are committed; nobody was told."""
    INGEST_BUS_COMMITTED = "ingest.bus-committed"
    """A prompt from FW_IN is committed; its producer was not told."""
    INGEST_BUS_REPLIED = "ingest.bus-replied"
    """Its producer was told; its message is not acknowledged."""

    DISPATCHER_PLANNED = "dispatcher.planned"
    """A prompt is planned; nothing is published."""
    DISPATCHER_PLAN_PUBLISHED = "dispatcher.plan-published"
    """The plan is published, its tasks perhaps not."""
    DISPATCHER_TASKS_PUBLISHED = "dispatcher.tasks-published"
    """One message of tasks is published, others perhaps not."""
    DISPATCHER_PROMPT_DONE = "dispatcher.prompt-done"
    """The plan and all tasks are published; the prompt is not acknowledged."""
    DISPATCHER_ROUND_DONE = "dispatcher.round-done"
    """All tasks of a round are published; it is not acknowledged."""

    REMOTE_SENT = "worker-remote.sent"
    """`sent` is in the ledger; the call is not made."""
    REMOTE_CALLED = "worker-remote.called"
    """The call is made; its answer is nowhere but in memory."""
    WORKER_ANSWERED = "worker.answered"
    """A candidate is made, and not published."""
    WORKER_PUBLISHED = "worker.published"
    """A candidate is published, those of other calls of the message perhaps not."""
    WORKER_DONE = "worker.done"
    """All candidates of a message are published; it is not acknowledged."""
    FORWARDER_FORWARDED = "forwarder.forwarded"
    """The hub has a candidate; the site's outbox still holds it."""

    JUDGE_LOADED = "judge.loaded"
    """Fusions are read and locked; nothing is written."""
    JUDGE_STORED = "judge.stored"
    """What was decided is written and not committed."""
    JUDGE_COMMITTED = "judge.committed"
    """What was decided is committed; nothing is published."""
    JUDGE_ANNOUNCED = "judge.announced"
    """One message of a turn is published, others perhaps not."""
    JUDGE_PUBLISHED = "judge.published"
    """All messages of a turn are published; nothing is acknowledged."""


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
