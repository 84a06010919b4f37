"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = [
    *ROOT.glob("services/*/fusewire_*"),
    ROOT / "shared/fusewire",
    ROOT / "cli/fusewire_cli",
]


def test_examples_in_docstrings() -> None:
    count = 0
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            if ">>> " not in path.read_text(encoding="utf-8"):
                continue
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            results = doctest.testmod(importlib.import_module(name))
            assert results.failed == 0, name
            count += results.attempted
    assert count > 10
