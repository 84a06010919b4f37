"""`make image-check`: builds all images, looks into them, and runs a batch through them.

Exit codes: 0 all is well, 1 an image is not as it must be, 2 this machine cannot run the check.
"""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from base import make_base, suite
from batch import run_batch
from containers import PACKAGES, CheckError, Store, absent_tools, open_store
from images import DOCKERFILE, IMAGES, MOST_MB, ROOT, build, check_image, digest

REPRODUCED = "dispatcher"
"""The image that is built twice more: the smallest, with all the steps of the others."""


def main() -> int:
    """Run the check."""
    if absent := ", ".join(absent_tools()):
        return _refuse(f"there is no {absent}; on Debian: apt-get install {' '.join(PACKAGES)}")
    if os.geteuid() != 0:
        return _refuse("only root may build and run containers as it does; run it as root")
    # So that containers are ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with open_store(ROOT / "build" / "image-check") as store:
            _check(store)
    except BlockingIOError:
        return _refuse("another one runs in this folder; wait for its end")
    except CheckError as exc:
        print(f"image-check: {exc}", file=sys.stderr)
        return 1
    print("image-check: all is well")
    return 0


def _refuse(why: str) -> int:
    print(f"image-check: {why}", file=sys.stderr)
    return 2


def _check(store: Store) -> None:
    base = make_base(store, suite(DOCKERFILE))
    for service in IMAGES:
        image = build(store, base, service)
        print(f"{service:14} {image.megabytes:4.0f} MB, {image.seconds:3.0f} s", flush=True)
        check_image(store, image)
    print(f"none but worker-edge has more than {MOST_MB} MB, on a base made of Debian's packages")
    digests = {digest(store, base, REPRODUCED) for _ in range(2)}
    if len(digests) != 1:
        raise CheckError(f"{REPRODUCED} was built twice: {' and '.join(sorted(digests))}")
    print(f"{REPRODUCED}, built twice without a cache: {digests.pop()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fusewire-images-") as name:
        Path(name).chmod(0o755)  # the user of the containers looks into it
        asyncio.run(run_batch(store, Path(name)))


sys.exit(main())
