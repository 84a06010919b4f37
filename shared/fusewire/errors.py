"""Errors that more than one layer must recognise."""

EXIT_BAD_INPUT = 2
"""Exit code for input that cannot be used, the configuration included."""
EXIT_STORED = 5
"""Exit code for stored data that is damaged, or of a newer version than this code."""


class Transient(Exception):  # noqa: N818 - it names a condition, as TimeoutError's users read it
    """A database, broker or provider is down or busy; the same work will succeed later.

    The message of a handler that raises it is retried, and never dead-lettered
    (docs/decisions/0006).
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(reason)


class TextsDeletedError(Exception):
    """The texts of a fusion were deleted after `keep_bodies_days`; its figures remain."""

    mend = "set a longer keep_bodies_days for what is to come"
    exit_code = EXIT_BAD_INPUT

    def __init__(self, fusion_id: str) -> None:
        self.what = (
            f"the texts of fusion '{fusion_id}' were deleted, as their retention time"
            " (keep_bodies_days) is over; its figures remain, in the views"
        )
        super().__init__(self.what)


class DamagedError(Transient):
    """Stored data cannot be read until an operator has repaired it. Work waits until then."""

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
    """A message that can never be handled: it is dead-lettered at once, with the reason."""
