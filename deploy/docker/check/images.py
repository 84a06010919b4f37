"""Builds the images, and looks at what is in them."""

import json
import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from base import EPOCH
from containers import RUN_OPTIONS, CheckError, Store
from files import faults as file_faults

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
SERVICES = ("ingest", "dispatcher", "judge", "worker-edge", "worker-remote", "console")
IMAGES = (*SERVICES, "tools")
MOST_MB = 250
"""No image may be larger, except worker-edge's, which has an inference engine."""
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
"""This machine's: whoever builds behind a TLS proxy trusts it there."""
OPTIONS_ENV = "BUILD_OPTIONS"
"""Further options of `buildah bud`, such as `--secret id=uv.toml,src=…`."""
_USER = "10001:10001"
_LOAD_LIBRARIES = """
import ctypes, pathlib
folder = pathlib.Path("/opt/fusewire/.venv/lib")
for path in [*folder.rglob("*.so"), *folder.rglob("*.so.[0-9]*")]:
    ctypes.CDLL(str(path))
"""


@dataclass(frozen=True)
class Image:
    """An image that has been built."""

    service: str
    name: str
    megabytes: float
    seconds: float


def build(store: Store, base: str, service: str) -> Image:
    """Build an image."""
    name = f"localhost/fusewire-{service}"
    begin = time.monotonic()
    _bud(store, base, service, "--layers", "--format", "docker", "--tag", name)
    seconds = time.monotonic() - begin
    size = int(store.podman("image", "inspect", "--format", "{{.Size}}", name))
    return Image(service, name, size / 1e6, seconds)


def digest(store: Store, base: str, service: str) -> str:
    """Build an image without any cached layer; returns its digest.

    In OCI's format: Docker's holds the random name of the container that built it.
    """
    with tempfile.NamedTemporaryFile("r") as file:
        _bud(store, base, service, "--no-cache", "--format", "oci", "--iidfile", file.name)
        image_id = file.read()
    store.podman("rmi", "--force", image_id)
    return image_id


def _bud(store: Store, base: str, service: str, *options: str) -> None:
    command = ["bud", "--isolation", "chroot", "--pull-never", "--timestamp", str(EPOCH)]
    command += ["--file", str(DOCKERFILE), "--build-arg", f"BASE={base}"]
    command += ["--build-arg", f"SERVICE={service}"]
    if Path(CERTIFICATES).exists():
        command += ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    command += [*shlex.split(os.environ.get(OPTIONS_ENV, "")), *options, str(ROOT)]
    store.buildah(*command, log=store.folder / f"build-{service}.log")


def check_image(store: Store, image: Image) -> None:
    """Check an image's size, settings, files, and libraries, whose debug symbols were removed.

    Raises:
        CheckError: with all that is wrong with it.
    """
    faults = list(_setting_faults(store, image))
    container = store.buildah("from", "--pull-never", image.name)
    try:
        root = Path(store.buildah("mount", container))
        faults += file_faults(root)
    finally:
        store.buildah("rm", container)
    if faults:
        raise CheckError(f"{image.name}:\n  " + "\n  ".join(faults))
    options = ("--rm", "--no-healthcheck", "--entrypoint", "python", *RUN_OPTIONS)
    store.podman("run", *options, image.name, "-c", _LOAD_LIBRARIES)


def _setting_faults(store: Store, image: Image) -> Iterator[str]:
    if image.service != "worker-edge" and image.megabytes > MOST_MB:
        yield f"has {image.megabytes:.0f} MB, more than {MOST_MB}"
    description = json.loads(store.podman("image", "inspect", image.name))[0]
    config = description["Config"]
    if config["User"] != _USER:
        yield f"runs as {config['User'] or 'root'}, not {_USER}"
    if ("Healthcheck" in description) != (image.service in SERVICES):
        yield "a service has a HEALTHCHECK, and tools none"
    title = config["Labels"].get("org.opencontainers.image.title")
    if title != f"fusewire-{image.service}":
        yield f"has the title {title}"
