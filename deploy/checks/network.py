"""Who may talk to whom: what the NetworkPolicies of each shape allow."""

from collections.abc import Iterator

from checks.manifests import PodTemplate, for_pods, of_kind, selects, title
from checks.model import Check, Document, Shape

EVERYWHERE = {"0.0.0.0/0", "::/0"}
OUTSIDE = {"worker-remote"}
"""The one service that calls hosted models."""
WITH_DATABASE = {"ingest", "judge", "console", "tools", "prepare", "test"}
"""Those that reach PostgreSQL, which may be anywhere, on its port."""
NATS_PORTS = {4222, "nats", "client"}
EDGE_PORTS = {*NATS_PORTS, 53, "dns", "dns-tcp"}
"""NATS and DNS: edge workers reach nothing else."""


def network(pod: PodTemplate, shape: Shape) -> Iterator[str]:
    """Where a pod may reach more, or be reached by more, than it needs."""
    policies = [
        policy
        for policy in of_kind(shape.documents, "NetworkPolicy")
        if selects(policy["spec"].get("podSelector"), pod.labels)
    ]
    directions: set[str] = set()
    database = shape.values["networkPolicy"]["database"]["port"]
    for policy in policies:
        directions |= _directions(policy)
        for problem in _of_policy(policy, pod.component, database):
            yield f"{title(policy)}: {problem}"
    for direction in sorted({"Ingress", "Egress"} - directions):
        yield f"no NetworkPolicy limits its {direction.lower()}"


def _directions(policy: Document) -> set[str]:
    """As Kubernetes reads it: without policyTypes, egress counts only where it has rules."""
    spec = policy["spec"]
    return set(spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])])


def _of_policy(policy: Document, component: str, database: int) -> Iterator[str]:
    for rule in policy["spec"].get("egress") or []:
        yield from _of_egress(rule, component, database)
    for rule in policy["spec"].get("ingress") or []:
        if not rule.get("ports"):
            yield "any port may be reached"


def _of_egress(rule: Document, component: str, database: int) -> Iterator[str]:
    ports = {port.get("port") for port in rule.get("ports") or []}
    is_database = component in WITH_DATABASE and ports == {database}
    if _is_open(rule) and component not in OUTSIDE and not is_database:
        yield f"reaches beyond the cluster on {_list(ports)}"
    if component == "console" and ports & NATS_PORTS:
        yield "reaches NATS"
    if component == "worker-edge" and (not ports or ports - EDGE_PORTS):
        yield f"reaches more than NATS and DNS: {_list(ports - EDGE_PORTS)}"


def _is_open(rule: Document) -> bool:
    """Whether a rule leads anywhere."""
    peers = rule.get("to") or []
    blocks = {peer["ipBlock"]["cidr"] for peer in peers if "ipBlock" in peer}
    return not peers or bool(blocks & EVERYWHERE)


def _list(ports: set[object]) -> str:
    return "port " + ", ".join(sorted(str(port) for port in ports)) if ports else "any port"


CHECKS = (
    Check(
        "network",
        "only worker-remote reaches out; worker-edge NATS and DNS alone, the console no NATS",
        for_pods(network),
    ),
)
