"""One call to a hosted model, made again at once without the parameters that its server refuses."""

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import structlog

from fusewire import references
from fusewire.contracts import Task
from fusewire.settings import RemoteModel
from fusewire.worker import TokenPublisher
from fusewire_worker_remote.candidate import CallTally
from fusewire_worker_remote.dialect import Dialect, Refusal, parse_refusal, without_fence
from fusewire_worker_remote.dialects import DialectStore
from fusewire_worker_remote.errors import Failure
from fusewire_worker_remote.place import DEADLINE_PASSED
from fusewire_worker_remote.providers import PROVIDERS, HttpRequest, HttpResponse, ProviderReply
from fusewire_worker_remote.stream_reader import StreamReader
from fusewire_worker_remote.transport import Transport

log = structlog.get_logger(__name__)

MAX_ANSWER_BYTES = 768 * 1024
"""Most bytes of an answer in JSON: its candidate has to fit a NATS message of 1 MiB."""

MOST_REFUSALS = 8
"""Most parameters that are negotiated in one call."""
REFUSAL_STATUS = (400, 422)


class ModelCaller:
    """Calls hosted models, each in the dialect that it accepts.

    Args:
        transport: posts the requests.
        dialects: what is known of the models.
        clock: gives the current time, with a zone.
    """

    def __init__(
        self, transport: Transport, dialects: DialectStore, clock: Callable[[], datetime]
    ) -> None:
        self._transport = transport
        self._dialects = dialects
        self._clock = clock

    async def call(
        self, task: Task, model: RemoteModel, publisher: TokenPublisher | None, tally: CallTally
    ) -> ProviderReply | Failure:
        """Call a model once; repeat at once if it refuses a parameter, which costs nothing.

        Args:
            task: the task.
            model: the model to call.
            publisher: publishes the answer as it comes; the call is then streamed, if the server
                can do that.
            tally: counts the calls.
        """
        for _ in range(MOST_REFUSALS):
            dialect = PROVIDERS[model.provider].base_dialect.merge(self._dialects.of(model))
            result = await self._call_once(task, model, dialect, publisher, tally)
            if isinstance(result, Refusal):
                log.info("remote.parameter_refused", model=task.model, parameter=result.parameter)
                # Called again at once, as a refused request costs nothing (docs/decisions/0035).
                await self._dialects.learn(model, result.dialect)
                continue
            if not dialect.is_thinking and _has_thought(result):
                await self._dialects.learn(model, dialect.model_copy(update={"is_thinking": True}))
            return result
        message = f"the server refused {MOST_REFUSALS} parameters, one after the other"
        return Failure("bad_request", message, retryable=False)

    async def _call_once(
        self,
        task: Task,
        model: RemoteModel,
        dialect: Dialect,
        publisher: TokenPublisher | None,
        tally: CallTally,
    ) -> ProviderReply | Failure | Refusal:
        left_s = (task.deadline_at - self._clock()).total_seconds()
        if left_s <= 0:
            return DEADLINE_PASSED
        provider = PROVIDERS[model.provider]
        is_streamed = publisher is not None or model.always_stream
        marked_task, names = _with_marks(task)
        request = provider.request(marked_task, model, dialect, is_streamed=is_streamed)
        if isinstance(request, Failure):
            return request
        reader = None
        if is_streamed:
            assembly = provider.assemble(self._clock())
            reader = StreamReader(assembly, publisher, max_chars=MAX_ANSWER_BYTES)
        tally.calls += 1
        timeout_s = min(model.timeout_s, left_s)
        response = await self._transport.post(request, timeout_s, reader, names)
        if reader and _has_read(reader, response):
            return _within_limit(await reader.result())
        if isinstance(response, HttpResponse):
            return await self._read_whole(
                task, model, dialect, publisher, request=request, response=response
            )
        if response.code == "timeout" and left_s <= model.timeout_s:
            return replace(response, code="deadline_exceeded", retryable=False)
        return response

    async def _read_whole(
        self,
        task: Task,
        model: RemoteModel,
        dialect: Dialect,
        publisher: TokenPublisher | None,
        *,
        request: HttpRequest,
        response: HttpResponse,
    ) -> ProviderReply | Failure | Refusal:
        """Read a response that was not streamed."""
        answer = PROVIDERS[model.provider].read(response, self._clock())
        if isinstance(answer, Failure):
            if answer.code == "bad_request" and response.status in REFUSAL_STATUS:
                return parse_refusal(request.payload, response.body, dialect) or answer
            return answer
        if publisher and answer.content:
            await publisher(answer.content)
        if answer.content is not None and task.sampling.response_schema is not None:
            answer = replace(answer, content=without_fence(answer.content))
        return _within_limit(answer)


def _has_read(reader: StreamReader, response: HttpResponse | Failure) -> bool:
    """Whether a reader has the whole answer, or all that the server streamed of it."""
    # If the connection breaks once the answer is complete, nothing is missing
    # (docs/decisions/0036).
    return reader.is_complete or (isinstance(response, HttpResponse) and response.is_streamed)


def _has_thought(result: ProviderReply | Failure) -> bool:
    if isinstance(result, Failure):
        return False
    return bool(result.reasoning or (result.usage and result.usage.reasoning_tokens))


def _with_marks(task: Task) -> tuple[Task, dict[str, str]]:
    """Put a mark in place of each large image and text.

    Returns:
        The task with marks, and the names of the large parts by their mark.
    """
    names = references.names(task.messages)
    if not names:
        return task, {}
    # Random: a text of the prompt that held a mark would be replaced by the large part.
    prefix = secrets.token_hex(16)
    marks = {name: f"{prefix}{number:04d}" for number, name in enumerate(names)}
    with_texts = references.texts.with_texts_filled(task.messages, lambda text: marks[text.name])
    messages = references.images.put_back(with_texts, marks)
    marked_task = task.model_copy(update={"messages": messages})
    return marked_task, {mark: name for name, mark in marks.items()}


def _within_limit(answer: ProviderReply | Failure) -> ProviderReply | Failure:
    """Return the answer, or a failure if it does not fit the message that carries it."""
    if isinstance(answer, Failure) or not _is_too_large(answer):
        return answer
    message = f"the answer exceeds {MAX_ANSWER_BYTES} bytes"
    return Failure("answer_too_large", message, retryable=False, billed=True, usage=answer.usage)


def _is_too_large(answer: ProviderReply) -> bool:
    # JSON takes at most six bytes for a character, so most answers need no counting.
    if not answer.tool_calls and len(answer.content or "") * 6 <= MAX_ANSWER_BYTES:
        return False
    content = [answer.content, [call.model_dump() for call in answer.tool_calls]]
    return len(json.dumps(content, ensure_ascii=False).encode()) > MAX_ANSWER_BYTES
