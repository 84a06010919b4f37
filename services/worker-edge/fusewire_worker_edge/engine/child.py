"""The process of one model: `python -m fusewire_worker_edge.engine.child FOLDER OPTIONS`.

OPTIONS are `EngineOptions` as JSON. Frames on standard input: `generate` with a request, `cancel`
with an id. Frames on standard output: first `ready` or `unusable`, then for each request `done`,
`refused`, `cancelled` or `failed`, and before that any number of `piece` if it is streamed; in
between `load` (see `LoadReports`).
The process ends when its input ends, so that it never outlives its parent.
"""

import argparse
import dataclasses
import json
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

from fusewire_worker_edge.engine.api import (
    EngineError,
    GenerateRequest,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.frames import Frame, pack, read
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.jobs import Event
from fusewire_worker_edge.engine.load import LoadReports
from fusewire_worker_edge.engine.options import CPU, EngineOptions
from fusewire_worker_edge.engine.prepacked import PackedWeights, discard, obtain
from fusewire_worker_edge.engine.providers import find_provider
from fusewire_worker_edge.folder import GRAPH, WEIGHTS, ModelFolderError, verify

GOLDEN_AGREEMENT = 0.75
"""Smallest share of the golden answer's tokens that the model must reproduce on this machine.

Not 1: processors round differently, which may reverse a near tie.
"""
REASON_LENGTH = 1000
"""Most characters of a reason, its last: onnxruntime's errors begin with its own source files."""


class Inbox:
    """Frames from the parent, read by a thread and taken by the main thread between steps."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def take(self, *, wait: bool) -> list[Frame]:
        """Take all frames that have arrived; with `wait`, wait for the first."""
        frames = [self._frames.get()] if wait else []
        while not self._frames.empty():
            frames.append(self._frames.get())
        return frames

    def _run(self) -> None:
        try:
            while (frame := read(self._stream)) is not None:
                self._frames.put(frame)
        finally:
            # Not sys.exit: the main thread may be inside onnxruntime, and its result is not needed.
            os._exit(0)


@dataclasses.dataclass(frozen=True)
class CheckedModel:
    """A model that reproduces its golden answer.

    Args:
        generator: the model.
        weights: whether its weights are prepacked; None if the options name no folder for them.
        provider: the execution provider in use.
        passed_over: why those before it in the options are not.
    """

    generator: Generator
    weights: PackedWeights | None = None
    provider: str = CPU
    passed_over: dict[str, str] = dataclasses.field(default_factory=dict)


def load(folder: Path, options: EngineOptions) -> CheckedModel:
    """Load a model with the first provider that reproduces its golden answer, else on the CPU.

    Raises:
        ModelFolderError: the folder cannot be used, or the model computes something else.
    """
    passed_over: dict[str, str] = {}
    for name in options.providers:
        if name == CPU:
            break
        try:
            # onnxruntime-genai has providers of its own.
            provider = name if options.engine == "genai" else find_provider(name).name
            generator = load_checked(folder, dataclasses.replace(options, provider=provider))
        except Exception as exc:  # noqa: BLE001 - whatever one provider raises, the next is tried
            what = exc.what if isinstance(exc, ModelFolderError) else str(exc)
            passed_over[name] = " ".join(what.split())[-REASON_LENGTH:]
        else:
            return CheckedModel(generator, provider=provider, passed_over=passed_over)
    generator, weights = load_on_cpu(folder, options)
    return CheckedModel(generator, weights, passed_over=passed_over)


def load_on_cpu(folder: Path, options: EngineOptions) -> tuple[Generator, PackedWeights | None]:
    """Load a model, with its prepacked weights if the options name a folder for them.

    Raises:
        ModelFolderError: the folder cannot be used, or the model computes something else.
    """
    if options.prepacked_dir is None:
        return load_checked(folder, options), None
    weights = obtain(folder, Path(options.prepacked_dir))
    if weights.graph is None:
        return load_checked(folder, options), weights
    try:
        return load_checked(folder, dataclasses.replace(options, graph=weights.graph)), weights
    except ModelFolderError as exc:
        discard(weights.graph)
        return load_checked(folder, options), PackedWeights("off", reason=str(exc))


def load_checked(folder: Path, options: EngineOptions) -> Generator:
    """Verify a folder, load its model, and compare it with the manifest's golden answer.

    Raises:
        ModelFolderError: the folder cannot be used, or the model computes something else.
    """
    # Prepacked weights have hashes of their own, and are read in place of these files.
    manifest = verify(folder, unread=(GRAPH, WEIGHTS) if options.graph else ())
    generator = Generator(folder, manifest, options)
    agreement = generator.golden_agreement()
    if agreement < GOLDEN_AGREEMENT:
        raise ModelFolderError(
            folder,
            f"the model agrees with its golden answer in {agreement:.0%} of the tokens only",
            "convert the model again on this machine",
        )
    return generator


def receive(generator: Generator, frame: Frame) -> Frame | None:
    """Handle a frame from the parent. Return the frame to reply with if the request is refused."""
    if frame["type"] == "cancel":
        generator.scheduler.cancel(frame["id"])
        return None
    request = GenerateRequest.model_validate(frame["request"])
    try:
        generator.submit(request)
    except EngineError as exc:
        return failure(request.id, exc)
    return None


def failure(request_id: str, error: EngineError) -> Frame:
    """Return the frame for a request that was not answered."""
    if isinstance(error, RequestCancelledError):
        return {"type": "cancelled", "id": request_id}
    if isinstance(error, RequestRefusedError):
        return {"type": "refused", "id": request_id, "code": error.code, "message": str(error)}
    return {"type": "failed", "id": request_id, "message": str(error)}


def report(event: Event) -> Frame:
    """Return the frame for an event."""
    if event.error:
        return failure(event.id, event.error)
    if event.completion:
        return {
            "type": "done",
            "id": event.id,
            "completion": event.completion.model_dump(mode="json"),
        }
    return {"type": "piece", "id": event.id, "text": event.piece}


def serve_step(
    generator: Generator, inbox: Inbox, reports: LoadReports, send: Callable[[Frame], None]
) -> None:
    """Report the load, take what has arrived, and advance all requests; waits if there are none."""
    if current := reports.take():
        send({"type": "load", "load": current.model_dump()})
    for frame in inbox.take(wait=not generator.scheduler.is_busy):
        if refusal := receive(generator, frame):
            send(refusal)
    for event in generator.scheduler.step():
        send(report(event))


def _private_stdout() -> BinaryIO:
    """Reserve standard output for frames; the prints of libraries go to standard error."""
    frames = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return frames


def main() -> int:
    """Serve until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("options", type=lambda text: EngineOptions(**json.loads(text)))
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole process group, but the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = _private_stdout()
    inbox = Inbox(sys.stdin.buffer)

    def send(frame: Frame) -> None:
        try:
            output.write(pack(frame))
            output.flush()
        except BrokenPipeError:
            # The parent has gone, so nobody needs the rest.
            os._exit(0)

    began = time.perf_counter()
    try:
        model = load(arguments.folder, arguments.options)
    except ModelFolderError as exc:
        send({"type": "unusable", "message": str(exc)})
        return 1
    load_s = time.perf_counter() - began
    generator = model.generator
    ready: Frame = {
        "type": "ready",
        "model": generator.manifest.name,
        "load_s": load_s,
        "engine": arguments.options.engine,
        "slots": generator.model.slots,
        "onnxruntime": onnxruntime.__version__,
        "provider": model.provider,
        "passed_over": model.passed_over,
    }
    if model.weights:
        ready |= {"prepacked": model.weights.state, "prepacked_reason": model.weights.reason}
    send(ready)
    reports = LoadReports(generator.scheduler, time.monotonic)
    while True:
        serve_step(generator, inbox, reports, send)


if __name__ == "__main__":
    # Not sys.exit: the interpreter cannot finish while the inbox's thread waits for input.
    os._exit(main())
