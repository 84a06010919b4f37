"""Alerts and the dashboard name nothing but metrics and labels that the services export.

That a running stack exports these is shown in tests/conformance/test_metrics.py.
"""

import importlib.util
import json
import re
from pathlib import Path
from typing import get_args

import promql_parser
import pytest
import yaml
from promql_parser import AggregateExpr, BinaryExpr, Call, Expr, VectorSelector

from fusewire import metrics
from fusewire.contracts import ErrorCode, Tier
from fusewire.contracts.outcome import ClosedBy, ParseStage, Status
from fusewire.topology import STREAMS
from fusewire_cli.local.runner import ORDER

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "deploy" / "alerts"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
TESTS = yaml.safe_load((FOLDER / "rules.test.yaml").read_text())
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())

ANCHORS = {
    heading.lower().replace(" ", "-")
    for heading in re.findall("^#+ (.+)$", (REPOSITORY / "docs" / "operate.md").read_text(), re.M)
}
ENTRIES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ENTRIES if "alert" in rule}
RECORDS = {rule["record"] for rule in ENTRIES if "record" in rule}
GRAPHS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

SCRAPE_LABELS = {"namespace", "pod", "app_kubernetes_io_component"}
"""Labels that a scrape by the chart's PodMonitor adds to each series."""
VALUES: dict[tuple[str, str], set[str]] = {
    ("", "app_kubernetes_io_component"): {*ORDER, "$component", ""},
    ("", "stream"): {stream.name for stream in STREAMS},
    ("", "tier"): set(get_args(Tier)),
    ("fusewire_outcomes_total", "status"): set(get_args(Status)),
    ("fusewire_panels_closed_total", "closed_by"): set(get_args(ClosedBy)),
    ("fusewire_messages_handled_total", "result"): set(metrics.RESULTS),
    ("fusewire_verdicts_total", "result"): {*get_args(ParseStage), "void"},
    ("fusewire_candidates_total", "result"): {*get_args(ErrorCode), "ok"},
    ("fusewire_transaction_seconds_bucket", "kind"): {"read", "write"},
}
"""Values that a label may have, by series and label, or by label alone."""
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}


def exported_labels() -> dict[str, set[str]]:
    """The labels of each series, by its name."""
    labels: dict[str, set[str]] = {"up": set(SCRAPE_LABELS)}
    for family in metrics.REGISTRY.collect():
        for suffix in SUFFIXES[family.type]:
            name = family.name + suffix
            own = metrics.LABELS.get(name) or metrics.LABELS.get(family.name) or ()
            labels[name] = {*own, *SCRAPE_LABELS, *(["le"] if suffix == "_bucket" else [])}
    return labels


EXPORTED = exported_labels()


def expressions() -> dict[str, str]:
    """Each expression, by what it is of."""
    texts = {rule.get("alert") or rule["record"]: rule["expr"] for rule in ENTRIES}
    for panel in GRAPHS:
        for target in panel["targets"]:
            texts[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found
            texts[f"variable {variable['name']}"] = f"sum by ({found[2]}) ({found[1]})"
    return texts


def parse(text: str) -> Expr:
    return promql_parser.parse(text.replace("$__rate_interval", "5m"))


def selectors(expression: Expr) -> list[VectorSelector]:
    """All selectors of series in an expression."""
    seen: list[VectorSelector] = []

    def note(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            seen.append(node)

    promql_parser.walk(expression, note)
    return seen


def labels_of(node: Expr) -> set[str]:
    """The labels that the series of an expression can have."""
    if isinstance(node, VectorSelector):
        assert node.name
        if node.name in RECORDS:
            return labels_of(
                parse(next(r["expr"] for r in ENTRIES if r.get("record") == node.name))
            )
        return EXPORTED[node.name]
    if isinstance(node, AggregateExpr):
        assert node.modifier, "each aggregation says by which labels"
        return set(node.modifier.labels)
    if isinstance(node, BinaryExpr):
        return labels_of(node.lhs) | labels_of(node.rhs)
    if isinstance(node, Call):
        added = {"model"} if node.func.name == "label_replace" else set()
        return added.union(*(labels_of(argument) for argument in node.args))
    inner = getattr(node, "expr", None) or getattr(node, "vector_selector", None)
    return labels_of(inner) if inner is not None else set()


EXPRESSIONS = expressions()


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_names_only_series_and_labels_that_exist(name: str) -> None:
    expression = parse(EXPRESSIONS[name])
    found = selectors(expression)
    assert found
    for selector in found:
        assert selector.name
        assert selector.name in EXPORTED.keys() | RECORDS
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels_of(selector), f"{selector.name} has no {matcher.name}"
            known = VALUES.get((selector.name, matcher.name)) or VALUES.get(("", matcher.name))
            assert known is None or set(matcher.value.split("|")) <= known

    def check(node: Expr) -> None:
        if isinstance(node, AggregateExpr):
            unknown = labels_of(node) - labels_of(node.expr)
            assert not unknown, f"{node.expr} has no label {unknown}"

    promql_parser.walk(expression, check)


# -- alerts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_it_is_and_where_to_read_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    kebab_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
    assert rule["annotations"]["runbook_url"] == f"docs/operate.md#{kebab_case}"
    assert kebab_case in ANCHORS, "write down what to do"
    text = rule["annotations"]["summary"] + rule["annotations"]["description"]
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels_of(parse(rule["expr"]))


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(name: str) -> None:
    """`deploy/check` runs them with promtool."""
    expected = [
        bool(case["exp_alerts"])
        for test in TESTS["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert {True, False} <= set(expected)


# -- dashboard --------------------------------------------------------------------------------


def test_the_dashboard_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("dashboard", FOLDER / "dashboard.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert module.dashboard() == DASHBOARD, "run: python deploy/alerts/dashboard.py"


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in DASHBOARD["panels"]):
        assert place["x"] + place["w"] <= 24
        own = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not own & cells
        cells |= own


def test_every_query_is_of_the_chosen_data_source_and_namespace() -> None:
    for graph in GRAPHS:
        for target in graph["targets"]:
            assert target["datasource"]["uid"] == graph["datasource"]["uid"] == "${datasource}"
            for selector in selectors(parse(target["expr"])):
                assert "namespace" in {matcher.name for matcher in selector.matchers.matchers}
    variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert variables == ["datasource", "namespace", "component"]


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    texts = "\n".join(EXPRESSIONS.values())
    assert not [name for name in metrics.LABELS if name not in texts]
