"""Names that one object has for another, and for what the operator brings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from checks.manifests import PodTemplate, look_up, of_kind, pods, selects, title
from checks.model import Check, Document, Shape, SourceFolder

IN_ENVIRONMENT = (
    *(("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")),
    *(("secretRef", "Secret"), ("configMapRef", "ConfigMap")),
)
IN_VOLUME = (("secret", "Secret"), ("configMap", "ConfigMap"))


@dataclass(frozen=True)
class Reference:
    """An object that a pod needs, and the keys of it; none means all."""

    kind: str
    name: str
    keys: tuple[str, ...] = ()


def references(source: SourceFolder) -> Iterator[str]:
    """Secrets, ConfigMaps and other objects that nothing declares."""
    # Keys of Secrets stand in the comments of values.yaml, in backquotes.
    comments = re.findall(r"`([^`\s]+)`", (source.chart / "values.yaml").read_text())
    for shape in source.shapes():
        words = {*_strings(shape.values), *comments}
        for pod in pods(shape.documents):
            for problem in (*_of_references(pod, shape, words), *_of_mounts(pod)):
                yield f"{shape.name}: {pod.title}: {problem}"
        for problem in (*_of_selectors(shape), *_of_scalers(shape)):
            yield f"{shape.name}: {problem}"


def _of_references(pod: PodTemplate, shape: Shape, words: set[str]) -> Iterator[str]:
    for reference in set(_references(pod)):
        what = f"{reference.kind} {reference.name}"
        document = look_up(shape.documents, reference.kind, reference.name)
        if document is not None:
            if lacking := set(reference.keys) - (document.get("data") or {}).keys():
                yield f"{what} has no {', '.join(sorted(lacking))}"
        elif lacking := {reference.name, *reference.keys} - words:
            yield f"{what}: neither rendered nor in the values: {', '.join(sorted(lacking))}"


def _references(pod: PodTemplate) -> Iterator[Reference]:
    yield Reference("ServiceAccount", pod.spec.get("serviceAccountName", "default"))
    for container in pod.containers:
        yield from _of_environment(container)
    for volume in pod.volumes:
        sources = (volume.get("projected") or {}).get("sources") or []
        for place in (volume, *sources):
            yield from _of_volume(place)


def _of_environment(container: Document) -> Iterator[Reference]:
    places = [variable.get("valueFrom") or {} for variable in container.get("env") or []]
    places += container.get("envFrom") or []
    for place in places:
        for field, kind in IN_ENVIRONMENT:
            if entry := place.get(field):
                yield Reference(kind, entry["name"], (entry["key"],) if "key" in entry else ())


def _of_volume(volume: Document) -> Iterator[Reference]:
    for field, kind in IN_VOLUME:
        if entry := volume.get(field):
            keys = tuple(item["key"] for item in entry.get("items") or [])
            yield Reference(kind, entry.get("secretName") or entry.get("name"), keys)
    if claim := volume.get("persistentVolumeClaim"):
        yield Reference("PersistentVolumeClaim", claim["claimName"])


def _of_mounts(pod: PodTemplate) -> Iterator[str]:
    volumes = {volume["name"] for volume in pod.volumes}
    mounts: list[str] = []
    for container in pod.containers:
        mounts += [mount["name"] for mount in container.get("volumeMounts") or []]
    for name in sorted(set(mounts) - volumes):
        yield f"{name} is mounted and is no volume"
    for name in sorted(volumes - set(mounts)):
        yield f"volume {name} is mounted nowhere"


def _strings(values: object) -> Iterator[str]:
    """Every key and every string in the values: what an operator can read there."""
    if isinstance(values, dict):
        yield from values
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _strings(value)
    elif isinstance(values, str):
        yield values


def _of_selectors(shape: Shape) -> Iterator[str]:
    """Services, budgets and policies that mean no pods."""
    templates = list(pods(shape.documents))
    for document in of_kind(shape.documents, "Service", "PodDisruptionBudget", "PodMonitor"):
        spec = document["spec"]
        is_service = document["kind"] == "Service"
        selector = {"matchLabels": spec["selector"]} if is_service else spec["selector"]
        targets = [pod for pod in templates if selects(selector, pod.labels)]
        if not targets:
            yield f"{title(document)} selects no pod"
        if is_service:
            yield from _of_ports(document, targets)


def _of_ports(service: Document, templates: list[PodTemplate]) -> Iterator[str]:
    names: set[str] = set()
    for pod in templates:
        names |= pod.ports
    for port in service["spec"].get("ports") or []:
        target = port.get("targetPort")
        if isinstance(target, str) and target not in names:
            yield f"{title(service)} leads to port {target}, which its pods lack"


def _of_scalers(shape: Shape) -> Iterator[str]:
    for document in of_kind(shape.documents, "ScaledObject", "HorizontalPodAutoscaler"):
        target = document["spec"]["scaleTargetRef"]
        if look_up(shape.documents, target.get("kind", "Deployment"), target["name"]) is None:
            yield f"{title(document)} scales {target['name']}, which is not there"


CHECKS = (
    Check(
        "references", "Secrets, keys, volumes, accounts and selectors lead somewhere", references
    ),
)
