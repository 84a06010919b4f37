"""The deployment against Fusewire itself: its settings, its streams, the order of its start."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from checks.manifests import COMPONENT, PodTemplate, of_kind, pods, title
from checks.model import Check, Deploy, Document, once
from fusewire import topology
from fusewire.settings import ConfigError, Settings, load

OTHER_VARIABLES = {
    *("FUSEWIRE_CONFIG", "FUSEWIRE_KEY_PEPPER", "FUSEWIRE_MIGRATIONS"),
    *("FUSEWIRE_API_KEY", "FUSEWIRE_URL"),
}
"""Variables that are read beside the settings."""
IN_PLACE = {
    "FUSEWIRE_DATABASE__URL": "postgresql+asyncpg://fusewire@database/fusewire",
}
"""What stands here for the values of Secrets."""
CONFIG = "fusewire.json"


class RefusedError(Exception):
    """Fusewire refuses a configuration; the message is its own."""


def settings(deploy: Deploy) -> Iterator[str]:
    """Variables and configuration that Fusewire would not take."""
    for shape in deploy.shapes:
        documents = deploy.documents(shape)
        for pod in pods(documents):
            for container in pod.every_container:
                variables = _variables(container)
                if not variables:
                    continue
                where = f"{shape}: {pod.title}: container {container['name']}"
                for name in unknown_variables(variables):
                    yield f"{where}: {name} is no setting"
                try:
                    loaded(_config_text(documents, pod), variables)
                except RefusedError as exc:
                    yield f"{where}: {exc}"


def _variables(container: Document) -> dict[str, str]:
    """The FUSEWIRE_ variables of a container, as the process sees them."""
    found = {}
    for variable in container.get("env") or []:
        name = variable["name"]
        if name.startswith("FUSEWIRE_"):
            found[name] = str(variable.get("value", IN_PLACE.get(name, "in-place")))
    return found


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Variables whose table or key the settings do not have; the settings skip unknown tables."""
    tables = {name.upper() for name in Settings.model_fields}
    return [
        name
        for name in names
        if name not in OTHER_VARIABLES
        and name.removeprefix("FUSEWIRE_").partition("__")[0] not in tables
    ]


def _config_text(documents: list[Document], pod: PodTemplate) -> str:
    """The configuration that is mounted into a pod."""
    names = {
        (volume.get("configMap") or {}).get("name") for volume in pod.spec.get("volumes") or []
    }
    for config in of_kind(documents, "ConfigMap"):
        if config["metadata"]["name"] in names and CONFIG in config.get("data", {}):
            return str(config["data"][CONFIG])
    return "{}"


def loaded(text: str, variables: Mapping[str, str]) -> Settings:
    """The settings of a process with this file and these variables.

    Raises:
        RefusedError: Fusewire refuses them.
    """
    key = ("settings", text, tuple(sorted(variables.items())))
    return once(key, lambda: _read(text, variables))


def _read(text: str, variables: Mapping[str, str]) -> Settings:
    outside = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG
        file.write_text(text)
        for name in [name for name in os.environ if name.startswith("FUSEWIRE_")]:
            del os.environ[name]
        os.environ.update({k: v for k, v in variables.items() if k != "FUSEWIRE_CONFIG"})
        try:
            return load(file)
        except ConfigError as exc:
            raise RefusedError(" ".join(str(exc).replace(folder, "").split())) from None
        finally:
            os.environ.clear()
            os.environ.update(outside)


def scaling(deploy: Deploy) -> Iterator[str]:
    """Scalers that watch what does not exist, miss what does, or fight another."""
    for shape in deploy.shapes:
        documents = deploy.documents(shape)
        scaled = list(of_kind(documents, "ScaledObject"))
        targets = [d["spec"]["scaleTargetRef"]["name"] for d in scaled]
        targets += [
            d["spec"]["scaleTargetRef"]["name"] for d in of_kind(documents, "HorizontalPodAutoscaler")
        ]
        for name in sorted({name for name in targets if targets.count(name) > 1}):
            yield f"{shape}: {name} has more than one scaler: they would fight"
        for workload in of_kind(documents, "Deployment"):
            if workload["metadata"]["name"] in targets and "replicas" in workload["spec"]:
                yield f"{shape}: {title(workload)} sets replicas, which each upgrade would set back"
        if scaled:
            yield from (f"{shape}: {problem}" for problem in _triggers(documents, scaled))


