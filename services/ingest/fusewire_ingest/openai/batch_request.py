"""Requests about batches: OpenAI's fields, and Fusewire's own in `x_fusewire`. Pure."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fusewire.contracts import Mode
from fusewire_ingest.admission.refusal import invalid_error, unsupported_error, validate

MOST_METADATA = 16
MOST_REQUESTS = 1_000
"""The most requests in the body of one batch; more need a file."""
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}
LONGEST = timedelta(days=7)


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class OutputExpiry(_StrictModel):
    """When the output files of a batch expire."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class BatchExtension(_StrictModel):
    """Fusewire's additions to a batch."""

    pool: str | None = None
    mode: Mode | None = None
    priority: Literal["high", "normal", "low"] = "low"
    max_cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class CreateBatch(_StrictModel):
    """The body of `POST /v1/batches`."""

    input_file_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    endpoint: Literal["/v1/chat/completions", "/v1/fusions", "/v1/responses"]
    completion_window: Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,2}[hd]$")] = "24h"
    metadata: (
        dict[
            Annotated[str, StringConstraints(max_length=64)],
            Annotated[str, StringConstraints(max_length=512)],
        ]
        | None
    ) = Field(default=None, max_length=MOST_METADATA)
    output_expires_after: OutputExpiry | None = None
    model: str | None = None
    """Model of a batch that was sent as requests. Lines of a file each name their own."""
    x_fusewire: BatchExtension = BatchExtension()

    def options(self) -> str:
        """All options as JSON; equal for a repetition of the same request."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True)


class Request(_StrictModel):
    """One request of a batch that needs no file."""

    custom_id: str
    body: dict[str, Any]


class Requests(_StrictModel):
    """The body of `POST /v1/batches` in OpenRouter's form, which holds the requests."""

    endpoint: Literal["/v1/chat/completions"]
    model: str
    """Model of the requests that name none."""
    requests: list[Request] = Field(min_length=1, max_length=MOST_REQUESTS)
    completion_window: Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,2}[hd]$")] = "24h"
    callback_url: str | None = None
    provider: dict[str, Any] | None = None

    def file(self) -> bytes:
        """The same as a file in OpenAI's form."""
        target = {"method": "POST", "url": self.endpoint}
        lines = (
            {
                "custom_id": request.custom_id,
                **target,
                "body": {"model": self.model, **request.body},
            }
            for request in self.requests
        )
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def batch(self, file_id: str) -> CreateBatch:
        """The same as a batch of that file."""
        return CreateBatch(
            input_file_id=file_id,
            endpoint=self.endpoint,
            completion_window=self.completion_window,
            model=self.model,
        )


class ResumeBatch(_StrictModel):
    """The body of `POST /v1/batches/{id}/resume`."""

    max_cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class RetryBatch(_StrictModel):
    """The body of `POST /v1/batches/{id}/retry`."""

    only: Literal["retryable", "all"] = "retryable"


def parse_create(body: Mapping[str, Any]) -> CreateBatch:
    """Parse a request for a batch of a file. Raises RefusedError."""
    batch = validate(CreateBatch, body)
    window(batch.completion_window)
    if batch.model is not None:
        raise unsupported_error("model", "each line of the file names its own; remove it")
    return batch


def parse_requests(body: Mapping[str, Any]) -> Requests:
    """Parse a request for a batch that holds its requests. Raises RefusedError."""
    requests = validate(Requests, body)
    window(requests.completion_window)
    if requests.callback_url is not None:
        raise unsupported_error(
            "callback_url", "nobody is called back; look at the batch until it is over"
        )
    if requests.provider is not None:
        raise unsupported_error(
            "provider", "the operator's configuration says where models run; remove it"
        )
    return requests


def window(text: str) -> timedelta:
    """Parse `24h` or `7d`. Raises RefusedError if it is longer than a week."""
    duration = int(text[:-1]) * UNITS[text[-1]]
    if duration > LONGEST:
        raise invalid_error("completion_window", "it must be 1h to 168h, or 1d to 7d")
    return duration
