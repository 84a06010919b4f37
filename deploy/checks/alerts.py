"""The alerts: promtool takes them, and each has a test in which it fires."""

from collections.abc import Iterator
from typing import Any

from checks.model import Check, Document, SourceFolder, UnreadableError, once, one_line, parse
from checks.tools import run


def rules(source: SourceFolder) -> Iterator[str]:
    """What promtool says of the rules, and copies of them in the chart that differ."""
    folder = source.folder / "alerts"
    if problem := _rules_problem(source):
        yield problem
    for copy in sorted((source.chart / "files").glob("*")):
        original = folder / copy.name
        if original.is_file() and original.read_bytes() != copy.read_bytes():
            yield f"{source.path(copy)} differs from {source.path(original)}: copy it"


def _rules_problem(source: SourceFolder) -> str:
    file = source.folder / "alerts/rules.yaml"
    command = ("check", "rules", "--lint=all", "--lint-fatal", file)
    result = once(("rules", file.read_text()), run, source.tools.promtool, *command)
    if result.returncode == 0:
        return ""
    return f"{source.path(file)}: {one_line(result.stdout + result.stderr)}"


def tests(source: SourceFolder) -> Iterator[str]:
    """Alerts without a test, and tests that fail."""
    if problem := _rules_problem(source):
        raise UnreadableError(problem)
    folder = source.folder / "alerts"
    file = folder / "rules.test.yaml"
    texts = (folder / "rules.yaml").read_text(), file.read_text()
    groups = parse(texts[0])["groups"]
    alerts = {rule["alert"] for rule in _flat(groups, "rules") if "alert" in rule}
    cases = _flat(parse(texts[1])["tests"], "alert_rule_test")
    alerts -= {case["alertname"] for case in cases if case.get("exp_alerts")}
    for name in sorted(alerts):
        yield f"alert {name} has no test in which it fires"
    command = (source.tools.promtool, "test", "rules", file)
    result = once(("test", *texts), run, *command, cwd=folder)
    if result.returncode:
        yield f"{source.path(file)}: {one_line(result.stdout + result.stderr)}"


def _flat(documents: list[Document], key: str) -> list[Any]:
    """The entries of the lists that all documents have under a key."""
    entries: list[Any] = []
    for document in documents:
        entries += document.get(key) or []
    return entries


CHECKS = (
    Check("alert-rules", "promtool takes the alerts, and the chart's copies are the same", rules),
    Check("alert-tests", "every alert has a test in which it fires, and the tests pass", tests),
)
