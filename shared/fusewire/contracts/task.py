"""The task: one model call to make; and the message in which the tasks of a round travel."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AwareDatetime, Field

from fusewire import ids
from fusewire.contracts.base import ContractError, Part, Priority, Residency, Tier, Wire
from fusewire.contracts.prompt import Message, Tool
from fusewire.contracts.round import CallSettings

Shared = TypeVar("Shared")
Place = Annotated[int, Field(ge=0)]


class TaskSettings(CallSettings):
    """What a task has for itself, besides its messages and tools."""

    call: str
    is_in_steps: bool = False
    """Whether an edge model shall write the steps to its answer first."""


class SharedSettings(Part):
    """What all tasks of a message have in common."""

    fusion_id: str
    round: int = Field(ge=0)
    tier: Tier
    tenant: str
    depth: int = Field(default=0, ge=0)
    """The prompt's; a request to another Fusewire says one more."""
    residency: Residency
    priority: Priority
    deadline_at: AwareDatetime
    """No answer is worth anything after this; a worker stops trying then."""


class Task(TaskSettings, SharedSettings):
    """One model call to make, as a worker sees it."""

    task_id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    tools: tuple[Tool, ...] = ()


class PackedTask(TaskSettings):
    """A task in `Tasks`: its messages and tools stand there, once for all tasks."""

    messages: tuple[Place, ...] = Field(min_length=1)
    """Their places in `Tasks.messages`."""
    tools: tuple[Place, ...] = ()
    """Their places in `Tasks.tools`."""


class Tasks(Wire, SharedSettings):
    """`fw.task.<tier>.<queue>.<priority>`: dispatcher to one worker, which makes the calls side by side."""

    contract: ClassVar[str] = "tasks"

    queue: str
    """Who takes it: the pool's name for hosted models, the model's name for one at the edge."""
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tasks: tuple[PackedTask, ...] = Field(min_length=1)

    @property
    def key(self) -> str:
        """Its name, the same whenever dispatcher makes it again; also the key of the paid-call ledger."""
        return f"{self.fusion_id}-{self.round}-{self.queue}"

    @classmethod
    def from_tasks(cls, queue: str, tasks: Sequence[Task]) -> Self:
        """Put tasks of one round and one queue into a message."""
        messages = _places(message for task in tasks for message in task.messages)
        tools = _places(tool for task in tasks for tool in task.tools)
        return cls(
            **_values(SharedSettings, tasks[0]),
            queue=queue,
            messages=tuple(one for _, one in messages.values()),
            tools=tuple(one for _, one in tools.values()),
            tasks=tuple(
                PackedTask(
                    **_values(TaskSettings, task),
                    messages=tuple(messages[id(one)][0] for one in task.messages),
                    tools=tuple(tools[id(one)][0] for one in task.tools),
                )
                for task in tasks
            ),
        )

    def each(self) -> tuple[Task, ...]:
        """The tasks.

        Raises:
            ContractError: one names a message or a tool that is not there.
        """
        return tuple(self._task(place, packed) for place, packed in enumerate(self.tasks))

    def _task(self, place: int, packed: PackedTask) -> Task:
        try:
            messages = tuple(self.messages[at] for at in packed.messages)
            tools = tuple(self.tools[at] for at in packed.tools)
        except IndexError:
            raise ContractError(
                self.contract, f"$.tasks[{place}]", "names a message or tool that is not there"
            ) from None
        # Everything was checked when the message was read.
        return Task.model_construct(
            **_values(TaskSettings, packed),
            **_values(SharedSettings, self),
            task_id=ids.task_id(self.fusion_id, self.round, packed.call),
            messages=messages,
            tools=tools,
        )


def _values(kind: type[Part], of: Part) -> dict[str, Any]:
    """What a part has of a kind of fields that it shares with others."""
    return {name: getattr(of, name) for name in kind.model_fields}


def _places(items: Iterable[Shared]) -> dict[int, tuple[int, Shared]]:
    """Distinct objects and their places, by identity: tasks that are planned together share them."""
    found: dict[int, tuple[int, Shared]] = {}
    for one in items:
        found.setdefault(id(one), (len(found), one))
    return found
