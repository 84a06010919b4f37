"""What the console shows beside fusions: who calls, prompts as they were submitted, what runs."""

from typing import Literal, NotRequired

# Pydantic reads no other before Python 3.12.
from typing_extensions import TypedDict

from fusewire.contracts.base import Mode, Priority, Residency
from fusewire.contracts.prompt import PresetName
from fusewire.replies.fusions import PlainCall


class Caller(TypedDict):
    """`GET /v1/caller`."""

    object: Literal["caller"]
    tenant: str
    key_id: str | None
    """Null for a caller without a key."""
    scopes: list[str]
    """Sorted."""
    needs_key: bool
    """Whether this API requires keys."""


class PromptPart(TypedDict):
    """An image of a message, or the middle of a long text, which is kept beside the message.

    Fields that do not apply to it are null.
    """

    kind: Literal["image", "text"]
    at: int
    """The index of the character of `content` before which it stands."""
    url: str | None
    """An image's address or data; null for data that are kept beside the message."""
    media_type: str | None
    """Of an image in data."""
    detail: str | None
    chars: int | None
    """The length of a text."""
    bytes: int | None
    """The size of what is kept beside the message; null too for an image that is kept no more."""
    sha256: str | None
    """The name of what is kept beside the message: SHA-256 of its kind, the tenant and its data."""


class PromptMessage(TypedDict):
    """One turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    """Without the parts."""
    name: str | None
    tool_calls: list[PlainCall]
    tool_call_id: str | None
    reasoning: str | None
    parts: list[PromptPart]
    """In the order of `at`."""


class SubmittedPrompt(TypedDict):
    """`GET /v1/fusions/{id}/prompt`."""

    object: Literal["prompt"]
    id: str
    custom_id: str
    batch_id: str | None
    messages: list[PromptMessage]
    mode: Mode
    pool: str
    residency: Residency
    priority: Priority
    preset: PresetName | None
    tools: list[str]
    """Names."""
    submitted_at: str
    deadline_at: str


class QueueStatus(TypedDict):
    """What waits for a durable of JetStream."""

    stream: str
    durable: str
    waiting: int
    """Messages that were not delivered yet."""
    in_flight: int
    """Messages that were delivered and not acknowledged."""
    redelivered: int
    """Messages of these that were delivered more than once."""


class Status(TypedDict):
    """`GET /v1/status`: what runs now."""

    object: Literal["status"]
    tenant: str
    running: int
    """Fusions without an outcome."""
    oldest_running_s: float | None
    """Seconds since the first of these was submitted; null if there is none."""
    batches: int
    """Batches that are not over."""
    queues: NotRequired[list[QueueStatus] | None]
    """For callers with the scope `admin`, without queues of pools and models that the tenant may
    not use; null if NATS does not answer."""
    queues_error: NotRequired[str | None]
    """Why there are no queues."""
