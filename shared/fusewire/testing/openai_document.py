"""For tests: holds what a server answers against OpenAI's own document of its API.

The facts, fields with their types, are those of components in the document that OpenAI publishes
(openapi.yaml, 2.3.0); `tests/e2e/data/openai_replies.json` has what a server of texts needs. Left
out: `access_programs`, which is about OpenAI's own accounts. Changed: the ends of a page may be
null, since an empty one has none, and so may the end and the details of a file, as their
descriptions say.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
from jsonschema import Draft202012Validator

_BY_ADDRESS = {
    ("POST", "chat/completions"): "CreateChatCompletionResponse",
    ("POST", "responses"): "Response",
    ("GET", "responses/*"): "Response",
    ("GET", "models"): "ListModelsResponse",
    ("GET", "models/*"): "Model",
    ("GET", "files"): "ListFilesResponse",
    ("POST", "files"): "OpenAIFile",
    ("GET", "files/*"): "OpenAIFile",
    ("DELETE", "files/*"): "DeleteFileResponse",
    ("GET", "batches"): "ListBatchesResponse",
    ("POST", "batches"): "Batch",
    ("GET", "batches/*"): "Batch",
    ("POST", "batches/*/cancel"): "Batch",
}
_CHUNK = "CreateChatCompletionStreamResponse"
_BY_EVENT = {
    "response.created": "ResponseCreatedEvent",
    "response.in_progress": "ResponseInProgressEvent",
    "response.completed": "ResponseCompletedEvent",
    "response.incomplete": "ResponseIncompleteEvent",
    "response.failed": "ResponseFailedEvent",
    "response.output_item.added": "ResponseOutputItemAddedEvent",
    "response.output_item.done": "ResponseOutputItemDoneEvent",
    "response.content_part.added": "ResponseContentPartAddedEvent",
    "response.content_part.done": "ResponseContentPartDoneEvent",
    "response.output_text.delta": "ResponseTextDeltaEvent",
    "response.output_text.done": "ResponseTextDoneEvent",
    "response.function_call_arguments.delta": "ResponseFunctionCallArgumentsDeltaEvent",
    "response.function_call_arguments.done": "ResponseFunctionCallArgumentsDoneEvent",
    "error": "ResponseErrorEvent",
}


class Document:
    """The facts.

    Args:
        file: with JSON Schemas under `$defs`.
    """

    def __init__(self, file: Path) -> None:
        self._definitions: dict[str, Any] = json.loads(file.read_text())["$defs"]

    def faults(self, component: str, value: object) -> list[str]:
        """What of a value the component does not allow."""
        schema = {"$ref": f"#/$defs/{component}", "$defs": self._definitions}
        errors = Draft202012Validator(schema).iter_errors(value)
        return [f"{component}{error.json_path[1:]}: {error.message[:300]}" for error in errors]


class CheckedTransport(httpx2.BaseTransport):
    """Passes requests on, and checks each reply and each event against the document.

    Args:
        document: the facts.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._inner = httpx2.HTTPTransport()
        self.faults: list[str] = []
        """Of all replies so far."""
        self.components: list[str] = []
        """The component of each reply and event so far."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """See httpx2."""
        reply = self._inner.handle_request(request)
        assert isinstance(reply.stream, httpx2.SyncByteStream)

        def check(body: bytes) -> None:
            self._check(request, reply, body)

        stream = _CheckedBody(reply.stream, check)
        return httpx2.Response(
            reply.status_code, headers=reply.headers, stream=stream, extensions=reply.extensions
        )

    def close(self) -> None:
        """See httpx2."""
        self._inner.close()

    def _check(self, request: httpx2.Request, reply: httpx2.Response, body: bytes) -> None:
        component = _component(request, reply)
        kind = reply.headers.get("content-type", "")
        if kind.startswith("text/event-stream"):
            for event in _events(body):
                self._hold(_BY_EVENT.get(event["type"]) if "type" in event else _CHUNK, event)
        elif component and kind.startswith("application/json"):
            self._hold(component, json.loads(body))

    def _hold(self, component: str | None, value: Any) -> None:
        if component is None:
            self.faults.append(f"no such event: {value}")
            return
        if component == _CHUNK and "error" in value:
            component = "ErrorResponse"
        self.components.append(component)
        self.faults += self._document.faults(component, value)


def _component(request: httpx2.Request, reply: httpx2.Response) -> str | None:
    """The component that a reply must match, by the request's address."""
    if reply.status_code >= 400:
        # At OpenRouter's addresses the code of an error is a number.
        return None if request.url.path.startswith("/api/") else "ErrorResponse"
    _, _, path = request.url.path.partition("/v1/")
    parts = path.split("/")
    if len(parts) > 1 and parts[0] != "chat":
        parts[1] = "*"
    return _BY_ADDRESS.get((request.method, "/".join(parts)))


class _CheckedBody(httpx2.SyncByteStream):
    """A body that is looked at once it has been read."""

    def __init__(self, inner: httpx2.SyncByteStream, check: Callable[[bytes], None]) -> None:
        self._inner = inner
        self._check = check
        self._body = bytearray()

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            self._body += piece
            yield piece
        self._check(bytes(self._body))

    def close(self) -> None:
        self._inner.close()


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.decode().split("\n"):
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))
