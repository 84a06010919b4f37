import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from fusewire.testing.eventually import PATIENCE_S
from fusewire.testing.processes import bound
from fusewire_worker_edge.engine.frames import Frame, pack, read


def generate(request_id: str, **fields: Any) -> bytes:
    request = {
        "id": request_id,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 5,
        **fields,
    }
    return pack({"type": "generate", "request": request})


class Child:
    def __init__(
        self,
        folder: Path,
        python: tuple[str, ...] = ("-m", "fusewire_worker_edge.engine.child"),
        **options: Any,
    ) -> None:
        text = json.dumps({"threads": 1, "slots": 2, **options})
        command = [sys.executable, *python, str(folder), text]
        self.process = subprocess.Popen(
            bound(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def receive(self) -> Frame | None:
        """The next frame that is no report of its load."""
        while frame := read(cast("BinaryIO", self.process.stdout)):
            if frame["type"] != "load":
                return frame
        return None

    def close(self) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def child(tiny_folder: Path) -> Iterator[Child]:
    started = Child(tiny_folder)
    yield started
    started.close()


def test_it_says_that_it_is_ready_and_answers_in_order(child: Child) -> None:
    child.send(generate("a") + generate("b"))
    ready, first, second = child.receive(), child.receive(), child.receive()
    assert ready is not None
    assert (ready["type"], ready["model"]) == ("ready", "tiny")
    assert (ready["engine"], ready["slots"]) == ("onnxruntime", 2)
    assert first is not None
    assert second is not None
    assert (first["type"], first["id"], second["id"]) == ("done", "a", "b")
    assert first["completion"]["completion_tokens"] == 5


def test_it_says_which_provider_computes_and_why_others_do_not(tiny_folder: Path) -> None:
    child = Child(tiny_folder, providers=["cuda", "cpu"])
    ready = child.receive()
    assert ready
    assert ready["provider"] == "cpu"
    assert list(ready["passed_over"]) == ["cuda"]
    assert "is installed without it" in ready["passed_over"]["cuda"]
    child.close()


def test_the_pieces_of_a_streamed_request_come_before_its_answer_and_of_others_none(
    child: Child,
) -> None:
    child.send(generate("a") + generate("b", is_streamed=True) + generate("c"))
    assert child.receive()
    frames: list[Frame] = []
    while not frames or (frames[-1]["type"], frames[-1]["id"]) != ("done", "c"):
        frame = child.receive()
        assert frame is not None
        frames.append(frame)

    pieces = [f for f in frames if f["type"] == "piece"]
    assert {f["id"] for f in pieces} == {"b"}
    assert [f["id"] for f in frames if f["type"] == "done"] == ["a", "b", "c"]
    assert frames.index(pieces[-1]) < next(
        i for i, f in enumerate(frames) if f["type"] == "done" and f["id"] == "b"
    )
    assert len(pieces) > 1
    assert "".join(f["text"] for f in pieces) == frames[-1]["completion"]["text"]


def test_a_cancel_overtakes_requests_that_wait_or_run(child: Child) -> None:
    assert child.receive()
    long = {"max_tokens": 4000}
    child.send(generate("a", **long) + generate("b", **long) + generate("c"))
    child.send(pack({"type": "cancel", "id": "b"}) + pack({"type": "cancel", "id": "a"}))
    answers = [child.receive() for _ in range(3)]
    assert [(a["type"], a["id"]) for a in answers if a] == [
        ("cancelled", "a"),
        ("cancelled", "b"),
        ("done", "c"),
    ]
    child.send(generate("a"))
    assert child.receive()["type"] == "done"  # type: ignore[index]


def test_a_cancel_of_something_done_or_unheard_of_is_forgotten(child: Child) -> None:
    child.send(pack({"type": "cancel", "id": "a"}) + generate("a"))
    assert [child.receive(), child.receive()][1]["type"] == "done"  # type: ignore[index]
    child.send(pack({"type": "cancel", "id": "a"}) + generate("a"))
    assert child.receive()["type"] == "done"  # type: ignore[index]


def test_a_request_that_cannot_be_answered_does_not_end_it(child: Child) -> None:
    child.send(generate("a", max_tokens=10_000) + generate("b"))
    answers = [child.receive() for _ in range(3)][1:]
    assert [(a["type"], a.get("code")) for a in answers if a] == [
        ("refused", "context_length_exceeded"),
        ("done", None),
    ]


@pytest.mark.parametrize("busy", [False, True])
def test_it_ends_when_its_input_does(tiny_folder: Path, busy: bool) -> None:
    child = Child(tiny_folder)
    assert child.receive()
    if busy:
        child.send(generate("a", max_tokens=4000))
    assert child.close() == 0


def test_a_folder_that_does_not_verify_is_reported(tmp_path: Path) -> None:
    child = Child(tmp_path / "none")
    frame = child.receive()
    assert frame is not None
    assert frame["type"] == "unusable"
    assert "no such folder" in frame["message"]
    assert child.receive() is None
    child.close()


def test_a_model_that_computes_something_else_is_not_served(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "tiny"))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["golden"]["ids"] = [i + 1 for i in manifest["golden"]["ids"]]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    child = Child(folder)
    frame = child.receive()
    assert frame is not None
    assert "agrees with its golden answer" in frame["message"]
    assert child.receive() is None
    child.close()


def test_onnxruntime_genai_takes_one_request_after_the_other(tiny_folder: Path) -> None:
    child = Child(tiny_folder, engine="genai", kv_cache_mb=1)
    child.send(generate("a") + generate("b"))
    ready, *answers = [child.receive() for _ in range(3)]
    assert ready
    assert (ready["type"], ready["engine"], ready["slots"]) == ("ready", "genai", 1)
    assert [(answer["type"], answer["id"]) for answer in answers if answer] == [
        ("done", "a"),
        ("done", "b"),
    ]
    assert child.close() == 0


@pytest.mark.parametrize("engine", ["onnxruntime", "genai"])
def test_nothing_is_reported_to_the_maker_of_a_library(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # Set by this process, and where CI runs: each switches reports off by itself.
    for name in ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI"):
        monkeypatch.delenv(name, raising=False)
    child = Child(tiny_folder, engine=engine, kv_cache_mb=1)
    child.send(generate("a"))
    assert [frame["type"] for frame in (child.receive(), child.receive()) if frame] == [
        "ready",
        "done",
    ]
    assert child.close() == 0
    # The libraries keep what they are about to send, and an id of the machine, in such a folder.
    assert not list(tmp_path.iterdir())


def test_what_is_printed_does_not_reach_the_frames(tiny_folder: Path) -> None:
    code = (
        "import os, sys, fusewire_worker_edge.engine.child as child\n"
        "load = child.load\n"
        "def noisy(*a):\n    print('noise'); os.write(1, b'noise'); return load(*a)\n"
        "child.load = noisy\nchild.main()\n"
    )
    child = Child(tiny_folder, python=("-c", code))
    child.send(generate("a"))
    assert [frame["type"] for frame in (child.receive(), child.receive()) if frame] == [
        "ready",
        "done",
    ]
    assert child.close() == 0


def test_the_process_does_not_outlive_its_parent(tiny_folder: Path) -> None:
    code = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from fusewire.contracts import Message\n"
        "from fusewire_worker_edge.engine.api import GenerateRequest\n"
        "from fusewire_worker_edge.engine.process import ProcessEngine\n"
        "async def main():\n"
        "    engine = ProcessEngine(Path(sys.argv[1]))\n"
        "    message = (Message(role='user', content='hello'),)\n"
        "    await engine.generate(GenerateRequest(id='a', messages=message, max_tokens=1))\n"
        "    task = asyncio.create_task(engine.generate("
        "GenerateRequest(id='b', messages=message, max_tokens=4000)))\n"
        "    await asyncio.sleep(0.05)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    # The child shares this pipe: it is read to its end only when both processes are gone.
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_folder)],
        stderr=subprocess.PIPE,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
