"""What clients say of a batch: OpenAI's fields, and what Fusewire adds in `x_fusewire`. Pure."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from fusewire_ingest.admission.refusal import unsupported, validated, wrong

MOST_METADATA = 16
MOST_REQUESTS = 1_000
"""In the body of one batch; more of them are a file."""
UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1)}
LONGEST = timedelta(days=7)


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class OutputExpiry(_StrictModel):
    """When the files that a batch writes go away."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3_600, le=2_592_000)


class BatchExtension(_StrictModel):
    """What Fusewire adds to a batch."""

    pool: str | None = None
    mode: Literal["best-of", "merge", "debate"] | None = None
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
    """Of a batch that was sent as requests: what it asks. The lines of a file each name their own."""
    x_fusewire: BatchExtension = BatchExtension()

    def options(self) -> str:
        """What decides what the batch is, as JSON; equal for a repetition."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True)


class Request(_StrictModel):
    """One request of a batch that needs no file."""

    custom_id: str
    body: dict[str, Any]


class Requests(_StrictModel):
    """The body of `POST /v1/batches` as OpenRouter's clients send it: with the requests in it."""

    endpoint: Literal["/v1/chat/completions"]
    model: str
    """Asked by every request that names none."""
    requests: list[Request] = Field(min_length=1, max_length=MOST_REQUESTS)
    completion_window: Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,2}[hd]$")] = "24h"
    callback_url: str | None = None
    provider: dict[str, Any] | None = None

    def file(self) -> bytes:
        """The same as a file in OpenAI's form."""
        told = {"method": "POST", "url": self.endpoint}
        lines = (
            {"custom_id": r.custom_id, **told, "body": {"model": self.model, **r.body}}
            for r in self.requests
        )
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def asked(self, file_id: str) -> CreateBatch:
        """The same as a batch of that file."""
        window_ = self.completion_window
        return CreateBatch(
            input_file_id=file_id,
            endpoint=self.endpoint,
            completion_window=window_,
            model=self.model,
        )


class ResumeBatch(_StrictModel):
    """The body of `POST /v1/batches/{id}/resume`."""

    max_cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class RetryBatch(_StrictModel):
    """The body of `POST /v1/batches/{id}/retry`."""

    only: Literal["retryable", "all"] = "retryable"


def asked(body: Mapping[str, Any]) -> CreateBatch:
    """Read what is asked for. Raises RefusedError."""
    found = validated(CreateBatch, body)
    window(found.completion_window)
    if found.model is not None:
        raise unsupported("model", "each line of the file names its own; remove it")
    return found


def requests(body: Mapping[str, Any]) -> Requests:
    """Read what is asked for together with its requests. Raises RefusedError."""
    found = validated(Requests, body)
    window(found.completion_window)
    if found.callback_url is not None:
        raise unsupported(
            "callback_url", "nobody is called back; look at the batch until it is over"
        )
    if found.provider is not None:
        raise unsupported(
            "provider", "the operator's configuration says where models run; remove it"
        )
    return found


def window(text: str) -> timedelta:
    """Read `24h` or `7d`. Raises RefusedError when it is longer than a week."""
    found = int(text[:-1]) * UNITS[text[-1]]
    if found > LONGEST:
        raise wrong("completion_window", "it must be 1h to 168h, or 1d to 7d")
    return found
