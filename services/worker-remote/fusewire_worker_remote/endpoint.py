"""Endpoints: one model at one address with one key each, and what its calls have shown of it."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from urllib.parse import urlsplit

import structlog

from fusewire import metrics
from fusewire.contracts import PRIORITIES
from fusewire.loops import reserve_size
from fusewire.settings import RemoteModel
from fusewire_worker_remote.breaker import Breaker, Permit, Signal, State
from fusewire_worker_remote.concurrency import AdaptiveLimit
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.providers import ProviderReply
from fusewire_worker_remote.retry_budget import RetryBudget
from fusewire_worker_remote.signals import read_signals
from fusewire_worker_remote.slots import SlotQueue

log = structlog.get_logger(__name__)

_STATE_VALUES: dict[State, int] = {"closed": 0, "probing": 1, "open": 2}


@dataclass(frozen=True, slots=True)
class TimeSource:
    """Sources of time and chance.

    Attributes:
        timer: gives seconds that never go back.
        clock: gives the current time, with a zone.
        rng: draws from [0, 1).
    """

    timer: Callable[[], float]
    clock: Callable[[], datetime]
    rng: Callable[[], float]


@dataclass(slots=True)
class CallPermit:
    """Leave to make one call, from its breakers."""

    started_at: float
    model: Permit
    key: Permit


class _Guard:
    """A breaker, what it guards, and the failure for which it was opened."""

    def __init__(self, kind: Literal["model", "key"]) -> None:
        self.kind = kind
        self.breaker = Breaker()
        self.endpoints: list[Endpoint] = []
        self.cause: Failure | None = None


class Endpoint:
    """All calls of one model at one address with one key, by whatever name it is configured.

    Args:
        names: its names in the configuration.
        model: one of them.
        most: calls that may be under way at once.
        key_guard: shared with the other models that are called there with the same key.
        times: sources of time and chance.
    """

    def __init__(
        self,
        names: Sequence[str],
        model: RemoteModel,
        most: int,
        key_guard: _Guard,
        times: TimeSource,
        *,
        has_breaker: bool,
    ) -> None:
        self._names = names
        self._host = urlsplit(model.base_url).hostname
        self._key_env = model.api_key_env
        self._model_guard, self._key_guard = _Guard("model"), key_guard
        self._guards = (self._key_guard, self._model_guard)
        for guard in self._guards:
            guard.endpoints.append(self)
        self._times = times
        self._has_breaker = has_breaker
        self._limit = AdaptiveLimit(most)
        self._last_state: State | None = None
        self.retries = RetryBudget()
        self.slots = SlotQueue(most, last_rank=len(PRIORITIES) - 1, reserve=reserve_size)
        self._count = 0
        self._apply_limit()
        self.show_state()

    @property
    def latency_s(self) -> float | None:
        """How long an answer takes in the mean; None if nobody knows yet."""
        return self._limit.latency_s

    def refusal(self) -> Failure | None:
        """Return why no call may be made now, with the wait until one may; None if one may."""
        if not self._has_breaker:
            return None
        now = self._times.timer()
        guard = max(self._guards, key=lambda guard: guard.breaker.wait_s(now))
        wait_s = guard.breaker.wait_s(now)
        return self._describe(guard, wait_s) if wait_s > 0 else None

    def begin(self) -> CallPermit | None:
        """Return leave to make a call, to be given back by `end`; None if there is a refusal."""
        now = self._times.timer()
        if self.refusal() is not None:
            return None
        model = self._model_guard.breaker.begin(now)
        key = self._key_guard.breaker.begin(now)
        assert model is not None, "the breaker does not wait"
        assert key is not None, "the breaker does not wait"
        if "probing" in {guard.breaker.state for guard in self._guards}:
            self._show_all()
        return CallPermit(now, model, key)

    def end(self, permit: CallPermit, result: ProviderReply | Failure | None) -> None:
        """Take note of how a call ended.

        Args:
            permit: the call's permit.
            result: what came of it; None if no call was made, or it was cancelled.
        """
        now = self._times.timer()
        failure = result if isinstance(result, Failure) else None
        if result is None:
            self._note(self._model_guard, permit.model, Signal.NOTHING, None)
            self._note(self._key_guard, permit.key, Signal.NOTHING, None)
            return
        signals = read_signals(
            failure, duration_s=now - permit.started_at, latency_s=self._limit.latency_s
        )
        if failure is None:
            running = self.slots.taken_count
            self._limit.add_answer(started_at=permit.started_at, now=now, running=running)
        elif signals.is_overload:
            self._limit.add_overload(started_at=permit.started_at, now=now)
        self._note(self._model_guard, permit.model, signals.model, failure)
        self._note(self._key_guard, permit.key, signals.key, failure)
        self._apply_limit()

    def count_refusal(self, reason: Literal["breaker", "retry_budget"]) -> None:
        """Count a task for which no call was made, or none again."""
        for name in self._names:
            metrics.CALLS_REFUSED.labels(name, reason).inc()

    def _note(self, guard: _Guard, permit: Permit, signal: Signal, failure: Failure | None) -> None:
        """Tell a breaker how a call ended, and everybody else if that opens or closes it."""
        if not self._has_breaker:
            return
        change = guard.breaker.end(
            permit,
            signal,
            now=self._times.timer(),
            random=self._times.rng(),
            retry_after_s=failure.retry_after_s if failure else None,
        )
        if change is None:
            return
        self._show_all()
        who = {"model": self._names[0], "host": self._host, "key": self._key_env}
        if change == "closed":
            if guard is self._model_guard:
                self._limit.restart(self.slots.taken_count)
            # A warning too: who is told that it opened is told that it closed.
            log.warning("breaker.closed", breaker=guard.kind, **who)
            return
        guard.cause = failure
        for endpoint in guard.endpoints:
            # They wait for no slot, but are told why they are not called.
            endpoint.slots.dismiss_waiters()
        code = failure.code if failure else "none"
        for name in self._names:
            metrics.BREAKER_OPENS.labels(name, code).inc()
        open_s = round(guard.breaker.wait_s(self._times.timer()), 3)
        log.warning("breaker.opened", breaker=guard.kind, reason=code, open_s=open_s, **who)

    def _apply_limit(self) -> None:
        if self._count == self._limit.limit:
            return
        self._count = self._limit.limit
        self.slots.resize(self._count)
        for name in self._names:
            metrics.CONCURRENCY_LIMIT.labels(name).set(self._count)

    def _show_all(self) -> None:
        """Show the states of all that share a breaker with this endpoint."""
        for endpoint in self._key_guard.endpoints:
            endpoint.show_state()

    def show_state(self) -> None:
        """Show the state as a metric: that of the key, if no call may be made with it."""
        states = [guard.breaker.state for guard in self._guards]
        state = max(states, key=_STATE_VALUES.__getitem__)
        if state != self._last_state:
            self._last_state = state
            for name in self._names:
                metrics.BREAKER_STATE.labels(name).set(_STATE_VALUES[state])

    def _describe(self, guard: _Guard, wait_s: float) -> Failure:
        """Return the failure of a task that no call is made for."""
        cause = guard.cause
        assert cause is not None, "it was opened by a failure"
        when = self._times.clock() + timedelta(seconds=wait_s)
        next_call = (
            "a call is under way that shows whether it works again"
            if guard.breaker.state == "probing"
            else f"the next call is tried at {when:%Y-%m-%dT%H:%M:%SZ}"
        )
        what = "with its key every call" if guard is self._key_guard else "the last calls"
        return Failure(
            cause.code,
            f"not called, as {what} failed ({cause.message}); {next_call}",
            retryable=cause.retryable,
            retry_after_s=wait_s,
            status=cause.status,
            provider_code=cause.provider_code,
        )


class Endpoints:
    """The endpoints of all configured models.

    Args:
        models: models by their names in the configuration.
        times: sources of time and chance.
    """

    def __init__(self, models: Mapping[str, RemoteModel], times: TimeSource) -> None:
        self._models = models
        self._times = times
        self._endpoints: dict[tuple[str, str, str], Endpoint] = {}
        self._key_guards: dict[tuple[str, str], _Guard] = {}
        for name in models:
            self.of(name)

    def of(self, name: str) -> Endpoint:
        """Return the endpoint of a configured model, with the key that it has now."""
        model = self._models[name]
        triple = _triple(model)
        endpoint = self._endpoints.get(triple)
        if endpoint is None:
            endpoint = self._endpoints[triple] = self._make(triple)
        return endpoint

    def _make(self, triple: tuple[str, str, str]) -> Endpoint:
        same = {name: model for name, model in self._models.items() if _triple(model) == triple}
        address, _, key = triple
        return Endpoint(
            tuple(same),
            next(iter(same.values())),
            # They share what the provider allows: who set less meant it.
            min(model.max_concurrency for model in same.values()),
            self._key_guards.setdefault((address, key), _Guard("key")),
            self._times,
            has_breaker=all(model.breaker for model in same.values()),
        )


def _triple(model: RemoteModel) -> tuple[str, str, str]:
    """Return a model's address, its name there and the hash of its key."""
    key = model.api_key
    digest = hashlib.sha256(key.get_secret_value().encode()).hexdigest() if key else ""
    return model.base_url.rstrip("/"), model.model, digest
