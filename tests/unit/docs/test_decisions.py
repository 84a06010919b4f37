"""Each decision that the code cites has a page, and each page is short and in the index."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
DECISIONS = ROOT / "docs" / "decisions"
CITATION = re.compile(r"docs/decisions/(\d{4})")
PAGES = {page.name[:4]: page for page in sorted(DECISIONS.glob("[0-9]*.md"))}
MOST_LINES = 40


def test_the_decisions_that_code_cites_have_pages() -> None:
    citations = [
        (path.relative_to(ROOT), number)
        for tree in ("services", "shared", "cli")
        for path in sorted((ROOT / tree).rglob("*.py"))
        for number in CITATION.findall(path.read_text(encoding="utf-8"))
    ]
    assert len(citations) > 40
    unknown = [f"{path} cites {number}" for path, number in citations if number not in PAGES]
    assert not unknown


def test_each_decision_is_a_short_page_in_the_index() -> None:
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    for page in PAGES.values():
        n_lines = len(page.read_text(encoding="utf-8").splitlines())
        assert n_lines <= MOST_LINES, f"{page.name} has {n_lines} lines"
        assert f"({page.name})" in index, f"the index lacks {page.name}"
