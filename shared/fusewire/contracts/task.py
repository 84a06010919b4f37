"""The task: one model call to make."""

from typing import ClassVar

from pydantic import AwareDatetime, Field

from fusewire.contracts.base import Priority, Residency, Tier, Wire
from fusewire.contracts.prompt import Message, Sampling, Tool
from fusewire.contracts.round import CallKind


class Task(Wire):
    """`fw.task.<tier>.<model>.<priority>`: dispatcher to one worker."""

    contract: ClassVar[str] = "task"

    task_id: str
    fusion_id: str
    round: int = Field(ge=0)
    call: str
    kind: CallKind
    member: str | None = None
    model: str
    tier: Tier
    tenant: str
    messages: tuple[Message, ...] = Field(min_length=1)
    sampling: Sampling
    expected_tokens: int | None = Field(default=None, ge=1)
    """See `Call`."""
    choices: tuple[str, ...] = ()
    """See `Call`."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    is_in_steps: bool = False
    """Whether an edge model shall write the steps to its answer first."""
    is_streamed: bool = False
    """Whether the worker shall publish the text while it is being written."""
    depth: int = Field(default=0, ge=0)
    """The prompt's; a request to another Fusewire says one more."""
    residency: Residency
    priority: Priority
    deadline_at: AwareDatetime
    """No answer is worth anything after this; a worker stops trying then."""
