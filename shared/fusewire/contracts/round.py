"""The round: the model calls that the judge asks for."""

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Part, Priority, Residency, Wire
from fusewire.contracts.prompt import Message, Sampling, Tool

CallKind = Literal["answer", "verdict", "analysis", "write", "debate"]


class CallSettings(Part):
    """How a model is called: of what the judge asks for, and of the task that dispatcher makes of it."""

    kind: CallKind
    model: str
    member: str | None = None
    """The pool member that speaks, whose own system prompt and sampling then apply; None for the judge."""
    sampling: Sampling = Sampling()
    """What the client or the pool asks for; nothing else is sent to a hosted model, which may refuse it."""
    expected_tokens: int | None = Field(default=None, ge=1)
    """About how long the answer is. The limit at the edge, where models ramble; hosted ones need room for thought."""
    choices: tuple[str, ...] = ()
    """Texts: the model says how probable each is as its answer, and writes none. Edge models only."""
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    is_streamed: bool = False
    """Whether its text is the outcome's, whatever comes, and may be shown while it is being written."""


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
    """The broker's store that it is published to first; empty in what was asked before there were ids."""
    deadline_at: AwareDatetime

    @property
    def is_panel(self) -> bool:
        """Whether it asks members for answers, and not what a strategy wants of them or the judge."""
        return self.calls[0].kind == "answer"
