"""For tests: the `fusewire` command as a subprocess, in a folder of its own."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FUSEWIRE = Path(sys.executable).parent / "fusewire"


@dataclass(frozen=True)
class Cli:
    """Runs `fusewire` in a folder of its own."""

    folder: Path
    env: Mapping[str, str]

    def run(self, *args: str, timeout: float = 120, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(FUSEWIRE), *args],
            cwd=self.folder,
            env=dict(self.env),
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin,
            check=False,
        )

    @contextlib.contextmanager
    def start(self, *args: str) -> Iterator[subprocess.Popen[str]]:
        """Run in the background; whatever becomes of the test, it is ended."""
        process = subprocess.Popen(
            [str(FUSEWIRE), *args],
            cwd=self.folder,
            env=dict(self.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class FakeServer:
    """The fake model server, as a process."""

    port: int

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def bare(folder: Path, **extra: str) -> Cli:
    """A command line without any FUSEWIRE_ variable of the machine's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FUSEWIRE_")}
    return Cli(folder, {**env, **extra, "NO_COLOR": "1"})


def write_lines(path: Path, count: int) -> list[str]:
    """Write a batch; returns its custom_ids."""
    names = [f"q{number:03}" for number in range(count)]
    path.write_text("".join(json.dumps({"custom_id": n, "prompt": f"question {n}"}) + "\n" for n in names))
    return names
