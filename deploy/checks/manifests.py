"""Kubernetes objects: their names, their pods, and which pods a selector means."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from checks.model import Document

COMPONENT = "app.kubernetes.io/component"
SERVERS = ("Deployment", "StatefulSet", "DaemonSet")
"""Kinds whose pods run until they are told to stop."""
WORKLOADS = (*SERVERS, "Job", "CronJob", "Pod")


def title(document: Document) -> str:
    """`Deployment/fusewire-judge`"""
    return f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"


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
    def serves(self) -> bool:
        """Whether it runs until it is told to stop."""
        return self.owner["kind"] in SERVERS

    @property
    def containers(self) -> list[Document]:
        """The containers that run together."""
        return list(self.spec.get("containers") or [])

    @property
    def every_container(self) -> list[Document]:
        """Those that run first, and those that run together."""
        return [*(self.spec.get("initContainers") or []), *self.containers]


def pods(documents: Iterable[Document]) -> Iterator[PodTemplate]:
    """The pods of all objects that have some."""
    for document in documents:
        kind = document.get("kind")
        if kind not in WORKLOADS:
            continue
        if kind == "Pod":
            yield PodTemplate(document, document["metadata"].get("labels") or {}, document["spec"])
            continue
        spec = document["spec"]["jobTemplate"]["spec"] if kind == "CronJob" else document["spec"]
        template = spec["template"]
        labels = (template.get("metadata") or {}).get("labels") or {}
        yield PodTemplate(document, labels, template["spec"])


def of_kind(documents: Iterable[Document], *kinds: str) -> Iterator[Document]:
    """The objects of some kinds."""
    return (document for document in documents if document.get("kind") in kinds)


def selects(selector: Document | None, labels: dict[str, str]) -> bool:
    """Whether a label selector means pods with these labels."""
    selector = selector or {}
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
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
