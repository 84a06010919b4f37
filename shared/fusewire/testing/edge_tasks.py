"""Tasks for a real edge worker, published as the dispatcher does; for tests only."""

from datetime import UTC, datetime, timedelta
from typing import Any

from fusewire.bus import Bus
from fusewire.contracts import Message, Sampling, Task, Tasks
from fusewire.testing.factories import make_prompt, make_task
from fusewire.topology import task_subject


def edge_task(name: str, content: str, model: str = "small", **fields: Any) -> Task:
    """The answer task of a fusion of its own, with ten minutes to its deadline.

    Args:
        name: names the fusion; the same name makes the same ids.
        content: what the user says.
        model: the edge model.
        fields: further fields of the task; `sampling` may be a dict.
    """
    prompt = make_prompt(content, custom_id=name)
    sampling = fields.pop("sampling", {})
    return make_task(
        prompt,
        model,
        **{
            "model": model,
            "tier": "edge",
            "messages": (Message(role="user", content=content),),
            "sampling": sampling if isinstance(sampling, Sampling) else Sampling(**sampling),
            "deadline_at": datetime.now(UTC) + timedelta(minutes=10),
            **fields,
        },
    )


async def publish_task(bus: Bus, task: Task) -> None:
    """Publish a task in a message of its own."""
    tasks = Tasks.from_tasks(task.model, [task])
    await bus.publish(task_subject("edge", task.model, task.priority), tasks)
