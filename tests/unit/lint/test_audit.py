"""The audit fails on a vulnerability, and never on a network."""

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "lint" / "audit.py"
VULNERABLE = {
    "name": "jinja2",
    "version": "2.10",
    "vulns": [
        {"id": "PYSEC-2019-217", "aliases": ["CVE-2019-10906"], "fix_versions": ["2.10.1"]},
    ],
}
SOUND = {"name": "aiohttp", "version": "3.14.5", "vulns": []}
SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(*packages: dict[str, Any]) -> dict[str, Any]:
    return {"dependencies": list(packages), "fixes": []}


@pytest.mark.parametrize(
    ("known", "count"),
    [
        ("", 1),
        ("CVE-2018-0001 of another", 1),
        ("# a comment\nPYSEC-2019-217 no template comes from a user", 0),
        ("CVE-2019-10906 no template comes from a user", 0),
    ],
    ids=["nothing is accepted", "another is", "by its id", "by an alias"],
)
def test_a_vulnerability_that_is_not_accepted_is_a_fault(
    audit: ModuleType, known: str, count: int
) -> None:
    lines = list(audit.faults(report(VULNERABLE, SOUND, SKIPPED), audit.accepted_reasons(known)))

    assert len(lines) == count
    assert all("jinja2 2.10" in line and "2.10.1" in line for line in lines)


def test_what_is_accepted_has_a_reason(audit: ModuleType) -> None:
    with pytest.raises(ValueError, match="PYSEC-2019-217 has no reason"):
        audit.accepted_reasons("PYSEC-2019-217")
    audit.accepted_reasons(audit.KNOWN.read_text())


@pytest.mark.parametrize(
    ("packages", "line"),
    [
        ([SOUND], None),
        ([SOUND, SKIPPED], "not audited: 1 of 2 packages"),
        ([SKIPPED], "not audited: the package index has no data on vulnerabilities"),
        ([], "not audited: the package index has no data on vulnerabilities"),
    ],
    ids=["all are known", "one is not", "none is", "the service is away"],
)
def test_what_was_not_looked_at_is_told(
    audit: ModuleType, packages: list[dict[str, Any]], line: str | None
) -> None:
    assert audit.notice(report(*packages)) == line


@pytest.mark.parametrize(
    "script",
    ["raise SystemExit('no network')", "print('{')", "import time; time.sleep(600)"],
    ids=["it fails", "its answer is none", "it hangs"],
)
def test_a_service_that_cannot_be_had_is_no_vulnerability(
    audit: ModuleType, tmp_path: Path, script: str
) -> None:
    found = audit.audit(tmp_path / "lock", [sys.executable, "-c", script], timeout_s=3)

    assert found == {"dependencies": []}
    assert list(audit.faults(found, {})) == []


def test_a_report_is_kept_for_a_day_and_for_its_lock(audit: ModuleType, tmp_path: Path) -> None:
    lock, kept = tmp_path / "lock", tmp_path / "kept"
    lock.write_text("a==1")
    entry = {"at": time.time(), "lock": audit.digest(lock), "report": report(VULNERABLE)}
    kept.write_text(json.dumps(entry))

    assert audit.kept_report(lock, kept, entry["at"] + 60) == report(VULNERABLE)
    assert audit.kept_report(lock, kept, entry["at"] + audit.KEPT_FOR_S + 1) is None
    kept.write_text(json.dumps(entry | {"report": report()}))
    assert audit.kept_report(lock, kept, entry["at"] + 60) == report()
    assert audit.kept_report(lock, kept, entry["at"] + 3600) is None, "it is tried again"
    lock.write_text("a==2")
    assert audit.kept_report(lock, kept, entry["at"] + 60) is None
