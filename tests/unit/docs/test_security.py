"""Each promise about security names tests that are there, and what is left to operators is said."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`((?:unit|conformance|e2e)/[\w/-]+\.py)::(test_\w+)`")
ROWS = re.findall(r"^\| (S\d+) \| (.+?) \| (.+) \|$", PAGE, re.MULTILINE)


def test_every_requirement_has_its_row() -> None:
    assert [name for name, _, _ in ROWS] == [f"S{number}" for number in range(1, 18)]


def test_the_tests_of_each_promise_are_there() -> None:
    for name, _, cell in ROWS:
        tests = NAMED.findall(cell)
        assert tests, f"no test stands beside {name}"
        assert cell.count("`") == 2 * len(tests), f"{name} names a test that has no such form"
        for file, test in tests:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {test}"


def test_what_is_left_to_operators_is_said() -> None:
    (section,) = re.findall(r"^## Left to operators\n(.*)", PAGE, re.DOTALL | re.MULTILINE)
    topics = re.findall(r"^- \*\*(.+?)\.\*\*", section, re.MULTILINE)
    assert "At rest" in topics
    assert len(topics) > 5


def test_the_policy_says_how_to_report_and_leads_to_the_promises() -> None:
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "private vulnerability reporting" in policy
    assert "(docs/security.md)" in policy
    assert "@" not in policy, "no address of ours exists"
