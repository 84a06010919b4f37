"""End with the process that started this one, and never later than allowed.

Whoever starts a service as a child process keeps the writing end of a pipe and gives the child the
reading end. Nothing is ever written: the pipe reaches its end when the parent has ended, whatever
ended it, `kill -9` included. All of this works beside an event loop that is blocked.
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

LIFELINE_ENV = "FUSEWIRE_LIFELINE_FD"
"""Names the file descriptor of the reading end. Unset: nobody's end is waited for."""
FORCED_EXIT = 70
"""The exit code of a process that had to be ended because it did not end by itself."""


STOP_S = 5.0
"""A process that was told to stop has ended this long after its `drain_s` is over, if need be by force."""
STALLED_TICKS = 60
"""Seconds that an event loop may take for one step, whatever the step is."""


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a process to stop: of Ctrl-C, of a supervisor, and of a terminal that is closed.

    Not the last where it is ignored already, as under `nohup`.
    """
    is_detached = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if is_detached else [signal.SIGHUP])]


def on_parent_end(call: Callable[[], None]) -> None:
    """Have `call` called, in a thread of its own, once the parent has ended.

    Raises:
        ValueError: the environment names no file descriptor.
    """
    named = os.environ.get(LIFELINE_ENV)
    if named is None:
        return
    descriptor = int(named)
    # A child of this process must not take it for its own.
    os.set_inheritable(descriptor, False)
    del os.environ[LIFELINE_ENV]

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 1):
                pass
        call()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def end_within(seconds: float, end: Callable[[], object] = lambda: os._exit(FORCED_EXIT)) -> None:
    """Call `end`, which by default ends this process at once, if the process still lives after `seconds`."""
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def on_stall(
    loop: asyncio.AbstractEventLoop,
    call: Callable[[list[str]], object],
    *,
    ticks: int = STALLED_TICKS,
    tick_s: float = 1.0,
) -> None:
    """Have `call` called, in a thread of its own, if an event loop does not turn for `ticks` times `tick_s`.

    It is told where the main thread is, as `file:line function`. Ticks are counted, and no time is compared: a process
    that was stopped for long, or whose machine slept, has not stalled.
    """
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    def watch() -> None:
        seen, missed = -1, 0
        while missed < ticks:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(turn)
            time.sleep(tick_s)
            if loop.is_closed():
                return
            missed = missed + 1 if turns == seen else 0
            seen = turns
        stacks = sys._current_frames()  # noqa: SLF001 - its documented name
        frames = traceback.extract_stack(stacks.get(threading.main_thread().ident or 0))
        call([f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames])

    threading.Thread(target=watch, name="stall", daemon=True).start()
