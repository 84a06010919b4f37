"""`make sbom` lists what is locked."""

import json
import re
import subprocess
from pathlib import Path

from fusewire.testing.eventually import PATIENCE_S

ROOT = Path(__file__).parents[3]
LOCK = ROOT / "deploy" / "docker" / "requirements" / "dispatcher.lock"


def test_what_is_locked_is_listed_with_version_and_hashes(tmp_path: Path) -> None:
    target = tmp_path / "dispatcher.cdx.json"
    command = ["make", "--no-print-directory", f"SBOM={tmp_path}", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE_S, capture_output=True)

    bom = json.loads(target.read_text())
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "fusewire-dispatcher",
    )
    listed = {
        (part["name"], part["version"]): {
            entry["content"] for link in part["externalReferences"] for entry in link["hashes"]
        }
        for part in bom["components"]
    }
    locked = {
        (name, version): set(re.findall(r"sha256:([0-9a-f]{64})", hashes))
        for name, version, hashes in re.findall(
            r"^([\w.-]+)==([\w.+-]+)[^\n]*\\\n((?: +--hash=\S+.*\n?)+)",
            LOCK.read_text(),
            re.MULTILINE,
        )
    }
    assert listed == locked
    assert ("faststream", dict(locked.keys())["faststream"]) in listed
