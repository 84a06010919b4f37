"""For tests: servers that do not outlive the test process, even if it is killed."""

import shutil
from collections.abc import Sequence
from os import PathLike

_SETPRIV = shutil.which("setpriv")


def bound(command: Sequence[str | PathLike[str]]) -> list[str | PathLike[str]]:
    """The same command, killed when the thread that starts it ends.

    See `man 2 prctl`, PR_SET_PDEATHSIG.

    Where there is no `setpriv` of util-linux, a killed test run leaves its servers behind.
    """
    return [_SETPRIV, "--pdeathsig", "KILL", "--", *command] if _SETPRIV else list(command)
