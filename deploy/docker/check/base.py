"""A base like python:…-slim, made of Debian's packages: registries of images are not needed."""

import hashlib
import os
import re
import sys
from pathlib import Path

from containers import Store, run

EPOCH = 1_767_225_600
"""The time that all files of the images have: 1 January 2026."""
_EXCLUDED = ("doc", "groff", "info", "lintian", "locale", "man")
"""Of /usr/share: what Debian's slim images are without, but for licences."""
_HOOKS = (
    # As in the official image: pip, no bytecode, and nobody who forbids pip to install.
    'rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED',
    'find "$1"/usr -name "*.pyc" -delete',
    '{install} --target "$1"/usr/local/lib/python3.13/dist-packages pip',
)


def suite(dockerfile: Path) -> str:
    """Debian's release that the Dockerfile's base is of, such as `trixie`."""
    line = re.search(r"^ARG BASE=python:\S+-slim-([a-z]+)$", dockerfile.read_text(), re.MULTILINE)
    assert line, "the Dockerfile has a line ARG BASE=python:VERSION-slim-SUITE"
    return line[1]


def make_base(store: Store, release: str) -> str:
    """Make the base, or take the one that was made before; returns its image's name."""
    command = ["mmdebstrap", "--quiet", "--variant=minbase"]
    command += ["--include=python3,ca-certificates,netbase,tzdata"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED]
    command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    command += [f"--customize-hook={hook}" for hook in _HOOKS]
    recipe = hashlib.sha256("\n".join([release, *command]).encode()).hexdigest()[:12]
    image = f"localhost/fusewire-base-{release}:{recipe}"
    if store.has(image):
        return image
    folder = store.folder / "base"
    folder.mkdir(parents=True, exist_ok=True)
    uv = Path(os.environ.get("UV", "uv"))
    install = f"{uv.absolute() if uv.parent.name else uv} pip install -q --python {sys.executable}"
    command = [word.replace("{install}", install) for word in command]
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    run([*command, release, str(folder / "base.tar")], log=folder / "mmdebstrap.log", env=env)
    (folder / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
    store.buildah(
        *("bud", "--isolation", "chroot", "--timestamp", str(EPOCH), "--tag", image, str(folder)),
        log=folder / "build.log",
    )
    (folder / "base.tar").unlink()
    return image
