"""End together with the parent process, and within a time limit.

The parent keeps the writing end of a pipe and gives the child the reading end. Nothing is ever
written: the child reads end-of-file when the parent has ended in any way, `kill -9` included. All
of this works in threads, so it works while the event loop is blocked.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# A pipe and not Linux's parent-death signal: the broker must end after the last service
# (docs/decisions/0032).
LIFELINE_ENV = "FUSEWIRE_LIFELINE_FD"
"""Environment variable with the file descriptor of the reading end. Unset: no parent is watched."""
FORCED_EXIT = 70
"""The exit code of a process that had to be ended because it did not end by itself."""


STOP_S = 5.0
"""How long after its `drain_s` a process that was told to stop is ended by force."""
STALLED_TICKS = 60
"""Seconds that an event loop may take for one step, whatever the step is."""


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a process to stop: SIGINT, SIGTERM and SIGHUP.

    SIGHUP is left out if it is ignored already, as under `nohup`.
    """
    is_detached = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if is_detached else [signal.SIGHUP])]


def on_parent_end(call: Callable[[], None]) -> None:
    """Call `call`, in a thread of its own, once the parent has ended.

    Raises:
        ValueError: the environment names no file descriptor.
    """
    variable = os.environ.get(LIFELINE_ENV)
    if variable is None:
        return
    descriptor = int(variable)
    # A child of this process must not inherit it, nor the variable.
    os.set_inheritable(descriptor, False)
    del os.environ[LIFELINE_ENV]

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 1):
                pass
        call()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def end_within(seconds: float, end: Callable[[], object] = lambda: os._exit(FORCED_EXIT)) -> None:
    """Call `end` after `seconds`, unless the process has ended; by default it exits at once."""
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _main_thread_stack() -> list[str]:
    """Where the main thread is, as `file:line function`, the innermost call last."""
    stacks = sys._current_frames()  # noqa: SLF001 - its documented name
    frames = traceback.extract_stack(stacks.get(threading.main_thread().ident or 0))
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]


def on_stall(
    loop: asyncio.AbstractEventLoop,
    call: Callable[[list[str]], object],
    *,
    ticks: int = STALLED_TICKS,
    tick_s: float = 1.0,
) -> None:
    """Call `call`, in a thread of its own, if an event loop stalls for `ticks` times `tick_s`.

    Its argument is the stack of the main thread, as `file:line function`. Ticks are counted instead
    of comparing times, as a process that was suspended, or whose machine slept, has not stalled.
    """
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    def watch() -> None:
        last_turns, stalled_ticks = -1, 0
        while stalled_ticks < ticks:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(turn)
            time.sleep(tick_s)
            if loop.is_closed():
                return
            stalled_ticks = stalled_ticks + 1 if turns == last_turns else 0
            last_turns = turns
        call(_main_thread_stack())

    threading.Thread(target=watch, name="stall", daemon=True).start()
