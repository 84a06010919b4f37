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


def test_users_are_added_and_keep_their_keys(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    nkey_files.write(folder, ["north"])
    before = {path.name: path.read_text() for path in folder.iterdir()}

    nkey_files.write(folder, ["north"], ["acme"], adds=True)
    nkey_files.write(folder, ["north"], ["acme"], adds=True)

    after = {path.name: path.read_text() for path in folder.iterdir()}
    assert after.keys() - before.keys() == {"tenant-acme.seed"}
    assert {name: after[name] for name in before if name.endswith(".seed")} == {
        name: text for name, text in before.items() if name.endswith(".seed")
    }
    variables = [line.partition("=")[0] for line in after["public.env"].splitlines()]
    assert sorted(variables) == sorted(
        user.variable.removeprefix("$") for user in users(["north"], ["acme"])
    )


def test_nothing_is_added_to_what_is_no_folder_of_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        nkey_files.write(tmp_path, [], ["acme"], adds=True)
    assert "public.env cannot be read" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tenants", "message"),
    [
        (["a-b", "a_b"], "'tenant-a-b' and 'tenant-a_b' would have one key"),
        (["acme", "acme"], "would have one key"),
        (["Acme"], "must be of a-z"),
        (["a.b"], "must be of a-z"),
        (['a" }'], "must be of a-z"),
        ([">"], "must be of a-z"),
    ],
)
def test_names_that_cannot_be_told_apart_are_refused(
    tenants: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        render([], tenants)
    with pytest.raises(SystemExit):
        nkey_files.write(tmp_path / "keys", [], tenants)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()
