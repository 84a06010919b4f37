"""Writes dashboard.json for Grafana: `python deploy/alerts/dashboard.py`.

In expressions, NS selects the chosen namespaces, and CO the chosen components too.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("dashboard.json")
SELECTORS = {
    "CO": 'NS,app_kubernetes_io_component=~"$component"',
    "NS": 'namespace=~"$namespace"',
}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, PER_LINE = 8, 8, 3
"""In units of Grafana's grid, which is 24 wide."""


class Panel(NamedTuple):
    """A graph over time: its title, the unit, and expressions with their legends."""

    title: str
    unit: str
    queries: dict[str, str]


def quantile(q: float, labels: str, histogram: str, selector: str) -> str:
    """The expression of a quantile by labels."""
    rate = f"rate({histogram}_bucket{{{selector}}}[$__rate_interval])"
    return f"histogram_quantile({q}, sum by (le, {labels}) ({rate}))"


def rate(labels: str, counter: str, selector: str = "NS") -> str:
    """The expression of a counter's rate per second by labels."""
    return f"sum by ({labels}) (rate({counter}{{{selector}}}[$__rate_interval]))"


def latest(labels: str, gauge: str, selector: str = "NS") -> str:
    """The expression of a gauge of which all replicas report the same."""
    return f"max by ({labels}) ({gauge}{{{selector}}})"


COMPONENT = "app_kubernetes_io_component"
NAME = f"{{{{{COMPONENT}}}}}"
EDGE = 'NS,tier="edge"'
BUDGET = "tenant, pool, period"
BUDGET_NAME = "{{tenant}}{{pool}} {{period}}"
TWICE = "fusewire_calls_maybe_paid_twice_total"

