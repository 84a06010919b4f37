"""The rate limits of callers: of their tenants, and of their keys.

Each ingest process counts for itself what it lets in, and forgets it when it ends.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from fusewire.contracts import Prompt
from fusewire.settings import Settings
from fusewire_ingest.admission.estimate import Catalogue, rate_tokens
from fusewire_ingest.admission.rates import Limits, RateRefusal, Rates, Unit, duration
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.admission.rules import load_catalogue
from fusewire_ingest.repository.submissions import Acceptance

ENDED_AFTER = timedelta(seconds=30)
"""How long after its deadline a prompt without an announced outcome counts as in flight."""
IN_FLIGHT_RETRY_S = 1.0
"""When to send again what would be too much in flight: nobody knows when a prompt will end."""
UNITS: tuple[Unit, ...] = ("requests", "tokens")
RATE_HEADERS = tuple(
    f"x-ratelimit-{figure}-{unit}"
    for figure, unit in itertools.product(("limit", "remaining", "reset"), UNITS)
)
"""The headers about what is left of a caller's limits, by their names at OpenAI."""


class RateLimitError(Exception):
    """A request beyond one of its limits; it fits after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float, limits: Limits) -> None:
        self.message = message
        self.retry_after_s = retry_after_s
        self.limits = limits
        super().__init__(message)


class RateLimits:
    """Counts requests, tokens and prompts in flight of all callers of this process."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._rates = Rates()
        self._catalogue = Catalogue({}, {})

    async def start(self) -> None:
        """Load the models' longest answers."""
        self._catalogue = await load_catalogue(self._settings, self._clock())

    def count_request(self, limits: Limits) -> None:
        """Count a request. Raises RateLimitError."""
        if excess := self._rates.take(limits, "requests", 1, self._monotonic()):
            raise _too_much(excess, f"send {excess.limit} requests a minute", limits)

    @contextlib.contextmanager
    def counting(self, limits: Limits) -> Iterator["PromptCount"]:
        """Count prompts that are submitted in the block.

        Those that do not begin a fusion there are in flight no longer at its end.
        """
        count = PromptCount(self, limits)
        try:
            yield count
        finally:
            for fusion_id in count.waiting:
                self.end(fusion_id)

    def begin(self, limits: Limits, prompt: Prompt) -> bool:
        """Count a prompt's tokens, and count it as in flight until `end`.

        Returns:
            Whether it was not in flight before.

        Raises:
            RateLimitError: it fits later.
            RefusedError: it alone has more tokens than a minute.
        """
        now = self._monotonic()
        rest = prompt.deadline_at - self._clock() + ENDED_AFTER
        is_new = not self._rates.is_held(prompt.fusion_id)
        if excess := self._rates.hold(limits, prompt.fusion_id, now + rest.total_seconds(), now):
            raise _too_much(excess, f"have {excess.limit} prompts in flight", limits)
        try:
            self._count_tokens(limits, prompt, now)
        except (RateLimitError, RefusedError):
            if is_new:
                self._rates.release(prompt.fusion_id)
            raise
        return is_new

    def _count_tokens(self, limits: Limits, prompt: Prompt, now: float) -> None:
        if all(limit.tokens_per_minute is None for limit in limits.values()):
            return
        tokens = rate_tokens(prompt, self._catalogue)
        excess = self._rates.take(limits, "tokens", tokens, now)
        if excess is None:
            return
        if excess.wait_s == math.inf:
            raise RefusedError(
                "prompt_too_large",
                f"it counts {tokens} tokens, its own and those of the longest answer that it"
                f" allows; {excess.account} may use {excess.limit} a minute: shorten it, or lower"
                " max_tokens",
                "max_tokens",
            )
        what = f"use {excess.limit} tokens a minute, and this needs {tokens}"
        raise _too_much(excess, what, limits)

    def end(self, fusion_id: str) -> None:
        """Count a prompt as in flight no longer."""
        self._rates.release(fusion_id)

    def headers(self, limits: Limits) -> Mapping[str, str]:
        """OpenAI's headers about what is left of the tightest limits; empty if there are none."""
        headers: dict[str, str] = {}
        for unit in UNITS:
            if balance := self._rates.balance(limits, unit, self._monotonic()):
                headers |= {
                    f"x-ratelimit-limit-{unit}": str(balance.limit),
                    f"x-ratelimit-remaining-{unit}": str(balance.remaining),
                    f"x-ratelimit-reset-{unit}": duration(balance.reset_s),
                }
        return headers


class PromptCount:
    """Prompts that are counted and not yet committed."""

    def __init__(self, rate_limits: RateLimits, limits: Limits) -> None:
        self._rate_limits = rate_limits
        self._limits = limits
        self.waiting: set[str] = set()
        """The fusions that none of them has begun yet."""

    def add(self, prompt: Prompt) -> None:
        """Count a prompt. Raises RateLimitError and RefusedError as `RateLimits.begin` does."""
        if self._rate_limits.begin(self._limits, prompt):
            self.waiting.add(prompt.fusion_id)

    def note_acceptances(self, acceptances: Iterable[Acceptance]) -> None:
        """Note which of them have begun a fusion."""
        self.waiting -= {a.prompt.fusion_id for a in acceptances if a.is_new}


def _too_much(excess: RateRefusal, what: str, limits: Limits) -> RateLimitError:
    wait_s = IN_FLIGHT_RETRY_S if excess.wait_s is None else excess.wait_s
    return RateLimitError(f"{excess.account} may {what}; wait {wait_s:.1f} s", wait_s, limits)
