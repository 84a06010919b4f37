"""A plugin of pytest that makes a run per mutant short: quick tests first, few examples.

Loaded by `tests/mutation/run.py` alone.
"""

import json
import os
import resource
import time
from pathlib import Path

import hypothesis
import pytest

STATS = Path("mutmut-stats.json")
"""What mutmut has measured, in the folder that tests run in."""
MOST_EXAMPLES = 15
"""Examples of a property test; `make test` draws more."""
MOST_STEPS = 20
"""Steps of a state machine."""
MOST_CPU_S = 20
"""Processor time of one mutant's tests; one that takes more is taken for an endless loop."""


def pytest_sessionstart() -> None:
    """Count processor time, of which a busy machine does not make more."""
    if "__mutmut_" in os.environ.get("MUTANT_UNDER_TEST", ""):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        most = int(time.process_time()) + MOST_CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (most if hard < 0 else min(most, hard), hard))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests by what they took, as the first that fails ends the run."""
    durations: dict[str, float] = {}
    if STATS.exists():
        durations = json.loads(STATS.read_text())["duration_by_test"]
    items.sort(key=lambda item: durations.get(item.nodeid, 0.0))
    for item in items:
        _limit_examples(item)


def _limit_examples(item: pytest.Item) -> None:
    # The attribute is hypothesis's own; it has no public way to change what a decorator has set.
    function = getattr(item, "obj", None)
    name = "_hypothesis_internal_use_settings"
    if settings := getattr(function, name, None):
        setattr(getattr(function, "__func__", function), name, _limited(settings))
    owner = getattr(item, "cls", None)
    if isinstance(settings := getattr(owner, "settings", None), hypothesis.settings):
        owner.settings = _limited(settings)  # type: ignore[union-attr]  # of a state machine


def _limited(settings: hypothesis.settings) -> hypothesis.settings:
    return hypothesis.settings(
        settings,
        max_examples=min(settings.max_examples, MOST_EXAMPLES),
        stateful_step_count=min(settings.stateful_step_count, MOST_STEPS),
    )
