"""`fusewire topology nkeys` and `accounts`."""

import stat
from pathlib import Path

import nkeys
import pytest

from fusewire.accounts import render, users
from fusewire_cli import nkey_files


def test_each_user_gets_a_key_that_the_server_s_file_names(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    nkey_files.write(folder, ["north"])

    public = dict(line.split("=") for line in (folder / "public.env").read_text().splitlines())
    assert public.keys() == {user.variable.removeprefix("$") for user in users(["north"])}
    for user in users(["north"]):
        seed = (folder / f"{user.name}.seed").read_bytes()
        key = nkeys.from_seed(bytearray(seed)).public_key.decode()
        assert public[user.variable.removeprefix("$")] == key
        assert f"nkey: {user.variable}," in render(["north"])
    assert len(set(public.values())) == len(public)


def test_only_their_owner_may_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    nkey_files.write(folder, [])
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_keys_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nkey_files.write(tmp_path / "keys", [])
    with pytest.raises(SystemExit):
        nkey_files.write(tmp_path / "keys", [])
    assert "keys are never overwritten" in capsys.readouterr().err
