"""Runs hypothesis's state machines against real parts, whose methods are coroutines."""

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from fusewire.store.engine import Store
from fusewire.testing.factories import FakeClock

T = TypeVar("T")


class Loop:
    """An event loop that outlives the examples of a machine, and with them its connections."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end."""
        return self._runner.run(work)


class SharedState:
    """What the examples of one run share: a database, a clock that never goes back, numbers."""

    def __init__(self, loop: Loop, store: Store) -> None:
        self.loop = loop
        self.store = store
        self.clock = FakeClock()
        self.numbers = itertools.count(1)


def run_machine(
    make: Callable[[], RuleBasedStateMachine], *, examples: int, steps: int = 20
) -> None:
    """Run a machine for some examples, or for as many as MACHINE_EXAMPLES says.

    Args:
        make: makes a machine for one example.
        examples: how many are run where nobody asks for more.
        steps: the most steps of an example.
    """
    run_state_machine_as_test(
        make,  # type: ignore[arg-type]  # it calls it, and takes whatever makes a machine
        settings=settings(
            max_examples=int(os.environ.get("MACHINE_EXAMPLES", examples)),
            stateful_step_count=steps,
            deadline=None,
            # A step is a transaction of a real database, and the data of an example are few.
            suppress_health_check=list(HealthCheck),
        ),
    )
