"""Pods of the chart as `podman kube play` runs them, on the host's network.

What podman 4 cannot is replaced by what comes to the same: a key of a ConfigMap that is mounted,
a claim and a Secret become files and values. Probes are left to who plays the pods.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from checks.manifests import PodTemplate, look_up, name_of
from checks.model import Document

OF_CLUSTERS = (
    *("serviceAccountName", "topologySpreadConstraints", "affinity", "nodeSelector"),
    *("tolerations", "priorityClassName", "imagePullSecrets"),
)
OF_KUBELETS = (
    *("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "imagePullPolicy"),
    "ports",  # the host's network maps none
)


@dataclass(frozen=True)
class Cluster:
    """What stands on this machine for what a cluster has."""

    folder: Path
    secrets: Mapping[str, str]
    """The value of each key of each Secret, by `name/key`."""
    claims: Mapping[str, Path]
    """The folder of each claim."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Other values of variables, such as ports: all pods have one host."""


def play_pod(pod: PodTemplate, documents: list[Document], cluster: Cluster) -> Document:
    """A pod to play."""
    spec = {name: part for name, part in pod.spec.items() if name not in OF_CLUSTERS}
    spec = copy.deepcopy(spec) | {"hostNetwork": True, "restartPolicy": "Never"}
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        for name in OF_KUBELETS:
            container.pop(name, None)
        for mount in container["volumeMounts"]:
            mount.pop("subPath", None)
        container["env"] = _variables(container, cluster)
    spec["volumes"] = [_volume(volume, pod, documents, cluster) for volume in pod.volumes]
    metadata = {"name": name_of(pod.owner), "labels": pod.labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _variables(container: Document, cluster: Cluster) -> list[Document]:
    """The variables, with the values of Secrets written out."""
    values: dict[str, str] = {}
    for source in container.pop("envFrom", []):
        prefix = f"{source['secretRef']['name']}/"
        keys = [key for key in cluster.secrets if key.startswith(prefix)]
        values |= {key.removeprefix(prefix): cluster.secrets[key] for key in keys}
    for variable in container.get("env", []):
        values[variable["name"]] = _value(variable, cluster)
    return [{"name": name, "value": value} for name, value in values.items()]


def _value(variable: Document, cluster: Cluster) -> str:
    if "valueFrom" in variable:
        reference = variable["valueFrom"]["secretKeyRef"]
        return cluster.secrets[f"{reference['name']}/{reference['key']}"]
    return cluster.variables.get(variable["name"], variable["value"])


def _volume(
    volume: Document, pod: PodTemplate, documents: list[Document], cluster: Cluster
) -> Document:
    """A volume; a ConfigMap is a file, as the chart mounts one key of it."""
    if claim := volume.get("persistentVolumeClaim"):
        path = {"path": str(cluster.claims[claim["claimName"]]), "type": "Directory"}
        return {"name": volume["name"], "hostPath": path}
    if reference := volume.get("configMap"):
        config = look_up(documents, "ConfigMap", reference["name"])
        assert config, "the check of references finds it"
        ((key, text),) = config["data"].items()
        file = cluster.folder / f"{name_of(pod.owner)}-{key}"
        file.write_text(text)
        return {"name": volume["name"], "hostPath": {"path": str(file), "type": "File"}}
    return volume
