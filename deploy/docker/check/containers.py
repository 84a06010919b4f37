"""buildah and podman, with a store of their own under build/."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("buildah", "podman", "runc", "mmdebstrap")
"""What the check runs, each as the Debian package of its name."""
RUN_OPTIONS = (
    # As the chart and compose.yaml run the images.
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all"),
    *("--security-opt", "no-new-privileges"),
    # runc and these limits: crun wants more rights than a container in a container has.
    *("--runtime", "runc", "--network", "host", "--log-driver", "none"),
    *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"),
)
STOP_S = 20


class CheckError(Exception):
    """The images are not as they must be."""


def absent_tools() -> list[str]:
    """The programs that the check needs and this machine has not."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PACKAGES if shutil.which(name, path=path) is None]


@dataclass(frozen=True)
class Store:
    """Images and containers in a folder."""

    folder: Path

    def clear(self) -> None:
        """Remove all containers, those of a run that was killed too; images are kept."""
        self.podman("rm", "--all", "--force", "--time", "0")
        self.buildah("rm", "--all")

    def buildah(self, *args: str, log: Path | None = None) -> str:
        """Run buildah; returns what it prints. With `log`, that goes to the file."""
        return run(["buildah", *self._options, *args], log=log)

    def podman(self, *args: str) -> str:
        """Run podman; returns what it prints."""
        return run([*self._podman, *args])

    def has(self, image: str) -> bool:
        """Whether there is such an image."""
        command = [*self._podman, "image", "exists", image]
        return subprocess.run(command, check=False).returncode == 0

    async def start(
        self,
        image: str,
        *args: str,
        env: Mapping[str, str],
        mounts: Sequence[str],
        log: Path,
    ) -> "Container":
        """Start a container on the host's network; what it writes to stderr goes to the log."""
        id_file = log.with_suffix(".id")
        id_file.unlink(missing_ok=True)
        command = [*self._podman, "run", "--cidfile", str(id_file), *RUN_OPTIONS]
        for name, value in env.items():
            command += ["--env", f"{name}={value}"]
        for mount in mounts:
            command += ["--volume", mount]
        with log.open("wb") as err, log.with_suffix(".out").open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *command, image, *args, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=err
            )
        return Container(self, process, id_file, log)

    @property
    def _options(self) -> list[str]:
        return ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]

    @property
    def _podman(self) -> list[str]:
        return ["podman", *self._options, "--cgroup-manager", "cgroupfs"]


@contextlib.contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store in a folder, for one process at a time; no container is left with its end.

    Raises:
        BlockingIOError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        store = Store(folder)
        store.clear()
        try:
            yield store
        finally:
            store.clear()
            # The store mounts its folder on itself, which could not be removed then.
            subprocess.run(
                ["umount", folder / "store" / "overlay"], check=False, capture_output=True
            )


@dataclass(frozen=True)
class Container:
    """A container that has been started."""

    store: Store
    process: asyncio.subprocess.Process
    id_file: Path
    log: Path

    async def end(self, timeout_s: float) -> int:
        """Wait for its end; returns its exit code."""
        return await asyncio.wait_for(self.process.wait(), timeout_s)

    async def stop(self) -> int:
        """Tell it to stop, as an orchestrator does; returns its exit code."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.end(STOP_S)

    def is_healthy(self) -> bool:
        """Run the image's own health check."""
        try:
            self.store.podman("healthcheck", "run", self._id)
        except CheckError:
            return False
        return True

    def remove(self) -> None:
        """End it whatever it does, and remove it."""
        if self.id_file.exists():
            self.store.podman("rm", "--force", "--time", "0", self._id)

    @property
    def _id(self) -> str:
        return self.id_file.read_text()

    @property
    def output(self) -> str:
        """What it has written to stdout."""
        return self.log.with_suffix(".out").read_text()

    def last_lines(self) -> str:
        """The end of what it wrote."""
        return self.output[-3000:] + self.log.read_text(errors="replace")[-3000:]


def run(
    command: list[str], *, log: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a program; returns what it prints. With `log`, that goes to the file.

    Raises:
        CheckError: its exit code is not 0.
    """
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("w")) if log else subprocess.PIPE
        err = subprocess.STDOUT if log else subprocess.PIPE
        process = subprocess.run(command, stdout=out, stderr=err, text=True, check=False, env=env)
    if process.returncode:
        words = " ".join(word for word in command[:8] if not word.startswith("/"))
        message = log.read_text(errors="replace") if log else process.stderr
        raise CheckError(f"{words} … ended with {process.returncode}:\n{message[-3000:]}")
    return "" if log else process.stdout.strip()