def _triggers(documents: list[Document], scaled: list[Document]) -> Iterator[str]:
    """Compare what the triggers watch with what `fusewire topology apply` makes."""
    watched: dict[str, set[tuple[str, str]]] = {}
    owners = {title(pod.owner): pod for pod in pods(documents)}
    for document in scaled:
        pod = owners.get(f"Deployment/{document['spec']['scaleTargetRef']['name']}")
        if not pod:
            continue
        made = _durables(_config_text(documents, pod))
        for trigger in document["spec"].get("triggers") or []:
            if trigger["type"] != "nats-jetstream":
                continue
            metadata = trigger["metadata"]
            pair = (metadata.get("stream", ""), metadata.get("consumer", ""))
            watched.setdefault(pod.component, set()).add(pair)
            if pair not in made:
                yield f"{title(document)} watches {'/'.join(pair)}, which Fusewire does not make"
            elif made[pair] != pod.component:
                yield f"{title(document)} watches {'/'.join(pair)}, which {made[pair]} takes from"
    for component, pairs in watched.items():
        text = _config_text(documents, next(p for p in owners.values() if p.component == component))
        wanted = {pair for pair, owner in _durables(text).items() if owner == component}
        for pair in sorted(wanted - pairs):
            yield f"{component} takes from {'/'.join(pair)}, which no scaler watches"


OWNERS = {
    "FW_PROMPT": "dispatcher",
    "FW_ROUND": "dispatcher",
    "FW_CANDIDATE": "judge",
    "FW_IN": "ingest",
    "FW_TASK_EDGE": "worker-edge",
    "FW_TASK_REMOTE": "worker-remote",
}
"""The service that takes from each stream's durables, where its lag is a reason for more of it.
Timers (FW_TIMER) come with candidates."""


def _durables(config: str) -> dict[tuple[str, str], str]:
    """Stream and name of each durable that this configuration makes, and the service it is for."""
    known = loaded(config, {})
    models = {name: model.kind for name, model in known.models.items()}
    made = topology.topology(models, known.pools.keys())
    return {(d.stream, d.name): OWNERS[d.stream] for d in made.durables if d.stream in OWNERS}


HOOK = "helm.sh/hook"
HOOKS = (
    (HOOK, "helm.sh/hook-weight", {"pre-install", "pre-upgrade"}),
    ("argocd.argoproj.io/hook", "argocd.argoproj.io/sync-wave", {"PreSync"}),
)
"""Annotations that make an object a hook and order it among hooks, and what comes first."""


def order(deploy: Deploy) -> Iterator[str]:
    """Where migrations and topology would not come first."""
    for shape in deploy.shapes:
        documents = deploy.documents(shape)
        jobs = [d for d in of_kind(documents, "Job") if "test" not in _note(d, HOOK)]
        if any(of_kind(documents, "ScaledObject")) and not jobs:
            yield f"{shape}: has ScaledObjects, but no Job that makes the streams they watch"
        for job in jobs:
            for problem in _of_job(job, documents):
                yield f"{shape}: {title(job)}: {problem}"




def _of_job(job: Document, documents: list[Document]) -> Iterator[str]:
    for hook, weight, first in HOOKS:
        if not (hooks := _note(job, hook)):
            continue
        if not first <= set(hooks.split(",")):
            yield f"{hook} is {hooks}: {','.join(sorted(first))} is before any service"
        # What a hook needs must be there before it: other objects come after all hooks.
        for needed in _needed_by(job, documents):
            if not first <= set(_note(needed, hook).split(",")):
                yield f"needs {title(needed)}, which comes only after it"
            elif int(_note(needed, weight) or 0) >= int(_note(job, weight) or 0):
                yield f"needs {title(needed)}, whose {weight} is not lower"
        return
    yield "nothing says that it runs first: it is a hook neither of helm nor of Argo CD"


def _needed_by(job: Document, documents: list[Document]) -> Iterator[Document]:
    (pod,) = pods([job])
    names = {("ServiceAccount", pod.spec.get("serviceAccountName"))}
    for volume in pod.spec.get("volumes") or []:
        if "configMap" in volume:
            names.add(("ConfigMap", volume["configMap"]["name"]))
    for document in documents:
        if (document["kind"], document["metadata"]["name"]) in names:
            yield document
    component = job["metadata"].get("labels", {}).get(COMPONENT)
    for policy in of_kind(documents, "NetworkPolicy"):
        labels = (policy["spec"].get("podSelector") or {}).get("matchLabels") or {}
        if component and labels.get(COMPONENT) == component:
            yield policy


def _note(document: Document, name: str) -> str:
    return str((document["metadata"].get("annotations") or {}).get(name, ""))


CHECKS = (
    Check("settings", "Fusewire takes every variable and the configuration of every shape", settings),
    Check("scaling", "scalers watch the durables that Fusewire makes, all of them, one each", scaling),
    Check("order", "migrations and topology come before any service and scaler", order),
)
