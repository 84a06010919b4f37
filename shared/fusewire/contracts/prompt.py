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
    """`https://…` or `data:image/…;base64,…`; with `blob:` and a name in place of its data where those stand in the
    object store (`references.images`). Fusewire fetches nothing else: the provider does."""
    detail: Literal["auto", "low", "high"] = "auto"
    at: int = Field(default=0, ge=0)
    """Before which character of the message's text it stands."""


class TextReference(Part):
    """The middle of a long text, which stands in the object store (`references.texts`)."""

    name: str
    chars: int = Field(ge=1)
    size: int = Field(ge=1)
    """Bytes in UTF-8."""
    at: int = Field(ge=0)
    """Before which character of the message's text it belongs."""


class Message(Part):
    """One turn of a conversation, in OpenAI's shape."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    """Empty for an assistant's turn that only calls tools."""
    name: str | None = None
    """Who among several speaks so, for models that are told."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant's turn asked for."""
    reasoning: str | None = None
    """What an assistant thought before that, for models that want it back."""
    tool_call_id: str | None = None
    """The call that a tool's turn answers."""
    images: tuple[Image, ...] = ()
    """In the order of their places. Models without eyes are not asked."""
    texts: tuple[TextReference, ...] = ()
    """What `content` is without, in the order of their places. Models at the edge are not asked."""


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
    """The last five go to the members whose providers take them; others sample without."""
    logit_bias: dict[str, Any] | None = None
    """By the model's own token ids; only where one model is asked."""
    response_schema: dict[str, Any] | None = None
    """A JSON Schema that the answer must satisfy."""

    def over(self, default: "Sampling") -> "Sampling":
        """This sampling, with what it leaves open taken from `default`."""
        given = {name: value for name, value in self if value is not None and value != ()}
        return default.model_copy(update=given)


class RecordedAnswer(Part):
    """An answer that was bought earlier and takes part again without a call."""

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
    """What it cost then; the replay itself spends nothing on it."""


PresetName = Literal["high", "budget", "fast"]

Match = Literal["exact", "number", "choice", "json"]


class Gold(Part):
    """The right answer to a labelled prompt. No model ever sees it; the judge's service scores answers by it."""

    answer: str
    match: Match


class Prompt(Wire):
    """`fw.prompt.<priority>.<tenant>`: ingest to dispatcher."""

    contract: ClassVar[str] = "prompt"

    fusion_id: str
    tenant: str = Field(pattern=NAME)
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
    """Configured models that are asked in place of the pool's members, each as a member of its own name."""
    preset: PresetName | None = None
    """A set of rules that goes over the pool's own."""
    judge: str | None = None
    """A configured model that judges in place of the pool's judge or jury."""
    criteria: str | None = None
    """What the judge shall value, in place of the pool's criteria."""
    recorded: tuple[RecordedAnswer, ...] = ()
    """Answers that stand in for the pool's members, none of which is then called."""
    gold: Gold | None = None
    is_streamed: bool = False
    """Whether somebody reads the answer while it is being written."""
    store_id: str = ""
    """The broker's store that it is published to first; empty where that was not known."""
    depth: int = Field(default=0, ge=0)
    """How many Fusewires it has come through before this one."""
    is_complete: bool = False
    """Whether every member is asked and waited for: no gate, no early stop, no quorum."""
    residency: Residency
    priority: Priority
    seed: int
    submitted_at: AwareDatetime
    deadline_at: AwareDatetime
