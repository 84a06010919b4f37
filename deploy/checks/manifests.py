"""Kubernetes objects: their names, their pods, and which pods a selector means."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from checks.model import Document, Find, Shape, for_shapes

COMPONENT = "app.kubernetes.io/component"
SERVERS = ("Deployment", "StatefulSet", "DaemonSet")
"""Kinds whose pods run until they are told to stop."""
WORKLOADS = (*SERVERS, "Job", "CronJob", "Pod")


def title(document: Document) -> str:
    """`Deployment/fusewire-judge`"""
    return f"{document.get('kind')}/{name_of(document)}"


def name_of(document: Document) -> str:
    """The name of an object."""
    return str(document.get("metadata", {}).get("name"))


def component_of(document: Document) -> str:
    """The service that an object is for; empty if it is for several."""
    return str((document["metadata"].get("labels") or {}).get(COMPONENT, ""))


def of_kind(documents: Iterable[Document], *kinds: str) -> Iterator[Document]:
    """The objects of some kinds."""
    return (document for document in documents if document.get("kind") in kinds)


def look_up(documents: Iterable[Document], kind: str, name: str) -> Document | None:
    """The object of a kind with a name."""
    objects = (document for document in of_kind(documents, kind) if name_of(document) == name)
    return next(objects, None)


@dataclass(frozen=True)
class PodTemplate:
    """The pods of one object."""

    owner: Document
    labels: dict[str, str]
    spec: Document

    @property
    def title(self) -> str:
        """The object's name."""
        return title(self.owner)

    @property
    def component(self) -> str:
        """The service that runs in it."""
        return self.labels.get(COMPONENT, "")

    @property
    def is_server(self) -> bool:
        """Whether it runs until it is told to stop, and answers."""
        return self.owner["kind"] in SERVERS and self.component != "tools"

    @property
    def volumes(self) -> list[Document]:
        """Its volumes."""
        return list(self.spec.get("volumes") or [])

    @property
    def main_containers(self) -> list[Document]:
        """The containers that run together."""
        return list(self.spec.get("containers") or [])

    @property
    def containers(self) -> list[Document]:
        """Those that run first, and those that run together."""
        return [*(self.spec.get("initContainers") or []), *self.main_containers]

    @property
    def ports(self) -> set[str]:
        """The names of its ports."""
        ports: list[Document] = []
        for container in self.main_containers:
            ports += container.get("ports") or []
        return {port.get("name", "") for port in ports}


def pods(documents: Iterable[Document]) -> Iterator[PodTemplate]:
    """The pods of all objects that have some."""
    for document in of_kind(documents, *WORKLOADS):
        template = _template(document)
        labels = (template.get("metadata") or {}).get("labels") or {}
        yield PodTemplate(document, labels, template["spec"])


def _template(document: Document) -> Document:
    if document["kind"] == "Pod":
        return document
    spec = document["spec"]
    if document["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: Document = spec["template"]
    return template


def for_pods(find: Callable[[PodTemplate, Shape], Iterable[str]]) -> Find:
    """A check of each pod of each shape, from one of a single pod."""

    def find_all(shape: Shape) -> Iterator[str]:
        for pod in pods(shape.documents):
            for problem in find(pod, shape):
                yield f"{pod.title}: {problem}"

    return for_shapes(find_all)


def for_containers(find: Callable[[Document, PodTemplate, Shape], Iterable[str]]) -> Find:
    """A check of each container of each pod, from one of a single container."""

    def find_all(pod: PodTemplate, shape: Shape) -> Iterator[str]:
        for container in pod.containers:
            for problem in find(container, pod, shape):
                yield f"container {container['name']}: {problem}"

    return for_pods(find_all)


def selects(selector: Document | None, labels: dict[str, str]) -> bool:
    """Whether a label selector means pods with these labels."""
    selector = selector or {}
    pairs = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in pairs.items()):
        return False
    return all(_holds(rule, labels) for rule in selector.get("matchExpressions") or [])


def _holds(rule: Document, labels: dict[str, str]) -> bool:
    value = labels.get(rule["key"])
    values: list[Any] = rule.get("values") or []
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[rule["operator"]]
