"""The page for operators names what there is: alerts, log events."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return str(text)


def test_each_alert_has_its_section_and_each_section_an_alert() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "alerts" / "rules.yaml").read_text(encoding="utf-8"))
    alerts = [
        rule["annotations"]["runbook_url"]
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    titles = re.findall(r"^### (.+)$", section("Alerts"), re.MULTILINE)

    assert alerts
    anchors = [f"docs/operate.md#{title.lower().replace(' ', '-')}" for title in titles]
    assert anchors == alerts, "in the order of the rules"


def test_the_log_events_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", section("Log events worth an eye"), re.MULTILINE)
    events = re.findall(r"`([a-z_.]+)`", " ".join(rows))
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for root in ("services", "shared", "cli")
        for path in (ROOT / root).rglob("*.py")
    )

    assert len(events) > 10
    assert [event for event in events if f'"{event}"' not in code] == []
