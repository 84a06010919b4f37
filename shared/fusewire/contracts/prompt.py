"""The prompt: what was submitted, once ingest has accepted it."""

from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Mode, Part, Priority, Residency, Wire

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names of tenants, pools, members and models: safe as one token of a NATS subject."""

TOOL_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
"""Names of functions, as all providers take them."""


class ToolCall(Part):
    """A call of a function that a model asks for. Fusewire never executes one."""

    id: str
    name: str
    arguments: str
    """The arguments as the model wrote them: JSON, if it kept to the rules."""


class Tool(Part):
    """A function that models may call."""

    name: str = Field(pattern=TOOL_NAME)
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """A JSON Schema of the arguments."""


class Image(Part):
    """An image within a message."""

    url: str
    """`https://…` or `data:image/…;base64,…`.

    Data in the object store are replaced with `blob:` and a name (`references.images`). Fusewire
    fetches nothing else: the provider does.
    """
    detail: Literal["auto", "low", "high"] = "auto"
    at: int = Field(default=0, ge=0)
    """The index of the character in the message's text before which it stands."""


class TextReference(Part):
    """The middle of a long text, which is in the object store (`references.texts`)."""

    name: str
    chars: int = Field(ge=1)
    size: int = Field(ge=1)
    """Bytes in UTF-8."""
    at: int = Field(ge=0)
    """The index of the character in the message's text before which it belongs."""


class Message(Part):
    """One turn of a conversation, in OpenAI's shape."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    """Empty for an assistant's turn that only calls tools."""
    name: str | None = None
    """The speaker's name, for models that know names."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The tool calls of an assistant's turn."""
    reasoning: str | None = None
    """An assistant's reasoning before that, for models that expect it back."""
    tool_call_id: str | None = None
    """The call that a tool's turn answers."""
    images: tuple[Image, ...] = ()
    """In the order of `at`. Models that take no images are not called."""
    texts: tuple[TextReference, ...] = ()
    """The parts that are missing in `content`, in the order of `at`. Edge models are not called."""


class Sampling(Part):
    """How to sample. None means: what the member, the model or the provider has as its default."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int | None = Field(default=None, ge=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    """The last five are sent only to providers that take them."""
    logit_bias: dict[str, Any] | None = None
    """By the model's own token ids; only if one model is called."""
    response_schema: dict[str, Any] | None = None
    """A JSON Schema that the answer must satisfy."""

    def over(self, default: "Sampling") -> "Sampling":
        """This sampling, with the defaults for fields that are not set."""
        fields = {name: value for name, value in self if value is not None and value != ()}
        return default.model_copy(update=fields)


class RecordedAnswer(Part):
    """An answer of an earlier fusion that takes part again without a call."""

    member: str = Field(pattern=NAME)
    model: str = Field(pattern=NAME)
    family: str = ""
    weight: float = Field(default=1.0, gt=0)
    content: str | None = None
    """The answer; None with `error_code` for a failure."""
    tool_calls: tuple[ToolCall, ...] = ()
    error_code: str | None = None
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    latency_ms: float = Field(default=0.0, ge=0)
    cost_usd: float | None = None
    """Its original cost; the replay itself costs nothing."""


PresetName = Literal["high", "budget", "fast"]

Match = Literal["exact", "number", "choice", "json"]


class Gold(Part):
    """The right answer to a labelled prompt, by which the judge scores answers.

    No model ever sees it.
    """

    answer: str
    match: Match


class Prompt(Wire):
    """`fw.prompt.<priority>.<tenant>`: ingest to dispatcher."""

    contract: ClassVar[str] = "prompt"

    fusion_id: str
    tenant: str = Field(pattern=NAME)
    key_id: str | None = None
    """The API key that it was sent with, if it was with one."""
    batch_id: str | None = None
    custom_id: str
    pool: str = Field(pattern=NAME)
    mode: Mode
    messages: tuple[Message, ...] = Field(min_length=1)
    sampling: Sampling = Sampling()
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or the name of the one tool to call."""
    parallel_tool_calls: bool = True
    """Whether an answer may call several tools at once."""
    members: tuple[str, ...] = ()
    """Configured models in place of the pool's members, each a member with the model's name."""
    preset: PresetName | None = None
    """A set of rules that overrides the pool's."""
    judge: str | None = None
    """A configured model that judges in place of the pool's judge or jury."""
    criteria: str | None = None
    """What the judge should value, in place of the pool's criteria."""
    recorded: tuple[RecordedAnswer, ...] = ()
    """Recorded answers in place of the pool's members, none of which is then called."""
    gold: Gold | None = None
    is_streamed: bool = False
    """Whether a client reads the answer while it is being written."""
    store_id: str = ""
    """The id of the broker's store that it is first published to; empty if unknown."""
    depth: int = Field(default=0, ge=0)
    """The number of Fusewires that it has passed before this one."""
    is_complete: bool = False
    """Whether all members are called and awaited: no gate, no early stop, no quorum."""
    residency: Residency
    priority: Priority
    seed: int
    submitted_at: AwareDatetime
    deadline_at: AwareDatetime
