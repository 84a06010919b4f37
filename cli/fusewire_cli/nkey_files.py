"""`fusewire topology nkeys`: the users' keys as files."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import nkeys

from fusewire.accounts import users
from fusewire_cli.screen import fail, note


def write(folder: Path, sites: Sequence[str]) -> None:
    """Make a key for each user: `<user>.seed`, and `public.env` for nats-server's environment.

    Only who owns the folder may read it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        fail(f"{folder} exists", "name a folder that does not: keys are never overwritten")
    except OSError as exc:
        fail(f"{folder} cannot be made: {exc.strerror}", "name a folder that can")
    variables = []
    for user in users(sites):
        seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
        public_key = nkeys.from_seed(bytearray(seed)).public_key.decode()
        _write_new(folder / f"{user.name}.seed", seed.decode())
        variables.append(f"{user.variable.removeprefix('$')}={public_key}")
    _write_new(folder / "public.env", "\n".join(variables) + "\n")
    note(f"{len(variables)} seeds and public.env are in {folder}; seeds are secrets")


def _write_new(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
