"""Errors that more than one layer must recognise."""

EXIT_BAD_INPUT = 2
"""A process that ends with it was given what it cannot use, its configuration included."""
EXIT_STORED = 5
"""What is stored cannot be used: it is damaged, or of a newer version than this code."""


class Transient(Exception):  # noqa: N818 - it names a condition, as TimeoutError's users read it
    """Something around us is down or busy; the same work will succeed later.

    A handler that raises it gets its message again and never loses it to FW_DEAD.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class DamagedError(Transient):
    """What is stored cannot be read until somebody has mended it. Work waits for that, and is not given up."""

    def __init__(self, what: str, mend: str) -> None:
        self.what = what
        self.mend = mend
        super().__init__(what)


class StartupError(Exception):
    """A service cannot run as it is set up. Says what, why, and how to mend it."""

    def __init__(self, what: str, mend: str, exit_code: int = EXIT_BAD_INPUT) -> None:
        self.what = what
        self.mend = mend
        self.exit_code = exit_code
        super().__init__(f"{what}; {mend}")


class UnacceptableMessage(Exception):  # noqa: N818 - as above
    """A message that will never be right: it goes to FW_DEAD at once, with the reason."""
