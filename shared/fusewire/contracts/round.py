"""The round: the model calls that the judge asks for."""

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Part, Priority, Residency, Wire
from fusewire.contracts.prompt import Message, Sampling, Tool

CallKind = Literal["answer", "verdict", "analysis", "write", "debate", "check"]


class CallSettings(Part):
    """How to call a model: common fields of a round's calls and of the tasks made from them."""

    kind: CallKind
    model: str
    member: str | None = None
    """The pool member, whose own system prompt and sampling then apply; None for the judge."""
    sampling: Sampling = Sampling()
    """The client's or the pool's sampling. A hosted model gets no other, as it may refuse it."""
    expected_tokens: int | None = Field(default=None, ge=1)
    """An estimate of the answer's length. It is the limit of edge models, which ramble; hosted
    models get none, as they need tokens for reasoning."""
    choices: tuple[str, ...] = ()
    """Texts whose probability as an answer the model computes, without writing one. Edge models
    only."""
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    is_streamed: bool = False
    """Whether its text is the outcome's in any case, so that it may be published while it is
    written."""


class Call(CallSettings):
    """One model call: `name` is unique within its round."""

    name: str
    messages: tuple[Message, ...] = Field(min_length=1)
    tools: tuple[Tool, ...] = ()


class Round(Wire):
    """`fw.round.<fusion>`: judge to dispatcher, which turns each call into a task."""

    contract: ClassVar[str] = "round"

    fusion_id: str
    round: int = Field(ge=1)
    tenant: str
    pool: str
    calls: tuple[Call, ...] = Field(min_length=1)
    residency: Residency
    priority: Priority
    seed: int
    depth: int = Field(default=0, ge=0)
    """The prompt's."""
    store_id: str = ""
    """The id of the broker's store that it is first published to; empty in rounds of old
    versions."""
    deadline_at: AwareDatetime

    @property
    def is_panel(self) -> bool:
        """Whether its calls are members' answers, and not calls of the judge or of a debate."""
        return self.calls[0].kind == "answer"
