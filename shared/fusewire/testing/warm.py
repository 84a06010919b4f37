"""For tests: new `fusewire` processes and services that need not import anything first.

Importing takes a command seconds of CPU, and tests run hundreds of commands. So one process imports
what commands need, and forks for each of them. The new process takes over folder, environment and
files and runs the command's entry point as the installed script does, or a service's module. It
becomes a child of the test process (Linux's PR_SET_CHILD_SUBREAPER): it has an id, takes signals
and gives an exit code like any other, and is killed when the test process ends.
"""

import array
import atexit
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fusewire.testing.processes import bound

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LIMIT = 1_000_000
"""Bytes of one request."""


def is_warm(command: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether this is `fusewire …`, or `python -m` with a service or the fake model server.

    Not with a PYTHONPATH, from which it would have other code.
    """
    if "PYTHONPATH" in env:
        return False
    if command[0] == str(Path(sys.executable).parent / "fusewire"):
        return True
    modules = ("fusewire_", "fusewire.testing.model_server")
    return list(command[:2]) == [sys.executable, "-m"] and command[2].startswith(modules)


class WarmStart:
    """Starts `fusewire` commands from a process that has imported them. Linux only."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = bound(
            [sys.executable, "-m", "fusewire.testing.warm", str(theirs.fileno()), str(os.getpid())]
        )
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
            )
        atexit.register(self.close)

    def start(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], files: Sequence[int]
    ) -> int:
        """Start a command with these files as stdin, stdout and stderr. Returns its process id.

        Raises:
            RuntimeError: the process that forks has ended.
        """
        request = json.dumps({"command": list(command), "cwd": str(cwd), "env": dict(env)}).encode()
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
        self._socket.sendmsg([request], [rights])
        reply = self._socket.recv(100)
        if not reply:
            raise RuntimeError(f"the warm process has ended with {self._process.poll()}")
        return int(reply)

    def close(self) -> None:
        """End the process that forks."""
        self._socket.close()
        self._process.wait()


def _serve(requests: socket.socket, tester: int) -> None:
    """Fork for each request, until the test process has ended."""
    run = _load()
    gc.collect()
    # What is shared with the children is not copied only because it is looked at.
    gc.freeze()
    while True:
        data, files, _, _ = socket.recv_fds(requests, LIMIT, 3)
        if not data:
            return
        reading_end, writing_end = os.pipe()
        middle = os.fork()
        if middle:
            # The new process becomes a child of the test process only when the process in between
            # has ended.
            os.waitpid(middle, 0)
            requests.send(os.read(reading_end, 100))
            _close(reading_end, writing_end, *files)
            continue
        child = os.fork()
        if child:
            os.write(writing_end, str(child).encode())
            os._exit(0)
        _close(reading_end, writing_end, requests.detach())
        request = json.loads(data)
        _become(request, files, tester)
        _run(request["command"], run)
        return


def _run(command: list[str], run: Any) -> None:
    """Run `python -m MODULE`, or else the command's entry point."""
    if command[1:2] == ["-m"]:
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        return
    sys.argv = ["fusewire", *command[1:]]
    run()


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _load() -> Any:
    """Import what commands need. Returns the entry point of `fusewire`."""
    (script,) = entry_points(group="console_scripts", name="fusewire")
    for service in entry_points(group="fusewire.services"):
        service.load()
    for module in (
        "batch.command",
        "local.runner",
        "serve",
        "ask",
        "admin",
        "query",
        "doctor",
        "eval.command",
    ):
        __import__(f"{script.module.partition('.')[0]}.{module}")
    # What the fake model server imports; itself is run, and a module is run only before its import.
    __import__("fusewire.testing.model_connection")
    return script.load()


def _become(request: dict[str, Any], files: Sequence[int], tester: int) -> None:
    """Take over what the new process is started with."""
    os.setsid()
    while os.getppid() != tester:
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
