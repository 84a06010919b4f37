"""Who may talk to whom: what the NetworkPolicies of each shape allow."""

from collections.abc import Iterator

from checks.manifests import PodTemplate, of_kind, pods, selects, title
from checks.model import Check, Deploy, Document

EVERYWHERE = {"0.0.0.0/0", "::/0"}
OUTSIDE = {"worker-remote"}
"""The one service that calls hosted models."""
WITH_DATABASE = {"ingest", "judge", "tools", "prepare", "test"}
"""Those that reach PostgreSQL, which may be anywhere, on its port."""
NATS_PORTS = {4222, "nats", "client"}
EDGE_PORTS = {*NATS_PORTS, 53, "dns", "dns-tcp"}
"""NATS and DNS: edge workers reach nothing else."""


def network(deploy: Deploy) -> Iterator[str]:
    """Pods that may reach more, or be reached by more, than they need."""
    for shape in deploy.shapes:
        documents = deploy.documents(shape)
        policies = list(of_kind(documents, "NetworkPolicy"))
        if not policies:
            yield f"{shape}: has no NetworkPolicy"
            continue
        database = deploy.values(shape)["networkPolicy"]["database"]["port"]
        for pod in pods(documents):
            mine = [p for p in policies if selects(p["spec"].get("podSelector"), pod.labels)]
            for problem in _of_pod(pod, mine, database):
                yield f"{shape}: {pod.title}: {problem}"


def _of_pod(pod: PodTemplate, policies: list[Document], database: int) -> Iterator[str]:
    for direction in ("Ingress", "Egress"):
        if not any(direction in _directions(policy) for policy in policies):
            yield f"no NetworkPolicy limits its {direction.lower()}"
    for policy in policies:
        for rule in policy["spec"].get("egress") or []:
            for problem in _of_egress(pod.component, rule, database):
                yield f"{title(policy)}: {problem}"
        for rule in policy["spec"].get("ingress") or []:
            if not rule.get("ports"):
                yield f"{title(policy)}: any port may be reached"
    if pod.component == "worker-edge":
        rules = [rule for policy in policies for rule in policy["spec"].get("egress") or []]
        reached = {port.get("port") for rule in rules for port in rule.get("ports") or []}
        if not reached & NATS_PORTS:
            yield "may not reach NATS"


def _directions(policy: Document) -> list[str]:
    """As Kubernetes reads it: without policyTypes, egress counts only where it has rules."""
    spec = policy["spec"]
    return list(spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])])


def _of_egress(component: str, rule: Document, database: int) -> Iterator[str]:
    ports = {port.get("port") for port in rule.get("ports") or []}
    peers = rule.get("to") or []
    blocks = {peer["ipBlock"]["cidr"] for peer in peers if "ipBlock" in peer}
    is_database = component in WITH_DATABASE and ports == {database}
    if component not in OUTSIDE and not is_database and (not peers or blocks & EVERYWHERE):
        yield f"reaches beyond the cluster on {_listed(ports)}"
    if component == "worker-edge" and (not ports or ports - EDGE_PORTS):
        yield f"reaches more than NATS and DNS: {_listed(ports - EDGE_PORTS)}"


def _listed(ports: set[object]) -> str:
    return "port " + ", ".join(sorted(str(port) for port in ports)) if ports else "any port"


CHECKS = (
    Check("network", "only worker-remote reaches out; worker-edge reaches NATS and DNS alone", network),
)
