"""A process whose event loop stands still ends, and one that is stopped for long does not."""

import asyncio
import os
import signal
import subprocess
import sys
import time

from fusewire import lifeline

STALLS = """
import asyncio, time
from fusewire import lifeline, service

def stand_still():
    while True:
        pass

async def main():
    lifeline.on_stall(asyncio.get_running_loop(), service.end_stalled, ticks=5, tick_s=0.1)
    await asyncio.sleep(0.3)
    print("standing still", flush=True)
    stand_still()

asyncio.run(main())
"""


async def test_a_loop_that_turns_is_left_alone() -> None:
    stacks: list[list[str]] = []
    # On a busy machine a loop may well miss a few ticks.
    lifeline.on_stall(asyncio.get_running_loop(), stacks.append, ticks=50, tick_s=0.01)

    await asyncio.sleep(1.5)

    assert stacks == []


async def test_where_a_loop_stands_still_is_told() -> None:
    stacks: list[list[str]] = []
    lifeline.on_stall(asyncio.get_running_loop(), stacks.append, ticks=3, tick_s=0.02)

    while not stacks:
        time.sleep(0.02)  # noqa: ASYNC251 - what it is about

    assert any(line.endswith("test_where_a_loop_stands_still_is_told") for line in stacks[0])


def test_a_process_that_stands_still_ends_and_says_where() -> None:
    process = subprocess.run(
        [sys.executable, "-c", STALLS], capture_output=True, text=True, timeout=250, check=False
    )

    assert process.returncode == 1
    assert "service.stalled" in process.stdout + process.stderr
    assert "stand_still" in process.stdout + process.stderr


def test_a_process_that_was_stopped_for_long_goes_on() -> None:
    sleeps = STALLS.replace("    stand_still()\n", "    await asyncio.sleep(1)\n")
    with subprocess.Popen([sys.executable, "-c", sleeps], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGCONT)
        assert process.wait(250) == 0
