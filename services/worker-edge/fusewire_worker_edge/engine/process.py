"""The parent's side of an engine: starts the child process, sends it requests, and restarts it."""

import asyncio
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import structlog

from fusewire_worker_edge.engine.admission import Admission
from fusewire_worker_edge.engine.api import (
    Completion,
    EngineDiedError,
    EngineError,
    EngineUnusableError,
    GenerateRequest,
    OnPiece,
    RequestCancelledError,
    RequestRefusedError,
)
from fusewire_worker_edge.engine.frames import Frame, FrameError, pack, read_async
from fusewire_worker_edge.engine.load import Load, OnLoad
from fusewire_worker_edge.engine.options import CPU, EngineOptions

log = structlog.get_logger(__name__)

_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Delay before starting the process, by the number of its deaths since the last answer."""

_STUCK_S = 120.0
"""A child that has not reacted to a cancel after this time is killed."""

_DIED = "the process before this one died before it answered"
"""Why a provider is passed over that no process has tried."""

_CLOSE_S = 5.0
"""How long a child may take to end by itself before it is killed."""


class _Child:
    """One child process and its requests."""

    def __init__(self, process: asyncio.subprocess.Process, on_load: OnLoad) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("the process has no pipes")
        self.process = process
        self.has_answered = False
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._replies: dict[str, asyncio.Future[Completion]] = {}
        self._callbacks: dict[str, OnPiece] = {}
        self._on_load = on_load

    @property
    def is_alive(self) -> bool:
        """Whether the process takes requests."""
        return self.process.returncode is None and not self._stdin.is_closing()

    async def ready(self) -> dict[str, Any]:
        """Wait until the model is loaded. Return the fields to log.

        Raises:
            EngineUnusableError: the model folder cannot be used.
            EngineDiedError: the process ended.
        """
        try:
            frame = await read_async(self._stdout)
        except BaseException:
            await self.end()
            raise
        if frame and frame.pop("type") == "ready":
            return frame
        await self.end()
        if frame:
            raise EngineUnusableError(frame["message"])
        raise EngineDiedError("the engine's process ended while it loaded the model")

    def submit(
        self, request: GenerateRequest, on_piece: OnPiece | None
    ) -> asyncio.Future[Completion]:
        """Send a request. `listen` resolves the reply.

        Raises:
            EngineDiedError: the process has ended.
        """
        if not self.is_alive:
            raise EngineDiedError("the engine's process has ended")
        reply = asyncio.get_running_loop().create_future()
        # Without this, asyncio logs an exception that nobody awaits, as after a cancel.
        reply.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._send({"type": "generate", "request": request.model_dump(mode="json")})
        self._replies[request.id] = reply
        if on_piece:
            self._callbacks[request.id] = on_piece
            reply.add_done_callback(lambda _: self._callbacks.pop(request.id, None))
        return reply

    def cancel(self, request_id: str) -> None:
        """Tell the process to stop a request. Kill it if it does not within `_STUCK_S`."""
        reply = self._replies.get(request_id)
        if reply is None:
            return
        self._send({"type": "cancel", "id": request_id})
        timer = asyncio.get_running_loop().call_later(_STUCK_S, self._kill)
        reply.add_done_callback(lambda _: timer.cancel())

    async def listen(self) -> None:
        """Resolve replies until the process ends. Open ones then fail with `EngineDiedError`."""
        try:
            while (frame := await read_async(self._stdout)) is not None:
                self._handle(frame)
        except FrameError as exc:
            log.warning("edge.engine_garbled", pid=self.process.pid, reason=str(exc))
        finally:
            await self.end()
            self._on_load(None)
            for reply in self._replies.values():
                reply.set_exception(
                    EngineDiedError(f"the engine's process ended with {self.process.returncode}")
                )
            self._replies.clear()

    async def end(self) -> None:
        """End the process: close its input, at which it exits, and kill it after `_CLOSE_S`."""
        self._stdin.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.process.wait()
        except TimeoutError:
            self._kill()
            await self.process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def _send(self, frame: Frame) -> None:
        # No drain: the child reads at all times, and the worker limits the requests under way.
        self._stdin.write(pack(frame))

    def _handle(self, frame: Frame) -> None:
        if frame["type"] == "load":
            self._on_load(Load.model_validate(frame["load"]))
        elif frame["type"] != "piece":
            self._resolve(frame)
        elif on_piece := self._callbacks.get(frame["id"]):
            on_piece(frame["text"])

    def _resolve(self, frame: Frame) -> None:
        reply = self._replies.pop(frame["id"])
        outcome = _outcome(frame)
        self.has_answered = True
        if isinstance(outcome, Completion):
            reply.set_result(outcome)
        else:
            reply.set_exception(outcome)


def _outcome(frame: Frame) -> Completion | EngineError:
    match frame["type"]:
        case "done":
            return Completion.model_validate(frame["completion"])
        case "cancelled":
            return RequestCancelledError("cancelled")
        case "refused":
            return RequestRefusedError(frame["code"], frame["message"])
        case _:
            return EngineError(frame["message"])


def _ignore_load(_: Load | None) -> None:
    """Ignore a report."""


class ProcessEngine:
    """An `Engine` in a child process, started on the first request and again after it died.

    Args:
        folder: the model folder.
        options: threads, slots and memory; None takes the defaults.
        on_load: called with what the process reports of its load.
    """

    def __init__(
        self,
        folder: Path,
        options: EngineOptions | None = None,
        on_load: OnLoad = _ignore_load,
    ) -> None:
        self._folder = folder
        self._options = options or EngineOptions()
        self._on_load = on_load
        self._under_way: dict[str, asyncio.Task[Completion]] = {}
        self._admission = Admission()
        self._start: asyncio.Task[_Child] | None = None
        self._child: _Child | None = None
        self._listener: asyncio.Task[None] | None = None
        self._deaths = 0
        self._is_closed = False
        self._provider: str | None = None

    @property
    def provider(self) -> str | None:
        """The execution provider; see `Engine.provider`."""
        return self._provider

    @property
    def pid(self) -> int | None:
        """The id of the process with the model, or None if there is no such process."""
        if self._child and self._child.is_alive:
            return self._child.process.pid
        return None

    async def generate(
        self, request: GenerateRequest, on_piece: OnPiece | None = None
    ) -> Completion:
        """Answer one request; see `Engine.generate`."""
        task = asyncio.create_task(self._generate(request, on_piece))
        self._under_way[request.id] = task
        try:
            return await task
        except asyncio.CancelledError:
            # Either the caller was cancelled or `cancel` has cancelled the inner task.
            caller = asyncio.current_task()
            if caller and caller.cancelling():
                raise
            raise RequestCancelledError("cancelled") from None
        finally:
            del self._under_way[request.id]

    def cancel(self, request_id: str) -> None:
        """Stop a request; see `Engine.cancel`."""
        task = self._under_way.get(request_id)
        if task:
            task.cancel()

    async def aclose(self) -> None:
        """End the process."""
        self._is_closed = True
        if self._start:
            self._start.cancel()
            await asyncio.gather(self._start, return_exceptions=True)
        if self._child:
            await self._child.end()
        if self._listener:
            await self._listener

    async def _generate(self, request: GenerateRequest, on_piece: OnPiece | None) -> Completion:
        async with self._admission.hold(is_alone=request.is_alone):
            return await self._answer(request, on_piece)

    async def _answer(self, request: GenerateRequest, on_piece: OnPiece | None) -> Completion:
        child = await self._ready()
        reply = child.submit(request, on_piece)
        try:
            # Shielded: a cancelled reply would not notice whether the child reacts to the cancel.
            return await asyncio.shield(reply)
        except asyncio.CancelledError:
            child.cancel(request.id)
            raise

    async def _ready(self) -> _Child:
        """The running child process, started if there is none."""
        if self._is_closed:
            raise EngineDiedError("the engine is closed")
        if self._child and self._child.is_alive:
            return self._child
        if self._start is None or self._start.done():
            self._start = asyncio.create_task(self._start_child())
            self._start.add_done_callback(lambda task: task.cancelled() or task.exception())
        # `wait` does not cancel the start with us: a request with a short deadline must not undo
        # the loading of a large model.
        await asyncio.wait([self._start])
        if self._start.cancelled():
            raise EngineDiedError("the engine is closed")
        return self._start.result()

    async def _start_child(self) -> _Child:
        await asyncio.sleep(_BACKOFF_S[min(self._deaths, len(_BACKOFF_S) - 1)])
        providers = self._options.providers
        # A provider may end the process, which no fallback inside it can prevent.
        choices = (CPU,) if self._deaths else providers
        options = json.dumps(dataclasses.asdict(self._options) | {"providers": choices})
        process = await asyncio.create_subprocess_exec(
            # -P: a file in the working folder must not take the place of a module.
            sys.executable, "-P", "-m", "fusewire_worker_edge.engine.child",
            str(self._folder), options,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        child = _Child(process, self._on_load)
        try:
            ready = await child.ready()
        except EngineError as exc:
            if isinstance(exc, EngineDiedError):
                self._deaths += 1
            log.warning("edge.engine_not_started", reason=str(exc))
            raise
        self._child = child
        self._provider = ready["provider"]
        self._listener = asyncio.create_task(self._listen(child))
        passed_over = {name: _DIED for name in providers if name not in choices}
        passed_over |= ready.pop("passed_over")
        log.info("edge.engine_started", pid=process.pid, **ready)
        for name, reason in passed_over.items():
            log.warning("edge.provider_fallback", model=ready["model"], wanted=name, reason=reason)
        if ready.get("prepacked") == "off":
            log.warning("edge.prepacked_off", reason=ready["prepacked_reason"])
        return child

    async def _listen(self, child: _Child) -> None:
        await child.listen()
        self._deaths = 0 if child.has_answered else self._deaths + 1
        if not self._is_closed:
            log.warning("edge.engine_died", pid=child.process.pid, code=child.process.returncode)
