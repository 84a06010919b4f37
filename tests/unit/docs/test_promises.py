"""Each promise names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
ROW = re.compile(r"`((?:unit|conformance|chaos|e2e)/[\w/-]+\.py)::(test_\w+)`")


def test_the_tests_of_each_promise_are_there() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "promises.md").read_text().splitlines()
        if line.startswith("| ")
    ][1:]
    assert len(rows) > 10
    for row in rows:
        named = ROW.findall(row)
        assert named, f"no test stands beside: {row}"
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {test}"
