"""Scalers against the streams that Fusewire makes, and the order in which a release starts."""

from collections.abc import Iterator
from itertools import chain

from checks.configuration import config_of, read
from checks.manifests import PodTemplate, component_of, name_of, of_kind, pods, title
from checks.model import Check, Document, Shape, for_shapes
from fusewire.topology import topology

OWNERS = {
    "FW_PROMPT": "dispatcher",
    "FW_ROUND": "dispatcher",
    "FW_CANDIDATE": "judge",
    "FW_IN": "ingest",
    "FW_TASK_EDGE": "worker-edge",
    "FW_TASK_REMOTE": "worker-remote",
}
"""The service that takes from each stream, and whose number its lag asks for.

Timers come with candidates."""

Consumer = tuple[str, str]
"""A stream, and a durable of it."""


def scaling(shape: Shape) -> Iterator[str]:
    """Scalers that watch what does not exist, miss what does, or fight another."""
    scalers = list(of_kind(shape.documents, "ScaledObject", "HorizontalPodAutoscaler"))
    targets = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    for target in sorted(set(targets)):
        if targets.count(target) > 1:
            yield f"{target} has more than one scaler: they would fight"
    for scaler, target in zip(scalers, targets, strict=True):
        # A scaler of nothing is found by the check of references.
        workloads = [d for d in of_kind(shape.documents, "Deployment") if name_of(d) == target]
        problems = [_of_scaler(scaler, pod, shape) for pod in pods(workloads)]
        yield from (f"{title(scaler)}: {problem}" for problem in chain.from_iterable(problems))


def _of_scaler(scaler: Document, pod: PodTemplate, shape: Shape) -> Iterator[str]:
    if "replicas" in pod.owner["spec"]:
        yield f"{pod.title} sets replicas, and each upgrade would set them back"
    if scaler["kind"] == "ScaledObject":
        triggers = [t for t in scaler["spec"]["triggers"] if t["type"] == "nats-jetstream"]
        watch = {(t["metadata"]["stream"], t["metadata"]["consumer"]) for t in triggers}
        yield from _of_triggers(watch, pod.component, _owners(config_of(pod, shape.documents)))


def _of_triggers(
    watch: set[Consumer], component: str, owners: dict[Consumer, str]
) -> Iterator[str]:
    """Compare what a scaler watches with what `fusewire topology apply` makes."""
    own = {consumer for consumer, owner in owners.items() if owner == component}
    for consumer in sorted(watch - own):
        yield f"watches {'/'.join(consumer)}, which {component} does not take from"
    for consumer in sorted(own - watch):
        yield f"does not watch {'/'.join(consumer)}, which {component} takes from"


def _owners(config: str) -> dict[Consumer, str]:
    """The consumers that this configuration makes, and the service of each."""
    settings = read(config, {})
    models = {name: model.kind for name, model in settings.models.items()}
    durables = topology(models, settings.pools.keys()).durables
    return {(d.stream, d.name): OWNERS[d.stream] for d in durables if d.stream in OWNERS}


HELM_HOOK = "helm.sh/hook"
HOOKS = (
    (HELM_HOOK, "helm.sh/hook-weight", "pre-install,pre-upgrade"),
    ("argocd.argoproj.io/hook", "argocd.argoproj.io/sync-wave", "PreSync"),
)
"""Annotations that make an object a hook and order it among hooks, and what comes first."""


def order(shape: Shape) -> Iterator[str]:
    """Where migrations and topology would not come first."""
    jobs = [job for job in of_kind(shape.documents, "Job") if component_of(job) == "prepare"]
    scalers = list(of_kind(shape.documents, "ScaledObject"))
    if scalers and not jobs:
        yield "has ScaledObjects, but no Job that makes the streams they watch"
    for job in jobs:
        for problem in _of_job(job, shape.documents):
            yield f"{title(job)}: {problem}"


def _of_job(job: Document, documents: list[Document]) -> Iterator[str]:
    hooks = [names for names in HOOKS if _note(job, names[0])]
    if not hooks:
        yield "nothing says that it runs first: it is a hook neither of helm nor of Argo CD"
        return
    hook, weight, phases = hooks[0]
    if _note(job, hook) != phases:
        yield f"{hook} is {_note(job, hook)}: {phases} is before any service"
    for document in _needs(job, documents):
        if not _comes_before(document, job, hook, weight):
            yield f"needs {title(document)} before: give that a lower {weight}"


def _comes_before(document: Document, job: Document, hook: str, weight: str) -> bool:
    """Whether an object is there before a hook; what is no hook comes after all hooks."""
    is_hook = _note(document, hook) == _note(job, hook)
    return is_hook and int(_note(document, weight)) < int(_note(job, weight))


def _needs(job: Document, documents: list[Document]) -> Iterator[Document]:
    """The objects without which the pods of a Job do not run."""
    (pod,) = pods([job])
    configs = [volume["configMap"]["name"] for volume in pod.volumes if "configMap" in volume]
    for document in documents:
        kind, name = document["kind"], name_of(document)
        is_account = kind == "ServiceAccount" and name == pod.spec.get("serviceAccountName")
        is_config = kind == "ConfigMap" and name in configs
        is_policy = kind == "NetworkPolicy" and component_of(document) == pod.component
        if is_account or is_config or is_policy:
            yield document


def _note(document: Document, name: str) -> str:
    return str((document["metadata"].get("annotations") or {}).get(name, ""))


CHECKS = (
    Check(
        "scaling",
        "scalers watch the consumers that Fusewire makes, all of them",
        for_shapes(scaling),
    ),
    Check("order", "migrations and topology come before services and scalers", for_shapes(order)),
)
