"""Pod Security Standard `restricted`, and what this chart promises beyond it."""

from collections.abc import Iterator
from typing import Any

from checks.manifests import PodTemplate, for_containers, for_pods
from checks.model import Check, Document, Shape, SourceFolder

VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret"),
    "image",  # the admission controller allows it from Kubernetes 1.33
}
SYSCTLS = {
    *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range"),
    *("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports"),
    *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.tcp_fin_timeout"),
    *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_keepalive_intvl"),
    "net.ipv4.tcp_keepalive_probes",
}
SELINUX_TYPES = {
    *(None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
}
PROFILES = {"RuntimeDefault", "Localhost"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
RESOURCES = (("requests", "cpu"), ("requests", "memory"), ("limits", "memory"))
LEAST_GRACE_S = {
    **dict.fromkeys(("ingest", "dispatcher", "judge", "worker-edge", "console"), 20),
    "worker-remote": 130,
}
"""Defaults of limits.drain_s and limits.call_drain_s, and 10 s for what follows."""


def pod_security(pod: PodTemplate, _shape: Shape) -> Iterator[str]:
    """What the standard would refuse of a pod."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(field):
            yield f"{field} is set"
    for volume in pod.volumes:
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is of type {kind}"
    context = pod.spec.get("securityContext") or {}
    sysctls = {sysctl["name"] for sysctl in context.get("sysctls") or []}
    for name in sysctls - SYSCTLS:
        yield f"sysctl {name} is not safe"


def container_security(container: Document, pod: PodTemplate, _shape: Shape) -> Iterator[str]:
    """What the standard would refuse of a container."""
    own = container.get("securityContext") or {}
    yield from _identity({**(pod.spec.get("securityContext") or {}), **own})
    yield from _powers(own)
    yield from _host(container)


def standard(source: SourceFolder) -> Iterator[str]:
    """What the standard would refuse."""
    yield from for_pods(pod_security)(source)
    yield from for_containers(container_security)(source)


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


def promises(container: Document, pod: PodTemplate, _shape: Shape) -> Iterator[str]:
    """What a container lacks that every container of this chart has."""
    context = container.get("securityContext") or {}
    if context.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem is not true"
    yield from _resources(container)
    image = str(container.get("image"))
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" not in image and tag in {"", "latest"}:
        yield f"image {image} names no version"
    if pod.is_server and container in pod.main_containers:
        yield from _probes(container)


def _resources(container: Document) -> Iterator[str]:
    resources = container.get("resources") or {}
    for kind, resource in RESOURCES:
        if resource not in (resources.get(kind) or {}):
            yield f"resources.{kind}.{resource} is missing"


def _probes(container: Document) -> Iterator[str]:
    names = {port.get("name") for port in container.get("ports") or []}
    for probe in PROBES:
        port = ((container.get(probe) or {}).get("httpGet") or {}).get("port")
        if port is None:
            yield f"{probe} is missing"
        elif isinstance(port, str) and port not in names:
            yield f"{probe} asks port {port}, which the container lacks"


def pod_promises(pod: PodTemplate, _shape: Shape) -> Iterator[str]:
    """What a pod lacks that every pod of this chart has."""
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken is not false: no service talks to Kubernetes"
    if not pod.spec.get("serviceAccountName"):
        yield "has no serviceAccountName"
    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
    least = LEAST_GRACE_S.get(pod.component, 0)
    if pod.is_server and grace < least:
        yield f"terminationGracePeriodSeconds {grace} is less than its drain and 10 s: {least}"


CHECKS = (
    Check("pod-security", "pods meet the Pod Security Standard restricted", standard),
    Check("pods", "pods have an account without token, and time to drain", for_pods(pod_promises)),
    Check(
        "containers",
        "containers have probes, resources, a version and a read-only root",
        for_containers(promises),
    ),
)
