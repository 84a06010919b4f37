"""`fusewire topology nkeys`: the users' keys as files."""

import os
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

import nkeys

from fusewire.accounts import users
from fusewire_cli.screen import fail, note


def write(
    folder: Path, sites: Sequence[str], tenants: Sequence[str] = (), *, adds: bool = False
) -> None:
    """Make a key for each user: `<user>.seed`, and `public.env` for nats-server's environment.

    Only who owns the folder may read it.

    Args:
        folder: where to.
        sites: names of the edge sites.
        tenants: names of the tenants that submit prompts over NATS.
        adds: whether the folder is there, and users with a key in it keep that.
    """
    try:
        all_users = users(sites, tenants)
    except ValueError as exc:
        fail(str(exc), "give --tenant and --edge-site other names")
    earlier = _read_variables(folder) if adds else _make(folder)
    variables = {}
    for user in all_users:
        name = user.variable.removeprefix("$")
        if name in earlier:
            continue
        seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
        variables[name] = nkeys.from_seed(bytearray(seed)).public_key.decode()
        _write_new(folder / f"{user.name}.seed", seed.decode())
    lines = "".join(f"{name}={public}\n" for name, public in variables.items())
    with _open(folder / "public.env", os.O_APPEND) as file:
        file.write(lines)
    note(f"{len(variables)} new seeds and public.env are in {folder}; seeds are secrets")


def _make(folder: Path) -> Collection[str]:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        fail(
            f"{folder} exists",
            "name a folder that does not, or give --add: keys are never overwritten",
        )
    except OSError as exc:
        fail(f"{folder} cannot be made: {exc.strerror}", "name a folder that can")
    return ()


def _read_variables(folder: Path) -> Collection[str]:
    """The variables of users that have a key."""
    path = folder / "public.env"
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        fail(
            f"{path} cannot be read",
            "name the folder that `fusewire topology nkeys` has made, or leave out --add",
        )
    return {line.partition("=")[0] for line in lines}


def _write_new(path: Path, text: str) -> None:
    with _open(path, os.O_EXCL) as file:
        file.write(text)


def _open(path: Path, flag: int) -> IO[str]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o600), "w")
