"""The prompt: what was submitted, once ingest has accepted it."""

from typing import Any, ClassVar, Literal

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Mode, Part, Priority, Residency, Wire

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
"""Names of tenants, pools, members and models: safe as one token of a NATS subject."""


class Message(Part):
    """One turn of a conversation, in OpenAI's shape."""

    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(Part):
    """How to sample. None means: what the member, the model or the provider has as its default."""

    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    response_schema: dict[str, Any] | None = None
    """A JSON Schema that the answer must satisfy."""

    def over(self, default: "Sampling") -> "Sampling":
        """This sampling, with what it leaves open taken from `default`."""
        return Sampling(
            max_tokens=self.max_tokens if self.max_tokens is not None else default.max_tokens,
            temperature=self.temperature if self.temperature is not None else default.temperature,
            top_p=self.top_p if self.top_p is not None else default.top_p,
            seed=self.seed if self.seed is not None else default.seed,
            stop=self.stop or default.stop,
            response_schema=self.response_schema if self.response_schema is not None else default.response_schema,
        )


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
    residency: Residency
    priority: Priority
    seed: int
    submitted_at: AwareDatetime
    deadline_at: AwareDatetime
