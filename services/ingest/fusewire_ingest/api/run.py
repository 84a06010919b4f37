"""A request of a client, from its submission to its outcome, whatever shape it came in and is answered in."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import structlog
from fastapi import Request
from fastapi.responses import Response

from fusewire.contracts import Outcome, Prompt
from fusewire.errors import Transient
from fusewire.references.texts import END_CHARS
from fusewire_ingest.access import Caller
from fusewire_ingest.admission.admit import RefusedError
from fusewire_ingest.api.dependencies import Dependencies
from fusewire_ingest.api.errors import UNAVAILABLE_S, ClientDisconnectedError, HttpError
from fusewire_ingest.api.leaving import unless_gone
from fusewire_ingest.api.stream import EventStream, StreamEncoder, events
from fusewire_ingest.openai import chat_reply, chat_request
from fusewire_ingest.openai.chat_request import ChatRequest

log = structlog.get_logger(__name__)

MOST_DEPTH = 1
"""A fusion may be a member of a fusion, and no deeper: else two that name each other would never end."""
DEPTH_HEADERS = ("x-fusewire-depth", "x-openrouter-fusion-depth")
OUTCOME_HEADER = "x-fusewire-outcome"
ANSWERED = ("fused", "voted", "single")
MOST_WAIT_S = 60.0
"""The longest that a client may be asked to wait before it asks again by itself."""
PATIENCE_S = 10.0
"""How long the outcome may take beyond the deadline: the judge decides then, and stores."""


@dataclass(frozen=True)
class Run:
    """A request, and the fusion that answers it."""

    model: str
    """See `ChatRequest`, and so on."""
    is_streamed: bool
    with_usage: bool
    warnings: tuple[str, ...]
    prompt: Prompt
    """As it is submitted, or would be if there were nothing to attach to."""
    fusion_id: str
    request_hash: str
    cancels: bool
    """Whether it is cancelled when the client leaves."""

    @property
    def created(self) -> int:
        """Seconds since 1970."""
        return int(self.prompt.submitted_at.timestamp())

    @property
    def is_attached(self) -> bool:
        """Whether it began with an earlier request."""
        return self.fusion_id != self.prompt.fusion_id

    @property
    def headers(self) -> dict[str, str]:
        """Of every response."""
        return {OUTCOME_HEADER: self.fusion_id}


async def begin(
    of: Dependencies,
    who: Caller,
    headers: Mapping[str, str],
    asked: ChatRequest,
    body: dict[str, object],
    *,
    is_large: bool,
) -> Run:
    """Find the fusion that answers a request, an earlier one if this is that request once more.

    Args:
        of: what the API stands on.
        who: the caller.
        headers: of the request.
        asked: what it asks for.
        body: as the client wrote it.
        is_large: whether it is too large for a message of the bus, unless what is large in it stands apart.
    """
    request_hash = chat_request.request_hash(who.tenant, who.key_id, body)
    key = headers.get("idempotency-key")
    prompt = of.intake.admit(
        asked.submission,
        tenant=who.tenant,
        fallback_id=f"key-{key}" if key else of.new_id(),
        is_streamed=asked.is_streamed,
        depth=_depth(headers),
    )
    prompt = await of.large_parts.put_aside(prompt, is_large=is_large)
    attached = None
    if not key and of.settings.http.attach:
        attached = await of.intake.attach(who.tenant, request_hash, is_again=_is_again(headers))
    cancels = (
        asked.cancel_on_disconnect
        or headers.get("x-fusewire-cancel-on-disconnect", "").lower() == "true"
    )
    return Run(
        model=asked.model,
        is_streamed=asked.is_streamed,
        with_usage=asked.with_usage,
        warnings=(*asked.warnings, *_warnings(prompt)),
        prompt=prompt,
        fusion_id=attached or prompt.fusion_id,
        request_hash=request_hash,
        cancels=cancels,
    )


def _warnings(prompt: Prompt) -> Iterator[str]:
    if any(message.texts for message in prompt.messages):
        yield f"judges read the first and the last {END_CHARS} characters of each long text; members read the whole"


def _depth(headers: Mapping[str, str]) -> int:
    depth = 0
    for name in DEPTH_HEADERS:
        value = headers.get(name, "0")
        if not (value.isascii() and value.isdigit()):
            raise RefusedError("invalid_request", f"the header '{name}' must be a number", name)
        # Its length first: a number of any length takes any time to read.
        depth = max(depth, MOST_DEPTH + 1 if len(value) > 3 else int(value))
    if depth > MOST_DEPTH:
        raise RefusedError(
            "recursion",
            "a fusion within a fusion within a fusion is refused; do not make Fusewire a member of its own pool",
            "x-fusewire-depth",
        )
    return depth


def _is_again(headers: Mapping[str, str]) -> bool:
    """Whether a client sends a request once more. OpenAI's SDK does by itself, without any key."""
    return (
        headers.get("x-stainless-retry-count", "0") != "0"
        or headers.get("x-fusewire-attach", "").lower() == "true"
    )


