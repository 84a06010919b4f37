"""A client's request from its submission to its outcome, independent of the API's form."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import structlog
from fastapi import Request
from fastapi.responses import Response

from fusewire.contracts import ANSWERED, Outcome, Prompt
from fusewire.errors import TextsDeletedError, Transient
from fusewire.references.texts import END_CHARS
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.admit import RefusedError
from fusewire_ingest.admission.rates import Limits
from fusewire_ingest.api.dependencies import Dependencies
from fusewire_ingest.api.errors import UNAVAILABLE_S, ClientDisconnectedError, HttpError
from fusewire_ingest.api.leaving import while_connected
from fusewire_ingest.api.stream import EventStream, StreamEncoder, events
from fusewire_ingest.openai import chat_request, failures
from fusewire_ingest.openai.chat_request import ChatRequest

log = structlog.get_logger(__name__)

MOST_DEPTH = 1
"""A fusion may be a member of a fusion, and no deeper: two that name each other would never end."""
DEPTH_HEADERS = ("x-fusewire-depth", "x-openrouter-fusion-depth")
OUTCOME_HEADER = "x-fusewire-outcome"
"""Statuses of outcomes that have an answer."""
MOST_WAIT_S = 60.0
"""The longest `retry-after` of a reply that SDKs repeat by themselves, seconds."""
PATIENCE_S = 10.0
"""Seconds to wait beyond the deadline, at which the judge only begins to decide and store."""


@dataclass(frozen=True)
class Run:
    """A request, and the fusion that answers it."""

    model: str
    """This and the next three as in `ChatRequest`."""
    is_streamed: bool
    with_usage: bool
    warnings: tuple[str, ...]
    prompt: Prompt
    """The prompt to submit, unless the run is attached to an earlier one."""
    fusion_id: str
    request_hash: str
    limits: Limits
    """The rate limits of the caller."""
    cancel_on_disconnect: bool
    """Whether the fusion is cancelled when the client disconnects."""

    @property
    def created(self) -> int:
        """Seconds since 1970."""
        return int(self.prompt.submitted_at.timestamp())

    @property
    def is_attached(self) -> bool:
        """Whether an earlier request began the fusion."""
        return self.fusion_id != self.prompt.fusion_id

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every response."""
        return {OUTCOME_HEADER: self.fusion_id}


async def begin(
    dependencies: Dependencies,
    caller: Caller,
    headers: Mapping[str, str],
    chat: ChatRequest,
    body: dict[str, object],
    *,
    is_large: bool,
) -> Run:
    """Find the fusion that answers a request: an earlier one if the request repeats one.

    Args:
        dependencies: those of the routes.
        caller: the caller.
        headers: the request's.
        chat: the request, parsed.
        body: the body as the client wrote it.
        is_large: whether the body may be too large for a message of the bus; see `BodyLimit`.
    """
    request_hash = chat_request.request_hash(caller.tenant, caller.key_id, body)
    key = headers.get("idempotency-key")
    prompt = dependencies.intake.admit(
        chat.submission,
        tenant=caller.tenant,
        fallback_id=f"key-{key}" if key else dependencies.new_id(),
        key_id=caller.key_id,
        is_streamed=chat.is_streamed,
        depth=_depth(headers),
    )
    prompt = await dependencies.large_parts.put_aside(prompt, is_large=is_large)
    earlier_id = None
    if not key and dependencies.settings.http.attach:
        earlier_id = await dependencies.intake.attach(
            caller.tenant, request_hash, is_again=_is_repetition(headers)
        )
    cancel_on_disconnect = (
        chat.cancel_on_disconnect
        or headers.get("x-fusewire-cancel-on-disconnect", "").lower() == "true"
    )
    return Run(
        model=chat.model,
        is_streamed=chat.is_streamed,
        with_usage=chat.with_usage,
        warnings=(*chat.warnings, *_warnings(prompt)),
        prompt=prompt,
        fusion_id=earlier_id or prompt.fusion_id,
        request_hash=request_hash,
        limits=caller.limits,
        cancel_on_disconnect=cancel_on_disconnect,
    )


def _warnings(prompt: Prompt) -> Iterator[str]:
    if any(message.texts for message in prompt.messages):
        yield (
            f"judges read the first and the last {END_CHARS} characters of each long text; "
            "members read the whole"
        )


def _depth(headers: Mapping[str, str]) -> int:
    depth = 0
    for name in DEPTH_HEADERS:
        value = headers.get(name, "0")
        if not (value.isascii() and value.isdigit()):
            raise RefusedError("invalid_request", f"the header '{name}' must be a number", name)
        # Its length first: parsing a very long number takes very long.
        is_long = len(value) > 3
        depth = max(depth, MOST_DEPTH + 1 if is_long else int(value))
    if depth > MOST_DEPTH:
        raise RefusedError(
            "recursion",
            "a fusion within a fusion within a fusion is refused; "
            "do not make Fusewire a member of its own pool",
            "x-fusewire-depth",
        )
    return depth


