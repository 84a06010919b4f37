"""What the documents say of streams, commands and links is what the code does."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from fusewire.topology import LEDGER, OUTBOX, STREAMS, site_topology, topology
from fusewire_cli.main import app

ROOT = Path(__file__).resolve().parents[3]


def test_the_subject_table_is_the_topology() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = {m[1]: m[2] for m in re.finditer(r"^\| (FW_\w+) \| (.+?) \|", text, re.MULTILINE)}
    streams = [*STREAMS, OUTBOX]
    assert rows.keys() == {stream.name for stream in streams}
    for stream in streams:
        assert tuple(re.findall(r"`([^`]+)`", rows[stream.name])) == stream.subjects
    assert f"`{LEDGER.name}`" in text


def test_every_durable_of_the_table_is_provisioned() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    servers = [topology({"m": "edge", "r": "remote"}, ["default"]), site_topology()]
    made = {(d.stream, d.name) for server in servers for d in server.durables}
    for stream, name in (
        ("FW_PROMPT", "dispatcher-high"),
        ("FW_TIMER", "judge-due"),
        ("FW_TASK_EDGE", "m-high"),
    ):
        assert (stream, name) in made
    for stream, cell in re.findall(r"^\| (FW_\w+) \|.*\| ([^|]+) \|$", text, re.MULTILINE):
        for name in re.findall(r"^`([a-z-]+)`$", cell.strip()):
            assert (stream, name) in made


PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "deploy/*.md", "docs/**/*.md")
    for path in ROOT.glob(pattern)
)


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have on a forge."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if "://" in target:
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def commands(text: str) -> list[list[str]]:
    """The words of each `fusewire` command in a page's shell snippets."""
    snippets = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for snippet in snippets for line in snippet.splitlines()]
    calls = [
        re.findall(r"(?:^|&& |bin/)fusewire ([^&|>]+)", line.partition("  #")[0]) for line in lines
    ]
    return [shlex.split(call) for line_calls in calls for call in line_calls]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page: str) -> None:
    for words in commands((ROOT / page).read_text(encoding="utf-8")):
        command = get_command(app)
        arguments = iter(words)
        while names := getattr(command, "commands", None):
            name = next(arguments)
            assert name in names, f"fusewire {' '.join(words)}"
            command = names[name]
        options = {option for parameter in command.params for option in parameter.opts}
        for word in arguments:
            if word.startswith("-"):
                assert word.partition("=")[0] in options, f"fusewire {' '.join(words)}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


def test_each_rule_that_is_set_aside_says_why() -> None:
    """`# noqa: RULE - the reason`."""
    roots = ("services", "shared", "cli", "migrations", "tests")
    sources = [path for root in roots for path in (ROOT / root).rglob("*.py")]
    assert len(sources) > 300
    silent = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"#\s*noqa\b(?!: [A-Z0-9, ]+ - \S)", line) and path != Path(__file__)
    ]
    assert silent == []


def test_the_glossary_is_in_order_and_of_words_that_the_code_uses() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| [^|]+ \| [^|]*\|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE
    )[1:]
    own, further = rows[:8], rows[8:]
    assert len(own) == 8
    assert all("**" in term for term in own)
    assert further == sorted(further, key=str.lower)
    sources = (
        path for root in ("services", "shared", "cli") for path in (ROOT / root).rglob("*.py")
    )
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources).lower()
    words = [word for term in rows for word in re.findall(r"[a-z]+(?:-[a-z]+)?", term.lower())]
    assert [word for word in words if word not in code] == []
