"""Files of others are here as their packages on npm have them, and vendor.json names each."""

import hashlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MANIFEST = "vendor.json"
FOLDERS = (
    ROOT / "services/console/fusewire_console/static/vendor",
    ROOT / "tests/console/vendor",
)
LICENCES = ("0BSD", "MIT", "MPL-2.0")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parents[0].name)
def test_the_files_are_those_of_the_manifest_and_nothing_else_is_there(folder: Path) -> None:
    entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    digests = {entry["file"]: entry["sha256"] for entry in entries}
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    assert files == digests
    for entry in entries:
        assert entry["licence"] in LICENCES
        assert entry["package"]
        assert entry["path"]
        assert entry["version"] in entry["file"]
    licensed = {entry["package"] for entry in entries if "LICENSE" in entry["file"]}
    assert licensed == {entry["package"] for entry in entries}, "each has its licence beside it"
