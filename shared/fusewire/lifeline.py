"""End with the process that started this one, and never later than allowed.

Whoever starts a service as a child process keeps the writing end of a pipe and gives the child the
reading end. Nothing is ever written: the pipe reaches its end when the parent has ended, whatever
ended it, `kill -9` included. Both functions work beside an event loop that is blocked.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

LIFELINE_ENV = "FUSEWIRE_LIFELINE_FD"
"""Names the file descriptor of the reading end. Unset: nobody's end is waited for."""
FORCED_EXIT = 70
"""The exit code of a process that had to be ended because it did not end by itself."""


STOP_S = 5.0
"""A process that was told to stop has ended this long after its `drain_s` is over, if need be by force."""


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
