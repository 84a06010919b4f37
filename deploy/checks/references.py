"""Names that one object has for another, and for what the operator brings."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from checks.manifests import PodTemplate, of_kind, pods, selects, title
from checks.model import Check, Deploy, Document

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """A Secret or ConfigMap that a pod needs, and the keys that it takes; none means all."""

    kind: str
    name: str
    keys: Keys = ()


def references(deploy: Deploy) -> Iterator[str]:
    """Secrets, ConfigMaps and other objects that nothing declares."""
    # Keys of Secrets stand in the comments of values.yaml, in backquotes.
    explained = re.findall(r"`([^`\s]+)`", (deploy.chart / "values.yaml").read_text())
    for shape in deploy.shapes:
        documents = deploy.documents(shape)
        declared = {*_strings(deploy.values(shape)), *explained}
        for pod in pods(documents):
            for problem in _of_pod(pod, documents, declared):
                yield f"{shape}: {pod.title}: {problem}"
        for problem in _of_selectors(documents):
            yield f"{shape}: {problem}"


def _of_pod(pod: PodTemplate, documents: list[Document], declared: set[str]) -> Iterator[str]:
    for reference in set(_needed(pod)):
        made = _made(reference.kind, reference.name, documents)
        if made is not None:
            have = {*(made.get("data") or {}), *(made.get("binaryData") or {})}
            for key in set(reference.keys) - have:
                yield f"{reference.kind} {reference.name} has no key {key}"
        elif reference.name not in declared:
            yield f"{reference.kind} {reference.name} is neither rendered nor named in the values"
        else:
            for key in reference.keys:
                if key not in declared:
                    yield f"key {key} of {reference.kind} {reference.name} is not named in the values"
    account = pod.spec.get("serviceAccountName", "default")
    if _made("ServiceAccount", account, documents) is None and account not in declared:
        yield f"ServiceAccount {account} is neither rendered nor named in the values"
    for volume in pod.spec.get("volumes") or []:
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim and _made("PersistentVolumeClaim", claim, documents) is None and claim not in declared:
            yield f"PersistentVolumeClaim {claim} is neither rendered nor named in the values"
    yield from _of_mounts(pod)


def _of_mounts(pod: PodTemplate) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.spec.get("volumes") or []}
    mounted = set()
    for container in pod.every_container:
        for mount in container.get("volumeMounts") or []:
            mounted.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"container {container['name']} mounts {mount['name']}, which is no volume"
    for name in sorted(volumes - mounted):
        yield f"volume {name} is mounted nowhere"


def _needed(pod: PodTemplate) -> Iterator[Reference]:
    for container in pod.every_container:
        for variable in container.get("env") or []:
            source = variable.get("valueFrom") or {}
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if field in source:
                    yield Reference(kind, source[field]["name"], (source[field]["key"],))
        for source in container.get("envFrom") or []:
            for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                if field in source:
                    yield Reference(kind, source[field]["name"])
    for volume in pod.spec.get("volumes") or []:
        yield from _of_volume(volume)
        for source in (volume.get("projected") or {}).get("sources") or []:
            yield from _of_volume(source)


def _of_volume(volume: Document) -> Iterator[Reference]:
    for field, kind in (("secret", "Secret"), ("configMap", "ConfigMap")):
        if field in volume:
            source = volume[field]
            keys = tuple(item["key"] for item in source.get("items") or [])
            yield Reference(kind, source.get("secretName") or source.get("name"), keys)


def _made(kind: str, name: str, documents: Iterable[Document]) -> Document | None:
    for document in of_kind(documents, kind):
        if document["metadata"]["name"] == name:
            return document
    return None


def _strings(values: object) -> Iterator[str]:
    """Every key and every string in the values: what an operator can read there."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield str(key)
            yield from _strings(value)
    elif isinstance(values, list):
        for value in values:
            yield from _strings(value)
    elif isinstance(values, str):
        yield values


def _of_selectors(documents: list[Document]) -> Iterator[str]:
    """Services, budgets and scalers that mean no pods, or objects that are not there."""
    templates = list(pods(documents))
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "PodMonitor", "NetworkPolicy"):
        spec = document["spec"]
        selector = spec.get("selector", spec.get("podSelector"))
        labels = {"matchLabels": selector} if document["kind"] == "Service" else selector
        meant = [pod for pod in templates if selects(labels, pod.labels)]
        if not meant:
            yield f"{title(document)} selects no pod"
        ports = [port.get("targetPort") for port in spec.get("ports") or []]
        for port in (port for port in ports if isinstance(port, str)):
            if not any(port in _port_names(pod) for pod in meant):
                yield f"{title(document)} leads to port {port}, which its pods lack"
        if document["kind"] == "PodDisruptionBudget" and len({pod.title for pod in meant}) > 1:
            yield f"{title(document)} covers more than one workload"
    scaled = [title(document) for document in documents]
    for document in of_kind(documents, "ScaledObject", "HorizontalPodAutoscaler"):
        target = document["spec"]["scaleTargetRef"]
        if f"{target.get('kind', 'Deployment')}/{target['name']}" not in scaled:
            yield f"{title(document)} scales {target['name']}, which is not there"


def _port_names(pod: PodTemplate) -> set[str]:
    return {port.get("name") for c in pod.containers for port in c.get("ports") or []}


CHECKS = (
    Check("references", "every Secret, ConfigMap, volume, account and selector leads somewhere", references),
)
