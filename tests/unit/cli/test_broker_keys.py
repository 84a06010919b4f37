"""The keys of the embedded broker's users, as files."""

import stat
from pathlib import Path

import nkeys
import pytest

from fusewire.accounts import render, users
from fusewire.errors import EXIT_STORED, StartupError
from fusewire_cli import nkey_files
from fusewire_cli.local import broker_keys


def test_each_user_gets_a_key_and_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    public = broker_keys.prepare(folder)

    assert public.keys() == {user.variable.removeprefix("$") for user in users(tenants=["default"])}
    assert len(set(public.values())) == len(public)
    judge = bytearray((folder / "judge.seed").read_bytes())
    assert nkeys.from_seed(judge).public_key.decode() == public["FW_NKEY_JUDGE"]
    assert broker_keys.prepare(folder) == public


def test_only_their_owner_may_read_them(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    broker_keys.prepare(folder)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_start_that_was_killed_while_it_made_them_is_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = broker_keys.prepare(folder)
    (folder / "public.env").unlink()
    (folder / "worker-remote.seed").unlink()
    (folder / "worker-remote.new").write_text("SU")

    second = broker_keys.prepare(folder)

    assert {name for name in first if first[name] != second[name]} == {"FW_NKEY_WORKER_REMOTE"}
    assert broker_keys.prepare(folder) == second


def test_a_user_that_a_later_release_has_gets_a_key(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = dict(broker_keys.prepare(folder))
    del first["FW_NKEY_JUDGE"]
    (folder / "public.env").write_text("".join(f"{name}={key}\n" for name, key in first.items()))
    (folder / "judge.seed").unlink()

    second = broker_keys.prepare(folder)
    assert second.items() >= first.items()
    assert "FW_NKEY_JUDGE" in second


def test_topology_nkeys_adds_the_producers_of_a_tenant(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    first = broker_keys.prepare(folder)
    nkey_files.write(folder, [], ["acme"], adds=True)

    second = broker_keys.prepare(folder)

    assert second.keys() - first.keys() == {"FW_NKEY_TENANT_ACME"}
    assert broker_keys.tenants(folder) == ["acme", "default"]
    assert "TENANT_acme {" in render(tenants=broker_keys.tenants(folder))
    (folder / "tenant-acme.seed").unlink()
    assert broker_keys.prepare(folder) == first


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("judge.seed", None, "judge.seed is lost"),
        ("judge.seed", b"", "judge.seed is damaged"),
        ("judge.seed", b"SUABC", "judge.seed is damaged"),
        ("judge.seed", b"\xff\x00" * 29, "judge.seed is damaged"),
        ("judge.seed", "ops.seed", "judge.seed is another key than public.env beside it names"),
        ("public.env", b"\xff", "public.env cannot be read"),
        ("tenant-a b.seed", b"", "the name 'a b' must be of a-z"),
    ],
)
def test_a_key_that_is_lost_or_damaged_says_how_to_mend_it(
    tmp_path: Path, file: str, content: bytes | str | None, message: str
) -> None:
    folder = tmp_path / "keys"
    broker_keys.prepare(folder)
    if content is None:
        (folder / file).unlink()
    else:
        data = content if isinstance(content, bytes) else (folder / content).read_bytes()
        (folder / file).write_bytes(data)

    with pytest.raises(StartupError, match=message) as caught:
        broker_keys.prepare(folder)

    assert str(folder) in str(caught.value)
    if file != "tenant-a b.seed":
        assert caught.value.exit_code == EXIT_STORED
        assert f"move {folder} away: the next start makes new keys" in caught.value.mend
        folder.rename(tmp_path / "away")
        broker_keys.prepare(folder)
