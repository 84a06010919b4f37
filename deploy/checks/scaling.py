"""Scalers against the streams that Fusewire makes, and the order in which a release starts."""

from collections.abc import Iterator

from checks.configuration import config_of, read
from checks.manifests import PodTemplate, component_of, look_up, name_of, of_kind, pods, title
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
"""The service that takes from each stream, and whose number its lag asks for. Timers (FW_TIMER) come
with candidates."""

Consumer = tuple[str, str]
"""A stream, and a durable of it."""


def scaling(shape: Shape) -> Iterator[str]:
    """Scalers that watch what does not exist, miss what does, or fight another."""
    scalers = list(of_kind(shape.documents, "ScaledObject", "HorizontalPodAutoscaler"))
    targets = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    for name in sorted(set(targets)):
        if targets.count(name) > 1:
            yield f"{name} has more than one scaler: they would fight"
        workload = look_up(shape.documents, "Deployment", name)
        if workload and "replicas" in workload["spec"]:
            yield f"{title(workload)} sets replicas, and each upgrade would set them back"
    for scaler in of_kind(shape.documents, "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]["name"]
        for pod in pods(shape.documents):
            if pod.title == f"Deployment/{target}":
                yield from _of_triggers(scaler, pod, shape)


def _of_triggers(scaler: Document, pod: PodTemplate, shape: Shape) -> Iterator[str]:
    """Compare what a scaler watches with what `fusewire topology apply` makes."""
    triggers = [t for t in scaler["spec"]["triggers"] if t["type"] == "nats-jetstream"]
    watch = {(t["metadata"].get("stream"), t["metadata"].get("consumer")) for t in triggers}
    owners = _owners(config_of(pod, shape.documents))
    for stream, consumer in sorted(watch):
        owner = owners.get((stream, consumer), "nobody")
        if owner != pod.component:
            yield f"{title(scaler)} watches {stream}/{consumer}, which {owner} takes from"
    for (stream, consumer), owner in sorted(owners.items()):
        if owner == pod.component and (stream, consumer) not in watch:
            yield f"{title(scaler)} does not watch {stream}/{consumer}, which {owner} takes from"


def _owners(config: str) -> dict[Consumer, str]:
    """The consumers that this configuration makes, and the service of each."""
    settings = read(config, {})
    models = {name: model.kind for name, model in settings.models.items()}
    durables = topology(models, settings.pools.keys()).durables
    return {(d.stream, d.name): OWNERS[d.stream] for d in durables if d.stream in OWNERS}


HELM_HOOK = "helm.sh/hook"
HOOKS = (
    (HELM_HOOK, "helm.sh/hook-weight", {"pre-install", "pre-upgrade"}),
    ("argocd.argoproj.io/hook", "argocd.argoproj.io/sync-wave", {"PreSync"}),
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
    hooks = [hook for hook in HOOKS if _note(job, hook[0])]
    if not hooks:
        yield "nothing says that it runs first: it is a hook neither of helm nor of Argo CD"
    for hook, weight, phases in hooks:
        if not phases <= set(_note(job, hook).split(",")):
            yield f"{hook} is {_note(job, hook)}: {','.join(sorted(phases))} is before any service"
        # What a hook needs must be there before it: other objects come after all hooks.
        for document in _needs(job, documents):
            if _note(document, hook) != _note(job, hook):
                yield f"needs {title(document)}, which comes only after it"
            elif int(_note(document, weight) or 0) >= int(_note(job, weight) or 0):
                yield f"needs {title(document)}, whose {weight} is not lower"


def _needs(job: Document, documents: list[Document]) -> Iterator[Document]:
    """The objects without which the pods of a Job do not run."""
    (pod,) = pods([job])
    configs = [volume["configMap"]["name"] for volume in pod.volumes if "configMap" in volume]
    for document in documents:
        is_account = (document["kind"], name_of(document)) == (
            "ServiceAccount",
            pod.spec.get("serviceAccountName"),
        )
        is_config = document["kind"] == "ConfigMap" and name_of(document) in configs
        is_policy = document["kind"] == "NetworkPolicy" and component_of(document) == pod.component
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