ROWS: dict[str, list[Panel]] = {
    "Overview: rate, errors and duration of each service": [
        Panel("Replicas up", "short", {f"sum by ({COMPONENT}) (up{{CO}})": NAME}),
        Panel(
            "API requests", "reqps", {rate("status", "fusewire_http_requests_total"): "{{status}}"}
        ),
        Panel(
            "API errors (5xx)",
            "percentunit",
            {
                rate("namespace", "fusewire_http_requests_total", 'NS,status=~"5.."')
                + " / "
                + rate("namespace", "fusewire_http_requests_total"): "{{namespace}}"
            },
        ),
        Panel(
            "API duration, 95th percentile, the wait for an outcome included",
            "s",
            {
                quantile(
                    0.95, "method, route", "fusewire_http_request_seconds", "NS"
                ): "{{method}} {{route}}"
            },
        ),
        Panel(
            "Messages handled",
            "ops",
            {rate(COMPONENT, "fusewire_messages_handled_total", "CO"): NAME},
        ),
        Panel(
            "Messages retried and dead-lettered",
            "ops",
            {
                rate(
                    f"{COMPONENT}, stream, result",
                    "fusewire_messages_handled_total",
                    'CO,result!="ok"',
                ): f"{NAME} {{{{stream}}}} {{{{result}}}}"
            },
        ),
        Panel(
            "Handler duration, 95th percentile",
            "s",
            {
                quantile(
                    0.95, f"{COMPONENT}, stream", "fusewire_message_handle_seconds", "CO"
                ): f"{NAME} {{{{stream}}}}"
            },
        ),
        Panel(
            "Processors used", "short", {rate(COMPONENT, "process_cpu_seconds_total", "CO"): NAME}
        ),
        Panel(
            "Memory of the largest replica",
            "bytes",
            {latest(COMPONENT, "process_resident_memory_bytes", "CO"): NAME},
        ),
    ],
    "Pipeline: what waits": [
        Panel(
            "Messages that wait, by consumer",
            "short",
            {latest("stream, durable", "fusewire_consumer_pending"): "{{stream}}/{{durable}}"},
        ),
        Panel(
            "Messages in hand, by consumer",
            "short",
            {latest("stream, durable", "fusewire_consumer_ack_pending"): "{{stream}}/{{durable}}"},
        ),
        Panel(
            "Messages in streams",
            "short",
            {latest("stream", "fusewire_stream_messages"): "{{stream}}"},
        ),
        Panel(
            "Prompts accepted, outcomes stored",
            "ops",
            {
                rate("source", "fusewire_prompts_accepted_total"): "accepted: {{source}}",
                rate("namespace", "fusewire_outcomes_total"): "outcomes: {{namespace}}",
            },
        ),
        Panel(
            "Messages published",
            "ops",
            {rate("stream", "fusewire_messages_published_total"): "{{stream}}"},
        ),
        Panel(
            "Prompts not yet published, batch lines in flight",
            "short",
            {
                latest("namespace", "fusewire_prompts_unpublished"): "unpublished: {{namespace}}",
                latest("namespace", "fusewire_batch_lines_in_flight"): "batch lines: {{namespace}}",
            },
        ),
    ],
    "Fusion: how good the outcomes are": [
        Panel(
            "Outcomes",
            "ops",
            {rate("pool, status", "fusewire_outcomes_total"): "{{pool}} {{status}}"},
        ),
        Panel(
            "Degraded outcomes",
            "percentunit",
            {
                rate("pool", "fusewire_outcomes_total", 'NS,degraded="true"')
                + " / "
                + rate("pool", "fusewire_outcomes_total"): "{{pool}}"
            },
        ),
        Panel(
            "Why outcomes are degraded",
            "ops",
            {rate("pool, reason", "fusewire_degraded_reasons_total"): "{{pool}} {{reason}}"},
        ),
        Panel(
            "What closes panels (deadline: the quorum was missed)",
            "ops",
            {rate("pool, closed_by", "fusewire_panels_closed_total"): "{{pool}} {{closed_by}}"},
        ),
        Panel(
            "Whom learned routes ask (predicted: fewer than all)",
            "ops",
            {rate("pool, reason", "fusewire_routes_total"): "{{pool}} {{reason}}"},
        ),
        Panel(
            "Fusion duration without batches",
            "s",
            {
                quantile(
                    0.5, "pool", "fusewire_outcome_seconds", 'NS,batch="false"'
                ): "{{pool}} 50 %",
                quantile(
                    0.95, "pool", "fusewire_outcome_seconds", 'NS,batch="false"'
                ): "{{pool}} 95 %",
            },
        ),
        Panel(
            "Verdicts of judges: repaired, asked again, void",
            "ops",
            {rate("model, result", "fusewire_verdicts_total"): "{{model}} {{result}}"},
        ),
        Panel(
            "Model calls by result",
            "ops",
            {rate("model, result", "fusewire_candidates_total"): "{{model}} {{result}}"},
        ),
        Panel(
            "Model call duration, 95th percentile",
            "s",
            {quantile(0.95, "tier, model", "fusewire_call_seconds", "NS"): "{{tier}} {{model}}"},
        ),
    ],
    "Money: spend against budget": [
        Panel(
            "Spend per hour",
            "currencyUSD",
            {"sum by (model) (increase(fusewire_call_cost_usd_total{NS}[1h]))": "{{model}}"},
        ),
        Panel(
            "Share of each budget",
            "percentunit",
            {
                latest(BUDGET, "fusewire_budget_spent_usd")
                + " / "
                + latest(BUDGET, "fusewire_budget_limit_usd"): f"{BUDGET_NAME} spent",
                latest(BUDGET, "fusewire_budget_reserved_usd")
                + " / "
                + latest(BUDGET, "fusewire_budget_limit_usd"): f"{BUDGET_NAME} reserved",
            },
        ),
        Panel(
            "Refused by budgets, and soft limits passed, per hour",
            "short",
            {
                "sum by (kind) (increase(fusewire_budget_refusals_total{NS}[1h]))": (
                    "refused by the budget of a {{kind}}"
                ),
                "sum by (kind) (increase(fusewire_budget_soft_limits_passed_total{NS}[1h]))": (
                    "soft limit of a {{kind}} passed"
                ),
            },
        ),
        Panel(
            "Tokens per second of hosted models",
            "short",
            {
                rate(
                    "model, kind", "fusewire_tokens_total", 'NS,tier="remote"'
                ): "{{model}} {{kind}}"
            },
        ),
        Panel(
            "Calls made again",
            "ops",
            {rate("tier, model", "fusewire_call_retries_total"): "{{tier}} {{model}}"},
        ),
        Panel(
            "Breakers: 0 closed, 1 probing, 2 open",
            "short",
            {"max by (model) (fusewire_breaker_state{NS})": "{{model}}"},
        ),
        Panel(
            "Calls not made, as the model fails",
            "ops",
            {rate("model, reason", "fusewire_calls_refused_total"): "{{model}} {{reason}}"},
        ),
        Panel(
            "Calls of hosted models at once, at most",
            "short",
            {"min by (model) (fusewire_concurrency_limit{NS})": "{{model}}"},
        ),
        Panel(
            "Calls that may be paid for twice, per hour",
            "short",
            {f"sum by (namespace) (increase({TWICE}{{NS}}[1h]))": "{{namespace}}"},
        ),
    ],
    "Edge workers": [
        Panel(
            "Tokens per second of ended tasks",
            "short",
            {rate("model, kind", "fusewire_tokens_total", EDGE): "{{model}} {{kind}}"},
        ),
        Panel(
            "Slots",
            "short",
            {
                "sum by (model) (fusewire_edge_slots{NS})": "{{model}} available",
                "sum by (model) (fusewire_edge_tasks_running{NS})": "{{model}} used",
                "sum by (model) (fusewire_edge_decoding{NS})": "{{model}} generating",
            },
        ),
        Panel(
            "Tokens per second in the engines",
            "short",
            {rate("model, kind", "fusewire_edge_tokens_total"): "{{model}} {{kind}}"},
        ),
        Panel(
            "Tokens in the KV cache",
            "short",
            {"sum by (model, kind) (fusewire_edge_kv_tokens{NS})": "{{model}} {{kind}}"},
        ),
        Panel(
            "Tasks that wait in the engines",
            "short",
            {"sum by (model, priority) (fusewire_edge_queue{NS})": "{{model}} {{priority}}"},
        ),
        Panel(
            "Execution providers",
            "short",
            {
                "sum by (model, provider) (fusewire_edge_provider{NS})": "{{model}} {{provider}}",
            },
        ),
        Panel(
            "Tasks that wait",
            "short",
            {
                latest(
                    "durable", "fusewire_consumer_pending", 'NS,stream="FW_TASK_EDGE"'
                ): "{{durable}}"
            },
        ),
        Panel(
            "Tasks by result",
            "ops",
            {rate("model, result", "fusewire_candidates_total", EDGE): "{{model}} {{result}}"},
        ),
        Panel(
            "Task duration",
            "s",
            {
                quantile(0.5, "model", "fusewire_call_seconds", EDGE): "{{model}} 50 %",
                quantile(0.95, "model", "fusewire_call_seconds", EDGE): "{{model}} 95 %",
            },
        ),
    ],
    "Storage and database": [
        Panel(
            "Share of each stream's limit (from 90 % on the API accepts nothing)",
            "percentunit",
            {latest("stream", "fusewire_store_used_ratio"): "{{stream}}"},
        ),
        Panel(
            "Transactions",
            "ops",
            {rate(f"{COMPONENT}, kind", "fusewire_transactions_total"): f"{NAME} {{{{kind}}}}"},
        ),
        Panel(
            "Transaction duration, 99th percentile",
            "s",
            {
                quantile(
                    0.99, f"{COMPONENT}, kind", "fusewire_transaction_seconds", "NS"
                ): f"{NAME} {{{{kind}}}}"
            },
        ),
        Panel(
            "Transactions that failed as the database did not answer",
            "ops",
            {rate(COMPONENT, "fusewire_database_failures_total"): NAME},
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The whole dashboard, in Grafana's classic model."""
    return {
        "uid": "fusewire",
        "title": "Fusewire",
        "tags": ["fusewire"],
        "schemaVersion": 42,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": _variables()},
        "panels": _panels(),
    }


def _variables() -> list[dict[str, Any]]:
    process = "process_start_time_seconds"
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        _label_variable("namespace", f'label_values({process}{{{COMPONENT}!=""}}, namespace)'),
        _label_variable(
            "component", f'label_values({process}{{namespace=~"$namespace"}}, {COMPONENT})'
        ),
    ]


def _label_variable(name: str, query: str) -> dict[str, Any]:
    """A variable with the values of a label; first it has all of them."""
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        # Outside of Kubernetes there are no such labels.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": y, "w": 24, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "panels": []}
        )
        for number, panel in enumerate(row):
            place = {
                "x": number % PER_LINE * WIDTH,
                "y": y + 1 + number // PER_LINE * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            }
            panels.append({"id": len(panels) + 1, "gridPos": place, **_graph(panel)})
        y += 1 + -(-len(row) // PER_LINE) * HEIGHT
    return panels


def _graph(panel: Panel) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": _selected(expression),
                "legendFormat": legend,
            }
            for number, (expression, legend) in enumerate(panel.queries.items())
        ],
    }


def _selected(expression: str) -> str:
    """The expression with its selectors written out."""
    for word, selector in SELECTORS.items():
        expression = expression.replace(f"{{{word}", f"{{{selector}")
    return expression


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=2) + "\n", encoding="utf-8")
