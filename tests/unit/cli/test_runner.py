"""The runner of the local stack: what it does when something ends."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fusewire import lifeline, telemetry
from fusewire.errors import StartupError
from fusewire.service import end_stalled
from fusewire.settings import Settings
from fusewire_cli import serve
from fusewire_cli.local.runner import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(Settings(data_dir=tmp_path))


async def test_a_restart_that_fails_is_tried_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise nothing would be restarted from then on, and nobody would know."""
    tries = 0
    second_try = asyncio.Event()

    async def restart() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("too many open files")
        second_try.set()

    monkeypatch.setattr(stack, "_restart_ended", restart)
    with capture_logs() as log_lines:
        watch = asyncio.create_task(stack._supervise())
        await asyncio.wait_for(second_try.wait(), 60)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)

    assert "up.restart_failed" in [line["event"] for line in log_lines]


async def test_a_runner_that_watches_nothing_any_more_says_so(stack: Stack) -> None:
    stack._watch = asyncio.create_task(asyncio.sleep(0))

    assert await stack.faulty() == ["nobody watches the services any more"]


def test_up_ends_where_its_event_loop_stands_still(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stall_calls: list[object] = []
    monkeypatch.setattr(lifeline, "on_stall", lambda _loop, call: stall_calls.append(call))
    monkeypatch.setattr(telemetry, "configure", lambda *_, **__: None)
    monkeypatch.setattr(serve, "Stack", lambda *_, **__: stack)

    async def start() -> None:
        raise StartupError("no", "mend it")

    monkeypatch.setattr(stack, "start", start)
    with pytest.raises(StartupError):
        serve.up(processes=False, behind_proxy=False)

    assert stall_calls == [end_stalled]
