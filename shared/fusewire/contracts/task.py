"""The task: one model call to make; and the message in which the tasks of a round travel."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import AwareDatetime, Field

from fusewire import ids
from fusewire.contracts.base import ContractError, Part, Priority, Residency, Tier, Wire
from fusewire.contracts.prompt import Message, Tool
from fusewire.contracts.round import CallSettings

Place = Annotated[int, Field(ge=0)]


class TaskSettings(CallSettings):
    """The fields of one task, besides its messages and tools."""

    call: str
    is_in_steps: bool = False
    """Whether an edge model writes the steps to its answer first."""


class SharedSettings(Part):
    """The fields that all tasks of a message have in common."""

    fusion_id: str
    round: int = Field(ge=0)
    tier: Tier
    tenant: str
    depth: int = Field(default=0, ge=0)
    """The prompt's depth; a request to another Fusewire adds one."""
    residency: Residency
    priority: Priority
    deadline_at: AwareDatetime
    """After this no answer is of use, and a worker gives up."""


class Task(TaskSettings, SharedSettings):
    """One model call to make, as a worker sees it."""

    task_id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    tools: tuple[Tool, ...] = ()


class PackedTask(TaskSettings):
    """A task in `Tasks`, which holds the messages and tools of all its tasks once."""

    messages: tuple[Place, ...] = Field(min_length=1)
    """Indexes in `Tasks.messages`."""
    tools: tuple[Place, ...] = ()
    """Indexes in `Tasks.tools`."""


class Tasks(Wire, SharedSettings):
    """`fw.task.<tier>.<queue>.<priority>`: dispatcher to a worker, which makes the calls.

    The calls run at the same time.
    """

    contract: ClassVar[str] = "tasks"

    queue: str
    """The pool's name for hosted models, the model's name for an edge model."""
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tasks: tuple[PackedTask, ...] = Field(min_length=1)

    @property
    def key(self) -> str:
        """A deterministic name, also the key of the paid-call ledger."""
        return f"{self.fusion_id}-{self.round}-{self.queue}"

    @classmethod
    def from_tasks(cls, queue: str, tasks: Sequence[Task]) -> Self:
        """Put tasks of one round and one queue into a message."""
        # By identity: tasks that are planned together share these objects.
        messages: dict[int, Message] = {}
        tools: dict[int, Tool] = {}
        for task in tasks:
            messages |= {id(message): message for message in task.messages}
            tools |= {id(tool): tool for tool in task.tools}
        message_places = {key: place for place, key in enumerate(messages)}
        tool_places = {key: place for place, key in enumerate(tools)}
        packed_tasks = []
        for task in tasks:
            packed_task = PackedTask(
                **_values(TaskSettings, task),
                messages=tuple(message_places[id(message)] for message in task.messages),
                tools=tuple(tool_places[id(tool)] for tool in task.tools),
            )
            packed_tasks.append(packed_task)
        return cls(
            **_values(SharedSettings, tasks[0]),
            queue=queue,
            messages=tuple(messages.values()),
            tools=tuple(tools.values()),
            tasks=tuple(packed_tasks),
        )

    def each(self) -> tuple[Task, ...]:
        """The tasks.

        Raises:
            ContractError: a task refers to a message or a tool that is not there.
        """
        return tuple(self._unpack(index, task) for index, task in enumerate(self.tasks))

    def _unpack(self, index: int, task: PackedTask) -> Task:
        try:
            messages = tuple(self.messages[place] for place in task.messages)
            tools = tuple(self.tools[place] for place in task.tools)
        except IndexError:
            raise ContractError(
                self.contract, f"$.tasks[{index}]", "names a message or tool that is not there"
            ) from None
        # Not validated again: everything was checked when the message was decoded.
        return Task.model_construct(
            **_values(TaskSettings, task),
            **_values(SharedSettings, self),
            task_id=ids.task_id(self.fusion_id, self.round, task.call),
            messages=messages,
            tools=tools,
        )


def _values(kind: type[Part], part: Part) -> dict[str, Any]:
    """A part's values of the fields that a base class declares."""
    return {name: getattr(part, name) for name in kind.model_fields}
