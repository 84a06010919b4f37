"""The loop that runs services."""

import gc

import pytest

from fusewire.service import GARBAGE_THRESHOLDS, Host, listen
from fusewire.settings import Http


@pytest.fixture
async def host() -> Host:
    """One that runs no service, on a port of its own."""
    return Host([], listen(Http(port=0)))


async def test_host_that_has_started_collects_garbage_rarely(host: Host) -> None:
    before = gc.get_threshold()
    gc.unfreeze()
    try:
        await host.start()
        assert gc.get_threshold() == GARBAGE_THRESHOLDS
        assert gc.get_freeze_count() > 0
    finally:
        await host.stop()
        gc.set_threshold(*before)