def _is_repetition(headers: Mapping[str, str]) -> bool:
    """Whether a client repeats a request. OpenAI's SDK does so by itself, without a key."""
    return (
        headers.get("x-stainless-retry-count", "0") != "0"
        or headers.get("x-fusewire-attach", "").lower() == "true"
    )


async def wait_for_answer(dependencies: Dependencies, run: Run, request: Request) -> Outcome:
    """Submit a run and wait for its answer.

    Raises:
        HttpError: the outcome has no answer, or is late.
        ClientDisconnectedError: the client disconnected.
    """
    is_new = await _submit(dependencies, run)
    try:
        with dependencies.intake.open_requests.hold(run.fusion_id):
            return await while_connected(
                request.receive, _wait_for_outcome(dependencies, run, just_begun=is_new)
            )
    except ClientDisconnectedError:
        await _handle_disconnect(dependencies, run)
        raise


async def stream_answer(dependencies: Dependencies, run: Run, encoder: StreamEncoder) -> Response:
    """Submit a run and stream its answer while it is written."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(dependencies.intake.open_requests.hold(run.fusion_id))
        watch = await stack.enter_async_context(dependencies.watcher.watch(run.fusion_id))
        outcome = _wait_for_outcome(dependencies, run, just_begun=await _submit(dependencies, run))
        pieces = events(
            encoder,
            watch,
            outcome,
            heartbeat_s=dependencies.heartbeat_s,
            tells_panel=dependencies.settings.http.panel_comments,
        )
        return EventStream(
            pieces, stack.pop_all(), run.headers, lambda: _handle_disconnect(dependencies, run)
        )


async def _submit(dependencies: Dependencies, run: Run) -> bool:
    """Submit the prompt, unless the run is attached. Returns whether that began a fusion."""
    if run.is_attached:
        log.info("chat.attached", fusion_id=run.fusion_id)
        return False
    acceptance = await dependencies.intake.submit(
        run.prompt, source="chat", request_hash=run.request_hash, limits=run.limits
    )
    return acceptance.is_new


async def _wait_for_outcome(dependencies: Dependencies, run: Run, *, just_begun: bool) -> Outcome:
    """Wait for the outcome. Raises HttpError if it has no answer, is late or lost its texts."""
    outcomes = dependencies.outcomes
    wait_s = (run.prompt.deadline_at - dependencies.clock()).total_seconds() + PATIENCE_S
    # The prompt is accepted even if the wait fails.
    try:
        fusion = await outcomes.get(
            run.prompt.tenant, run.fusion_id, max(wait_s, 0), just_begun=just_begun
        )
    except Transient:
        fusion = None
    except TextsDeletedError as exc:
        message = f"{exc}; ask again with another Idempotency-Key"
        raise HttpError(410, "texts_deleted", message, is_final=True, headers=run.headers) from None
    outcome = fusion.outcome if fusion else None
    if outcome is not None:
        # Its announcement may have been lost.
        dependencies.rate_limits.end(run.fusion_id)
    if outcome is None and outcomes.is_closing:
        message = (
            f"this Fusewire stops; fusion {run.fusion_id} goes on: "
            "send the request again, it costs nothing"
        )
        raise HttpError(503, "draining", message, retry_after_s=UNAVAILABLE_S, headers=run.headers)
    if outcome is None:
        message = (
            f"fusion {run.fusion_id} has no outcome yet; it goes on: "
            f"read it with GET /v1/fusions/{run.fusion_id}"
        )
        raise HttpError(504, "timeout", message, headers=run.headers)
    if outcome.status in ANSWERED or failures.is_withheld(outcome):
        return outcome
    raise _failure_error(failures.failure(outcome), run)


def _failure_error(failure: failures.Failure, run: Run) -> HttpError:
    return HttpError(
        failure.status,
        failure.code,
        failure.message,
        # Some SDKs ignore a longer wait, and repeat the request at once.
        is_final=failure.retry_after_s is None or failure.retry_after_s > MOST_WAIT_S,
        retry_after_s=failure.retry_after_s,
        headers=run.headers,
        about={"outcome_id": run.fusion_id, "failed_models": list(failure.failed_models)},
    )


async def _handle_disconnect(dependencies: Dependencies, run: Run) -> None:
    # Another request may be attached to the same fusion.
    is_last = not dependencies.intake.open_requests.is_held(run.fusion_id)
    is_cancelled = run.cancel_on_disconnect and is_last
    if is_cancelled:
        await dependencies.intake.cancel(run.prompt.tenant, [run.fusion_id])
    elif is_last:
        await dependencies.intake.leave(run.fusion_id)
    log.info("chat.client_left", fusion_id=run.fusion_id, cancelled=is_cancelled)
