"""What the front doors cost. `make bench-doors`; writes build/bench-doors.json.

| figure | how |
|---|---|
| overhead of the chat endpoint, ms | a request's wall time less its fusion's, one at a time |
| beyond the decision, ms | the same, the fusion ending where judge dates it, before it is stored |
| intake, lines/s | from the creation of a batch to the last of its lines committed; 1 KB lines |
| RSS growth, MB | the most that `fusewire up` holds during a batch, less what it held before |
| RSS with pictures, MB | the most it holds while 100 requests with 5 MB pictures are in flight |
| first token, ms | the judge's first token of a merge to the client's; two processes, one clock |

A fusion is from the acceptance of its prompt to the announcement of its outcome, as the bench hears
it on the bus. Everything as shipped, with `fusewire up` as one process and the fake models as
another. It fails when a request does, never for a figure.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from cost.machine import BUILD, ROOT, fusewire_up, models, spread
from cost.scenes import MEMBERS
from nats.aio.msg import Msg

from fusewire.testing.model_script import ModelScript, Script
from fusewire.testing.nats_accounts import connect

JUDGE = "judge"
LINE_CHARS = 1000
PICTURE_BYTES = 5_000_000
PICTURE_PREFIX = "data:image/png;base64,"
PIECE = 65_536
TIMEOUT = aiohttp.ClientTimeout(total=None)


def config(base_url: str, folder: Path) -> dict[str, Any]:
    """As shipped, with a pool that votes, one of a single member, one that merges unguarded."""
    common = {"quorum": 1.0, "deadline_s": 600, "control_share": 0.0}
    return {
        "data_dir": str(folder),
        "database": {"url": f"sqlite+aiosqlite:///{folder / 'fusewire.db'}"},
        "http": {"port": 0},
        "log": {"level": "warning"},
        "models": {
            name: {"kind": "remote", "base_url": base_url, "model": name, "images": True}
            for name in [*MEMBERS, JUDGE]
        },
        "pools": {
            "default": {"members": MEMBERS, **common},
            "merging": {
                "members": MEMBERS,
                "judge": JUDGE,
                "mode": "merge",
                "guard": False,
                **common,
            },
        },
    }


def script(*, token_ms: float = 0.0) -> Script:
    """Members that agree at once on a label; a judge that writes a sentence, token by token."""
    said = {name: ModelScript(answer="yes") for name in MEMBERS}
    return Script(models={**said, JUDGE: ModelScript(token_ms=token_ms)})


def opened(*, token_ms: float) -> Script:
    """Members that say different things, so that there is something to merge."""
    said = {
        name: ModelScript(answer=f"{name} holds that " + "there is much to say for it, " * 8)
        for name in MEMBERS
    }
    return Script(models={**said, JUDGE: ModelScript(token_ms=token_ms)})


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Door:
    """One running Fusewire, as its clients see it."""

    def __init__(self, url: str, fake: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._control = fake.removesuffix("/v1") + "/_control"
        self._session = session

    async def play(self, wanted: Script) -> None:
        """The fake models behave so from now on."""
        async with self._session.post(
            f"{self._control}/script", data=wanted.model_dump_json()
        ) as reply:
            reply.raise_for_status()

    async def stats(self) -> dict[str, Any]:
        """What the fake models have counted."""
        async with self._session.get(f"{self._control}/stats") as reply:
            return dict(await reply.json(content_type=None))

    async def get(self, path: str) -> dict[str, Any]:
        """A JSON object."""
        async with self._session.get(f"{self.url}{path}") as reply:
            reply.raise_for_status()
            return dict(await reply.json())

    async def post(self, path: str, body: dict[str, Any] | aiohttp.FormData) -> dict[str, Any]:
        """Send JSON or a form; get JSON."""
        sent: dict[str, Any] = (
            {"data": body} if isinstance(body, aiohttp.FormData) else {"json": body}
        )
        async with self._session.post(f"{self.url}{path}", **sent) as reply:
            if reply.status >= 400:
                raise RuntimeError(f"{path}: {reply.status} {await reply.text()}")
            return dict(await reply.json())

    async def show(self, picture: str) -> None:
        """Ask about a picture, base64; sent in pieces, so that no whole bodies are measured."""
        asked = [
            {"type": "text", "text": "Yes or no?"},
            {"type": "image_url", "image_url": {"url": PICTURE_PREFIX}},
        ]
        body = json.dumps({"model": "fusion", "messages": [{"role": "user", "content": asked}]})
        head, tail = (part.encode() for part in body.split(PICTURE_PREFIX))

        async def pieces() -> AsyncIterator[bytes]:
            yield head + PICTURE_PREFIX.encode()
            for at in range(0, len(picture), PIECE):
                yield picture[at : at + PIECE].encode()
            yield tail

        length = len(head) + len(PICTURE_PREFIX) + len(picture) + len(tail)
        headers = {"content-type": "application/json", "content-length": str(length)}
        async with self._session.post(
            f"{self.url}/v1/chat/completions", data=pieces(), headers=headers
        ) as reply:
            if reply.status >= 400:
                raise RuntimeError(f"{reply.status} {await reply.text()}")
            await reply.read()

    async def first_token_ns(self, body: dict[str, Any]) -> int:
        """Stream a chat; when its first text arrived, by the monotonic clock."""
        first = 0
        async with self._session.post(
            f"{self.url}/v1/chat/completions", json={**body, "stream": True}
        ) as reply:
            reply.raise_for_status()
            async for raw in reply.content:
                now = time.monotonic_ns()
                line = raw.strip()
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                if "error" in event:
                    raise RuntimeError(f"the stream failed: {event}")
                if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                    first = now
        return first

    async def batch(self, file: Path) -> str:
        """Upload a file and make a batch of it; returns the batch's id."""
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        with file.open("rb") as data:
            form.add_field("file", data, filename=file.name, content_type="application/jsonl")
            uploaded = await self.post("/v1/files", form)
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "7d",
        }
        return str((await self.post("/v1/batches", body))["id"])


