"""An engine's load: what it has in hand and how much it has computed."""

from collections import Counter
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from fusewire.contracts import PRIORITIES
from fusewire_worker_edge.engine.scheduler import Scheduler

EVERY_S = 1.0
"""Seconds between two reports while there is work."""


class Load(BaseModel):
    """The load of one engine at one moment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kv_limit: int = 0
    """Positions of the KV cache, for running requests and cached prefixes together."""
    kv_running: int = 0
    """Positions that the running requests have reserved."""
    kv_prefixes: int = 0
    """Positions of the cached prefixes."""
    decoding: int = 0
    """Answers whose prompt is computed and that get a token in each step."""
    waiting: tuple[int, ...] = (0,) * len(PRIORITIES)
    """By priority, the requests that wait for a slot or for memory."""
    prefilled_tokens: int = 0
    """Tokens of prompts and choices that were computed, since the process began."""
    decoded_tokens: int = 0
    """Tokens that were generated, since the process began."""
    cached_tokens: int = 0
    """Tokens of prompts that were reused from earlier ones, since the process began."""


OnLoad = Callable[[Load | None], None]
"""Called with each report of an engine's process, and with None when the process has ended."""


def measure(scheduler: Scheduler) -> Load:
    """Return the load of a scheduler."""
    last = len(PRIORITIES) - 1
    waiting = Counter(min(job.rank, last) for job in scheduler.waiting_jobs)
    return Load(
        kv_limit=scheduler.budget,
        kv_running=sum(job.reserved_positions for job in scheduler.running_jobs),
        kv_prefixes=scheduler.prefixes.tokens,
        decoding=len(scheduler.decoding),
        waiting=tuple(waiting[rank] for rank in range(len(PRIORITIES))),
        prefilled_tokens=scheduler.prefilled_tokens,
        decoded_tokens=scheduler.decoded_tokens,
        cached_tokens=scheduler.cached_tokens,
    )


class LoadReports:
    """Decides when a load is reported: each second, and when nothing is left to do.

    Args:
        scheduler: whose load it is.
        clock: the time in seconds.
    """

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._last: Load | None = None
        self._due_s = 0.0

    def take(self) -> Load | None:
        """Return the load if a report is due and differs from the last; else None."""
        now = self._clock()
        if self._scheduler.is_busy and now < self._due_s:
            return None
        load = measure(self._scheduler)
        if load == self._last:
            return None
        self._last, self._due_s = load, now + EVERY_S
        return load
