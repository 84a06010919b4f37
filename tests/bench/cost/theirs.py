"""The baselines' side: each scene in a fresh process of `peer.py`."""

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cost.machine import Models, cpu_s
from cost.ours import Run
from cost.scenes import JUDGE, MEMBERS, Scene, prompt


@dataclass(frozen=True)
class Baseline:
    """What people write instead."""

    client: str
    is_stored: bool


BASELINES = {
    "openai_sdk_sqlite": Baseline("openai", is_stored=True),
    "openai_sdk": Baseline("openai", is_stored=False),
    "aiohttp_sqlite": Baseline("aiohttp", is_stored=True),
    "aiohttp": Baseline("aiohttp", is_stored=False),
}
"""The first is the one that Fusewire is held against."""


async def run(
    fake: Models, scene: Scene, folder: Path, numbers: Iterator[int], baseline: Baseline
) -> Run:
    """Play a scene."""
    await fake.play(scene.script)
    job = {
        "client": baseline.client,
        "base_url": fake.base_url,
        "database": str(folder / "peer.db") if baseline.is_stored else None,
        "members": MEMBERS,
        "judge": JUDGE,
        "in_flight": scene.in_flight,
        "warm_up": [prompt(next(numbers)) for _ in range(scene.warm_up)],
        "prompts": [prompt(next(numbers)) for _ in range(scene.fusions)],
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("peer.py")),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    before = cpu_s(fake.pid)
    out, _ = await process.communicate(json.dumps(job).encode())
    if process.returncode:
        raise RuntimeError(f"the side of {baseline} failed; its message stands above")
    found = json.loads(out)
    calls, played = await fake.calls(), scene.warm_up + scene.fusions
    return Run(
        walls_ms=[ms for ms, _ in found["ends"]],
        wall_s=found["wall_s"],
        cpu_ms={"peer": found["cpu_s"] * 1000 / scene.fusions},
        calls={name: calls.get(name, 0) / played for name in [*MEMBERS, JUDGE]},
        answered=sum(is_answered for _, is_answered in found["ends"]) / scene.fusions,
        fake_cpu_ms=(cpu_s(fake.pid) - before) * 1000 / played,
    )