async def answered(of: Dependencies, run: Run, request: Request) -> Outcome:
    """Submit a run and wait for its answer.

    Raises:
        HttpError: it has no answer, or not in time.
        GoneError: the client has left.
    """
    is_new = await _submit(of, run)
    try:
        with of.intake.open_requests.hold(run.fusion_id):
            return await unless_gone(request.receive, _outcome(of, run, just_begun=is_new))
    except ClientDisconnectedError:
        await _left(of, run)
        raise


async def streamed(of: Dependencies, run: Run, telling: StreamEncoder) -> Response:
    """Submit a run and tell of it while it goes on."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(of.intake.open_requests.hold(run.fusion_id))
        watch = await stack.enter_async_context(of.watcher.watch(run.fusion_id))
        outcome = _outcome(of, run, just_begun=await _submit(of, run))
        told = events(
            telling,
            watch,
            outcome,
            heartbeat_s=of.heartbeat_s,
            tells_panel=of.settings.http.panel_comments,
        )
        return EventStream(told, stack.pop_all(), run.headers, lambda: _left(of, run))


async def _submit(of: Dependencies, run: Run) -> bool:
    """Begin it. Returns whether there was none."""
    if run.is_attached:
        log.info("chat.attached", fusion_id=run.fusion_id)
        return False
    return (await of.intake.submit(run.prompt, source="chat", request_hash=run.request_hash)).is_new


async def _outcome(of: Dependencies, run: Run, *, just_begun: bool) -> Outcome:
    """Wait for the outcome. Raises HttpError where it has no answer, or is not there in time."""
    left = (run.prompt.deadline_at - of.clock()).total_seconds() + PATIENCE_S
    standing = None
    # It is accepted, whatever becomes of the wait.
    with contextlib.suppress(Transient):
        standing = await of.outcomes.get(
            run.prompt.tenant, run.fusion_id, max(left, 0), just_begun=just_begun
        )
    if (standing is None or standing.outcome is None) and of.outcomes.is_closing:
        message = f"this Fusewire stops; fusion {run.fusion_id} goes on: send the request again, it costs nothing"
        raise HttpError(503, "draining", message, retry_after_s=UNAVAILABLE_S, headers=run.headers)
    if standing is None or standing.outcome is None:
        message = f"fusion {run.fusion_id} has no outcome yet; it goes on: read it with GET /v1/fusions/{run.fusion_id}"
        raise HttpError(504, "timeout", message, headers=run.headers)
    outcome = standing.outcome
    if outcome.status in ANSWERED or chat_reply.is_withheld(outcome):
        return outcome
    found = chat_reply.failure(outcome)
    raise HttpError(
        found.status,
        found.code,
        found.message,
        # Some clients take a longer wait for none, and ask again at once.
        is_final=found.retry_after_s is None or found.retry_after_s > MOST_WAIT_S,
        retry_after_s=found.retry_after_s,
        headers=run.headers,
        about={"outcome_id": run.fusion_id, "failed_models": list(found.failed)},
    )


async def _left(of: Dependencies, run: Run) -> None:
    # Another request may have been attached to it.
    is_last = not of.intake.open_requests.is_held(run.fusion_id)
    is_cancelled = run.cancels and is_last
    if is_cancelled:
        await of.intake.cancel(run.prompt.tenant, [run.fusion_id])
    elif is_last:
        await of.intake.leave(run.fusion_id)
    log.info("chat.client_left", fusion_id=run.fusion_id, cancelled=is_cancelled)
