"""When to stop calling a model that fails, and when to try it again. No IO.

A circuit breaker after Nygard, "Release It!" (2007), with one probe (docs/decisions/0062):

    closed ──▶ open        enough calls failed, or one failed as every other would
    open ──▶ probing       its time is over, and a call comes: the probe
    probing ──▶ closed     the probe was answered
    probing ──▶ open       it was not: for longer than the last time

Times are seconds of a clock that never goes back.
"""

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

State = Literal["closed", "probing", "open"]

PROBE_CHECK_S = 1.0
"""Seconds after which to ask again while a probe is under way."""
_MOST_OPENINGS = 20
"""From here on the time that it stays open no longer doubles, whatever the terms."""


class Signal(Enum):
    """What a call that has ended says about the model that was called."""

    ANSWERED = auto()
    """It works. A refusal or a request that it does not take are answers too."""
    FAILED = auto()
    REJECTED = auto()
    """It failed as every other call would: no valid key, no credit, no such model."""
    DOUBTFUL = auto()
    """As REJECTED, but it may be about this request alone."""
    UNCLEAR = auto()
    """It does not show that the model works, nor that it fails."""
    NOTHING = auto()
    """No call was made, or it was cancelled."""


@dataclass(frozen=True, slots=True)
class BreakerTerms:
    """When a breaker opens, and for how long.

    It opens when at least `failures` of the last `calls` calls, and at least the half of them,
    have failed; calls that ended more than `memory_s` ago do not count. It stays open for half of
    `base_s` to `base_s`, drawn at random; the bound doubles each time up to `cap_s`.
    """

    failures: int = 5
    calls: int = 20
    memory_s: float = 60.0
    base_s: float = 5.0
    cap_s: float = 60.0
    rejected_base_s: float = 60.0
    """`base_s` and `cap_s` after a call that was rejected: somebody has to mend that."""
    rejected_cap_s: float = 600.0
    longest_s: float = 3600.0
    """A wait that the provider asks for is obeyed up to here."""


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call; it ends with `Breaker.end`."""

    epoch: int
    """The number of changes that the breaker had gone through."""


class Breaker:
    """The breaker of whatever fails together.

    Args:
        terms: when it opens, and for how long.
    """

    def __init__(self, terms: BreakerTerms = BreakerTerms()) -> None:
        self._terms = terms
        self._state: State = "closed"
        self._epoch = 0
        self._results: deque[tuple[float, bool]] = deque(maxlen=terms.calls)
        """When the last calls ended, and whether they failed."""
        self._has_answered = False
        """Since it was last opened."""
        self._openings = 0
        """In a row, without a longer time between them."""
        self._until = -math.inf
        self._closed_at = -math.inf

    @property
    def state(self) -> State:
        """Whether calls are made; after an open time it is open until the next call comes."""
        return self._state

    def wait_s(self, now: float) -> float:
        """Return 0 if a call may be made now; else the seconds after which to ask again."""
        if self._state == "closed":
            return 0.0
        if self._state == "probing":
            return PROBE_CHECK_S
        return max(0.0, self._until - now)

    def begin(self, now: float) -> Permit | None:
        """Return the permit for a call that begins now, which may be the probe; None if none may.

        Whoever gets one has to return it by `end`, or no further probe is ever made.
        """
        if self.wait_s(now) > 0:
            return None
        if self._state == "open":
            self._change("probing")
        return Permit(self._epoch)

    def end(
        self,
        permit: Permit,
        signal: Signal,
        *,
        now: float,
        random: float,
        retry_after_s: float | None = None,
    ) -> State | None:
        """Take note of how a call ended; return the new state if it opens or closes the breaker.

        Args:
            permit: the call's permit.
            signal: what the call says.
            now: the time at which it ended.
            random: a draw from [0, 1).
            retry_after_s: the wait that the provider asked for. It is never undercut.
        """
        # A call that began before the last change says nothing about the time since.
        if permit.epoch != self._epoch:
            return None
        if self._state == "probing":
            return self._end_probe(signal, now, random, retry_after_s)
        if signal is Signal.DOUBTFUL:
            signal = Signal.FAILED if self._has_answered else Signal.REJECTED
        if signal is Signal.REJECTED:
            return self._open(now, random, retry_after_s, is_rejected=True)
        if signal in {Signal.ANSWERED, Signal.FAILED}:
            self._results.append((now, signal is Signal.FAILED))
            self._has_answered |= signal is Signal.ANSWERED
        if signal is Signal.FAILED and self._fails(now):
            return self._open(now, random, retry_after_s, is_rejected=False)
        return None

    def _end_probe(
        self, signal: Signal, now: float, random: float, retry_after_s: float | None
    ) -> State | None:
        if signal is Signal.NOTHING:
            # The next call is the probe.
            self._change("open")
            return None
        if signal is Signal.ANSWERED:
            self._change("closed")
            self._closed_at = now
            self._has_answered = True
            return "closed"
        is_rejected = signal in {Signal.REJECTED, Signal.DOUBTFUL}
        return self._open(now, random, retry_after_s, is_rejected=is_rejected)

    def _fails(self, now: float) -> bool:
        since = now - self._terms.memory_s
        recent = [is_failed for ended_at, is_failed in self._results if ended_at >= since]
        failures = sum(recent)
        return failures >= self._terms.failures and 2 * failures >= len(recent)

    def _open(
        self, now: float, random: float, retry_after_s: float | None, *, is_rejected: bool
    ) -> State:
        terms = self._terms
        base_s = terms.rejected_base_s if is_rejected else terms.base_s
        cap_s = terms.rejected_cap_s if is_rejected else terms.cap_s
        if self._state == "closed" and now - self._closed_at > cap_s:
            self._openings = 0
        bound_s: float = min(cap_s, base_s * 2 ** min(self._openings, _MOST_OPENINGS))
        wait_s = bound_s * (1 + random) / 2
        if retry_after_s is not None:
            wait_s = max(wait_s, min(retry_after_s, terms.longest_s) + random * base_s)
        self._until = now + wait_s
        self._openings += 1
        self._change("open")
        return "open"

    def _change(self, state: State) -> None:
        self._state = state
        self._epoch += 1
        self._results.clear()
        self._has_answered = False
