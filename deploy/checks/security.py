"""Pod Security Standard `restricted`, and what this chart promises beyond it."""

from collections.abc import Iterator
from typing import Any

from checks.manifests import PodTemplate, pods
from checks.model import Check, Deploy, Document

VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret"),
    "image",  # allowed by the admission controller from Kubernetes 1.33
}
SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
    "net.ipv4.tcp_keepalive_probes",
}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = {"RuntimeDefault", "Localhost"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def pod_security(deploy: Deploy) -> Iterator[str]:
    """What the standard would refuse."""
    for shape in deploy.shapes:
        for pod in pods(deploy.documents(shape)):
            for problem in (*_of_pod(pod.spec), *_of_containers(pod)):
                yield f"{shape}: {pod.title}: {problem}"


def _of_pod(spec: Document) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{field} is set"
    for volume in spec.get("volumes") or []:
        for kind in set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is of type {kind}"
    for sysctl in (spec.get("securityContext") or {}).get("sysctls") or []:
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']} is not a safe one"


def _of_containers(pod: PodTemplate) -> Iterator[str]:
    of_pod = pod.spec.get("securityContext") or {}
    for container in pod.every_container:
        context = container.get("securityContext") or {}
        for problem in (*_identity({**of_pod, **context}), *_powers(context), *_host(container)):
            yield f"container {container['name']}: {problem}"


def _identity(context: dict[str, Any]) -> Iterator[str]:
    if context.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if context.get("runAsUser") == 0:
        yield "runs as user 0"
    if (context.get("seccompProfile") or {}).get("type") not in PROFILES:
        yield "seccompProfile.type is neither RuntimeDefault nor Localhost"
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") not in PROFILES:
        yield "appArmorProfile is switched off"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type") not in SELINUX_TYPES or selinux.get("user") or selinux.get("role"):
        yield "seLinuxOptions name a type, user or role that is refused"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield "windowsOptions.hostProcess is set"


def _powers(context: dict[str, Any]) -> Iterator[str]:
    if context.get("privileged"):
        yield "is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if context.get("procMount", "Default") != "Default":
        yield "procMount is not Default"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield "capabilities.drop lacks ALL"
    if extra := set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"capabilities.add has {', '.join(sorted(extra))}"


def _host(container: Document) -> Iterator[str]:
    for port in container.get("ports") or []:
        if port.get("hostPort"):
            yield f"hostPort {port['hostPort']} is taken"
    for probe in PROBES:
        if ((container.get(probe) or {}).get("httpGet") or {}).get("host"):
            yield f"{probe} names a host"


def containers(deploy: Deploy) -> Iterator[str]:
    """Containers without what every container of this chart has."""
    for shape in deploy.shapes:
        for pod in pods(deploy.documents(shape)):
            for problem in (*_promises(pod), *_probes(pod)):
                yield f"{shape}: {pod.title}: {problem}"


def _promises(pod: PodTemplate) -> Iterator[str]:
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false: no service talks to Kubernetes"
    if not pod.spec.get("serviceAccountName"):
        yield "has no serviceAccountName"
    for container in pod.every_container:
        name = container["name"]
        if (container.get("securityContext") or {}).get("readOnlyRootFilesystem") is not True:
            yield f"container {name}: readOnlyRootFilesystem is not true"
        resources = container.get("resources") or {}
        for kind, resource in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
            if resource not in (resources.get(kind) or {}):
                yield f"container {name}: resources.{kind}.{resource} is missing"
        image = str(container.get("image"))
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in {"", "latest"}:
            yield f"container {name}: image {image} names no version"


def _probes(pod: PodTemplate) -> Iterator[str]:
    if not pod.serves or pod.component == "tools":
        return  # the tools wait for `kubectl exec` and serve nothing
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    if grace < (least := LEAST_GRACE_S.get(pod.component, 0)):
        yield f"terminationGracePeriodSeconds {grace} is less than its drain and 10 s: {least}"
    for container in pod.containers:
        names = {port.get("name") for port in container.get("ports") or []}
        for probe in PROBES:
            target = (container.get(probe) or {}).get("httpGet") or {}
            if not target:
                yield f"container {container['name']}: {probe} is missing"
            elif isinstance(target["port"], str) and target["port"] not in names:
                yield f"container {container['name']}: {probe} asks port {target['port']}, which it lacks"


LEAST_GRACE_S = {
    **dict.fromkeys(("ingest", "dispatcher", "judge", "worker-edge"), 20),
    "worker-remote": 130,
}
"""Defaults of limits.drain_s and limits.call_drain_s, and 10 s for what follows."""

CHECKS = (
    Check("pod-security", "every pod meets the Pod Security Standard restricted", pod_security),
    Check("containers", "every container has probes, resources, a version and no token", containers),
)
