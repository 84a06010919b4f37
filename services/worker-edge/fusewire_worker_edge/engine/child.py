"""The process that holds one model: `python -m fusewire_worker_edge.engine.child FOLDER [--threads N]`.

Frames on standard input: `generate` with a request, `cancel` with an id. Frames on standard output:
first `ready` or `unusable`, then for each request `done`, `refused`, `cancelled` or `failed`, and
before it any number of `piece` if the request is streamed.
It ends when its input does, so that it never outlives whoever started it.
"""

import argparse
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import onnxruntime

from fusewire_worker_edge.engine.api import EngineError, GenerateRequest, RequestCancelledError, RequestRefusedError
from fusewire_worker_edge.engine.frames import Frame, pack, read
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.folder import ModelFolderError, verify

GOLDEN_AGREEMENT = 0.75
"""Below this the model computes something else here than where it was converted.

Not 1: processors round differently, and a near tie may then fall to the other side.
"""


class Inbox:
    """What the parent sends, read by a thread so that a cancel is seen while the model runs."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._requests: queue.SimpleQueue[GenerateRequest] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._open: set[str] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._run, daemon=True).start()

    def next(self) -> GenerateRequest:
        """The oldest request that is not done; waits for one."""
        return self._requests.get()

    def is_cancelled(self, request_id: str) -> bool:
        """Whether a request that is not done has been cancelled."""
        return request_id in self._cancelled

    def done(self, request_id: str) -> None:
        """Forget a request."""
        with self._lock:
            self._open.discard(request_id)
            self._cancelled.discard(request_id)

    def _run(self) -> None:
        try:
            while (frame := read(self._stream)) is not None:
                self._receive(frame)
        finally:
            # Not sys.exit: the main thread may be inside onnxruntime, and nobody waits for its result.
            os._exit(0)

    def _receive(self, frame: Frame) -> None:
        if frame["type"] == "cancel":
            with self._lock:
                if frame["id"] in self._open:
                    self._cancelled.add(frame["id"])
            return
        request = GenerateRequest.model_validate(frame["request"])
        with self._lock:
            self._open.add(request.id)
        self._requests.put(request)


def load(folder: Path, threads: int | None) -> Generator:
    """Verify a folder, load its model, and see that it computes what it should.

    Raises:
        ModelFolderError: it does not.
    """
    generator = Generator(folder, verify(folder), threads)
    agreement = generator.golden_agreement()
    if agreement < GOLDEN_AGREEMENT:
        raise ModelFolderError(
            folder,
            f"the model agrees with its golden answer in {agreement:.0%} of the tokens only",
            "convert the model again on this machine",
        )
    return generator


def answer(generator: Generator, request: GenerateRequest, inbox: Inbox, send: Callable[[Frame], None]) -> Frame:
    """The frame that answers one request; the pieces of a streamed one are sent before it."""

    def hear(text: str) -> None:
        send({"type": "piece", "id": request.id, "text": text})

    try:
        completion = generator.generate(
            request, lambda: inbox.is_cancelled(request.id), hear if request.is_streamed else None
        )
    except RequestCancelledError:
        return {"type": "cancelled", "id": request.id}
    except RequestRefusedError as exc:
        return {"type": "refused", "id": request.id, "code": exc.code, "message": str(exc)}
    except EngineError as exc:
        return {"type": "failed", "id": request.id, "message": str(exc)}
    return {"type": "done", "id": request.id, "completion": completion.model_dump(mode="json")}


def _private_stdout() -> BinaryIO:
    """Keep standard output for frames; whatever a library prints goes to standard error."""
    frames = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return frames


def main() -> int:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole process group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = _private_stdout()
    inbox = Inbox(sys.stdin.buffer)

    def send(frame: Frame) -> None:
        output.write(pack(frame))
        output.flush()

    began = time.perf_counter()
    try:
        generator = load(arguments.folder, arguments.threads)
    except ModelFolderError as exc:
        send({"type": "unusable", "message": str(exc)})
        return 1
    load_s = time.perf_counter() - began
    send({"type": "ready", "model": generator.manifest.name, "load_s": load_s, "onnxruntime": onnxruntime.__version__})
    while True:
        request = inbox.next()
        frame = answer(generator, request, inbox, send)
        inbox.done(request.id)
        send(frame)


if __name__ == "__main__":
    # Not sys.exit: the interpreter cannot finish while the inbox's thread waits for input.
    os._exit(main())