def write_lines(file: Path, lines: int, chars: int) -> None:
    """A batch in OpenAI's form."""
    with file.open("w") as out:
        for number in range(lines):
            text = f"{number} ".ljust(chars, "x")
            body = {"model": "fusion", "messages": [{"role": "user", "content": text}]}
            line = {
                "custom_id": f"q{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            out.write(json.dumps(line) + "\n")


async def overheads_ms(door: Door, folder: Path, requests: int) -> tuple[list[float], list[float]]:
    """Of the chat endpoint, beyond the fusion as the bus hears its end, and as judge dates it."""
    await door.play(script())
    heard: dict[str, float] = {}

    async def hear(msg: Msg) -> None:
        heard[msg.subject.rpartition(".")[2]] = time.time()

    ears = await connect(folder)
    await ears.subscribe("fw.outcome.>", cb=hear)
    beyond_bus, beyond_decision = [], []
    for number in range(requests + 5):
        body = {
            "model": "fusion",
            "messages": [{"role": "user", "content": f"Yes or no, {number}?"}],
        }
        started = time.perf_counter()
        reply = await door.post("/v1/chat/completions", body)
        wall_ms = (time.perf_counter() - started) * 1000
        fusion = await door.get(f"/v1/fusions/{reply['fusion']['outcome_id']}")
        submitted = datetime.fromisoformat(fusion["submitted_at"]).timestamp()
        beyond_bus.append(wall_ms - (heard[fusion["id"]] - submitted) * 1000)
        beyond_decision.append(wall_ms - fusion["latency_ms"])
    await ears.drain()
    return beyond_bus[5:], beyond_decision[5:]


async def first_tokens_ms(door: Door, requests: int) -> list[float]:
    """From the judge's first token of the merge to the client's."""
    found = []
    for number in range(requests + 2):
        await door.play(opened(token_ms=5.0))
        body = {
            "model": "fusewire/merging",
            "messages": [{"role": "user", "content": f"What of it, {number}?"}],
        }
        arrived = await door.first_token_ns(body)
        written = (await door.stats())["first_token_ns"][JUDGE][-1]
        if not arrived:
            raise RuntimeError("nothing was streamed")
        found.append((arrived - written) / 1e6)
    return found[2:]


async def intake(door: Door, folder: Path, lines: int) -> dict[str, float]:
    """Lines a second, committed."""
    file = folder / "intake.jsonl"
    write_lines(file, lines, LINE_CHARS)
    started = time.perf_counter()
    batch = await door.batch(file)
    created = time.perf_counter()
    while True:
        found = await door.get(f"/v1/batches/{batch}")
        if found["status"] != "validating":
            break
        await asyncio.sleep(0.05)
    committed = time.perf_counter()
    if found["request_counts"]["total"] != lines:
        raise RuntimeError(f"the batch was not taken: {found}")
    await door.post(f"/v1/batches/{batch}/cancel", {})
    return {
        "lines_per_s": round(lines / (committed - created), 1),
        "with_upload_lines_per_s": round(lines / (committed - started), 1),
    }


async def with_pictures(door: Door, requests: int, pids: dict[str, int]) -> dict[str, Any]:
    """Memory while requests, each with a picture of its own, are in flight all at once."""
    slow = ModelScript(answer="yes", latency_ms=2_000)
    await door.play(Script(models=dict.fromkeys(MEMBERS, slow)))
    rest = base64.b64encode(random.Random(1).randbytes(PICTURE_BYTES - 6)).decode()
    before = {name: rss_mb(pid) for name, pid in pids.items()}
    most = dict(before)
    started = time.perf_counter()
    asked = asyncio.gather(*(door.show(f"{number:08d}{rest}") for number in range(requests)))
    while not asked.done():
        for name, pid in pids.items():
            most[name] = max(most[name], rss_mb(pid))
        await asyncio.sleep(0.05)
    await asked
    return {
        "requests": requests,
        "seconds": round(time.perf_counter() - started, 1),
        "rss_before_mb": {name: round(mb, 1) for name, mb in before.items()},
        "rss_most_mb": {name: round(mb, 1) for name, mb in most.items()},
    }


async def growth(door: Door, folder: Path, lines: int, pids: dict[str, int]) -> dict[str, Any]:
    """Memory during a batch, and how fast it went."""
    await door.play(script())
    file = folder / "batch.jsonl"
    write_lines(file, lines, 200)
    before = {name: rss_mb(pid) for name, pid in pids.items()}
    most = dict(before)
    started = time.perf_counter()
    batch = await door.batch(file)
    while True:
        found = await door.get(f"/v1/batches/{batch}")
        for name, pid in pids.items():
            most[name] = max(most[name], rss_mb(pid))
        if found["status"] in ("completed", "failed", "expired", "cancelled"):
            break
        await asyncio.sleep(1)
    seconds = time.perf_counter() - started
    if found["request_counts"] != {"total": lines, "completed": lines, "failed": 0}:
        raise RuntimeError(f"the batch went wrong: {found}")
    return {
        "lines": lines,
        "seconds": round(seconds, 1),
        "lines_per_s": round(lines / seconds, 1),
        "rss_growth_mb": {name: round(most[name] - before[name], 1) for name in pids},
        "calls": (await door.stats())["requests"],
    }


async def bench(lines: int, intake_lines: int, requests: int, pictures: int) -> dict[str, Any]:
    """All of them."""
    BUILD.mkdir(exist_ok=True)
    # On the repository's disk: a temporary folder may lie in memory, where a sync costs nothing.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD) as scratch, models() as fake:
        folder = Path(scratch)
        async with contextlib.AsyncExitStack() as end:
            url, pids = await end.enter_async_context(
                fusewire_up(config(fake.base_url, folder), folder)
            )
            session = await end.enter_async_context(aiohttp.ClientSession(timeout=TIMEOUT))
            door = Door(url, fake.base_url, session)
            beyond_bus, beyond_decision = await overheads_ms(door, folder, requests)
            figures: dict[str, Any] = {
                "chat_overhead_ms": spread(beyond_bus),
                "chat_beyond_decision_ms": spread(beyond_decision),
                "first_token_ms": spread(await first_tokens_ms(door, requests)),
                "intake": await intake(door, folder, intake_lines),
            }
            figures["pictures"] = await with_pictures(door, pictures, pids)
            _say(figures)
            figures["batch"] = await growth(door, folder, lines, pids)
    figures["machine"] = {"cores": os.cpu_count(), "system": platform.platform()}
    return figures


AIMS: Sequence[tuple[str, str, str]] = (
    ("chat_overhead_ms", "chat endpoint beyond the fusion, ms, median", "<= 5"),
    ("chat_beyond_decision_ms", "the same beyond the decision, ms, median", "none"),
    ("first_token_ms", "first token after the judge's own, ms, median", "<= 20"),
)


def _say(figures: dict[str, Any]) -> None:
    for figure, label, aim in AIMS:
        found = figures[figure]
        print(
            f"{label:50} {found['median']:8.1f} "
            f"({found['min']:.1f} to {found['max']:.1f}), aim {aim}"
        )
    taken = figures["intake"]
    print(f"{'intake, lines/s committed':50} {taken['lines_per_s']:8.0f}, aim >= 5000")
    shown = figures["pictures"]
    print(
        f"{'RSS with pictures in flight, MB':50} {shown['rss_most_mb']['up']:8.0f}, aim < 400 "
        f"(before {shown['rss_before_mb']['up']:.0f}; "
        f"{shown['requests']} requests in {shown['seconds']} s)",
        flush=True,
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Measure what the front doors cost.")
    parser.add_argument("--lines", type=int, default=100_000, help="of the long batch")
    parser.add_argument("--quick", action="store_true", help="a small run: does it run at all")
    options = parser.parse_args()
    lines, intake_lines, requests = (200, 500, 3) if options.quick else (options.lines, 50_000, 50)
    figures = asyncio.run(
        bench(lines, intake_lines, requests, pictures=3 if options.quick else 100)
    )
    found = figures["batch"]
    print(
        f"{'RSS growth over the batch, MB':50} {found['rss_growth_mb']['up']:8.1f}, aim <= 100 "
        f"({found['lines']} lines in {found['seconds']} s, {found['lines_per_s']} a second)"
    )
    out = BUILD / "bench-doors.json"
    out.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
