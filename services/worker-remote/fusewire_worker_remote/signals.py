"""What the failure of a call says about the model, the key and the load. No IO.

The table of docs/decisions/0062. What a model answers is no failure of it: a refusal, a filter, a
prompt that is too long, an answer cut at its length or without the form that was asked for.
"""

from dataclasses import dataclass

from fusewire_worker_remote.breaker import Signal
from fusewire_worker_remote.errors import Failure

LONG_WAIT_S = 60.0
"""A longer wait than this, asked for with a 429, is that of a quota: until then none is called."""
PATIENCE = 4.0
"""A call that its deadline cut off after so many times the mean latency counts as a timeout."""
PATIENCE_S = 30.0
"""The same in seconds, where no latency is known."""


@dataclass(frozen=True, slots=True)
class CallSignals:
    """What one call says."""

    model: Signal
    """About this model at this address with this key."""
    key: Signal
    """About the key at this address, whatever the model."""
    is_overload: bool = False
    """Whether fewer calls should be made at once."""


_WORKS = CallSignals(Signal.ANSWERED, Signal.ANSWERED)
_NOTHING = CallSignals(Signal.NOTHING, Signal.NOTHING)


def read_signals(
    failure: Failure | None, *, duration_s: float, latency_s: float | None
) -> CallSignals:
    """Return what a call says.

    Args:
        failure: how it failed; None if it was answered.
        duration_s: how long it took.
        latency_s: how long an answer takes in the mean; None if nobody knows yet.
    """
    if failure is None or failure.origin == "store":
        return _WORKS if failure is None else _NOTHING
    if failure.code in {"unauthorized", "insufficient_quota", "model_not_found"}:
        return _read_rejection(failure)
    if failure.code == "rate_limited":
        return CallSignals(_read_rate_limit(failure), Signal.ANSWERED, is_overload=True)
    if failure.code == "deadline_exceeded":
        return _read_cut(duration_s, latency_s)
    if _is_outage(failure):
        is_overload = failure.code == "timeout" or failure.status in {503, 529}
        return CallSignals(Signal.FAILED, Signal.UNCLEAR, is_overload=is_overload)
    return _WORKS


def _read_rejection(failure: Failure) -> CallSignals:
    """Read a failure that every other call with this key, or of this model, would meet."""
    if is_about_key(failure):
        return CallSignals(Signal.NOTHING, Signal.REJECTED)
    # A 403 may be a filter's whose words nobody knows, and gateways answer 404 to a request with
    # tools or images that the model does not take.
    is_certain = failure.status not in {403, 404} or failure.provider_code == "model_not_found"
    return CallSignals(Signal.REJECTED if is_certain else Signal.DOUBTFUL, Signal.UNCLEAR)


def is_about_key(failure: Failure) -> bool:
    """Whether all models that are called with this key meet the same failure.

    Only where that is certain: there are quotas of a single model, such as Google's, and keys that
    may call some models only. A model that finds it out by itself pays nothing for it.
    """
    if failure.code == "unauthorized":
        return failure.status == 401
    is_account = failure.status == 402 or failure.provider_code == "insufficient_quota"
    return failure.code == "insufficient_quota" and is_account


def _read_rate_limit(failure: Failure) -> Signal:
    if failure.retry_after_s is None:
        return Signal.FAILED
    # The provider works, and says when to come again: the caller waits, and the limit falls.
    return Signal.REJECTED if failure.retry_after_s > LONG_WAIT_S else Signal.UNCLEAR


def _read_cut(duration_s: float, latency_s: float | None) -> CallSignals:
    """Read a call that its prompt's deadline cut off."""
    is_late = duration_s >= (PATIENCE_S if latency_s is None else PATIENCE * latency_s)
    signal = Signal.FAILED if is_late else Signal.UNCLEAR
    return CallSignals(signal, Signal.UNCLEAR, is_overload=is_late)


def _is_outage(failure: Failure) -> bool:
    if failure.origin == "connection":
        return True
    # 409 is a conflict with another request.
    return failure.code == "timeout" or (failure.code == "server_error" and failure.status != 409)
