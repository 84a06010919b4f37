"""Faults of each kind, planted one by one into a copy of `deploy/`.

The check that is for it, and no other, must find each.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from checks.model import merge, parse

CHART = "helm/fusewire"
TEMPLATES = f"{CHART}/templates"
OBJECT = "{apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {password: x}}"
CONFIG_OBJECT = "{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: 1}}"


class Change(Protocol):
    """A change of the files of `deploy/`."""

    def apply(self, folder: Path) -> None:
        """Make it."""


@dataclass(frozen=True)
class TextChange:
    """Other text in a file, once."""

    name: str
    old: str
    new: str

    def apply(self, folder: Path) -> None:
        """Make it."""
        file = folder / self.name
        text = file.read_text()
        if self.old not in text:
            raise LookupError(f"{self.name} no longer holds {self.old!r}: mend checks/faults.py")
        file.write_text(text.replace(self.old, self.new, 1))


@dataclass(frozen=True)
class FileChange:
    """Another file in place of one, or of a link."""

    name: str
    text: str

    def apply(self, folder: Path) -> None:
        """Make it."""
        file = folder / self.name
        file.unlink()
        file.write_text(self.text)


@dataclass(frozen=True)
class TextAddition:
    """More text at the end of a file."""

    name: str
    text: str

    def apply(self, folder: Path) -> None:
        """Make it."""
        with (folder / self.name).open("a") as file:
            file.write(self.text)


@dataclass(frozen=True)
class ValueChange:
    """Other values of the shape `small`."""

    text: str

    def apply(self, folder: Path) -> None:
        """Make it."""
        file = folder / CHART / "ci/small-values.yaml"
        values = merge(parse(file.read_text()), parse(self.text))
        file.write_text(yaml.safe_dump(values))


@dataclass(frozen=True)
class Fault:
    """One fault, and the check that must find it."""

    check: str
    what: str
    change: Change


SHAPES = ("small", "production")
"""The shapes in which faults of the chart are looked for: the least, and nearly all there is."""


def keep_shapes(folder: Path) -> None:
    """Remove the other shapes from a copy of `deploy/`, to render half as much."""
    for file in (folder / CHART / "ci").glob("*-values.yaml"):
        if file.name.removesuffix("-values.yaml") not in SHAPES:
            file.unlink()


def plant(fault: Fault, original: Path, folder: Path) -> None:
    """Make a folder a copy of `deploy/` with one fault in it."""
    ignore = shutil.ignore_patterns("checks", "__pycache__")
    shutil.copytree(original, folder, symlinks=True, ignore=ignore)
    fault.change.apply(folder)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "helm-render",
        "a template calls what is not there",
        TextAddition(f"{TEMPLATES}/configmap.yaml", '\n{{ include "fusewire.nothing" . }}\n'),
    ),
    Fault(
        "helm-lint",
        "a source of the chart is no address",
        TextAddition(f"{CHART}/Chart.yaml", "sources: [nowhere]\n"),
    ),
    Fault(
        "helm-agree",
        "a template depends on helm's version",
        TextChange(
            f"{TEMPLATES}/configmap.yaml",
            "\ndata:",
            "\n  annotations:\n    made-by: {{ .Capabilities.HelmVersion.Version }}\ndata:",
        ),
    ),
    Fault("no-secrets", "a Secret is rendered", ValueChange(f"extraObjects: [{OBJECT}]")),
    Fault(
        "no-secrets",
        "a password is made up",
        TextChange(
            f"{TEMPLATES}/configmap.yaml",
            "\ndata:",
            "\n  annotations:\n    made-up: {{ randAlphaNum 12 }}\ndata:",
        ),
    ),
    Fault(
        "no-secrets",
        "a password is written out",
        ValueChange("judge: {extraEnv: [{name: PGPASSWORD, value: hunter2}]}"),
    ),
    Fault(
        "values-schema",
        "unknown keys are taken",
        TextChange(
            f"{CHART}/values.schema.json", '"additionalProperties": false', '"minProperties": 0'
        ),
    ),
    Fault(
        "chart-readme",
        "a description differs from values.yaml",
        TextChange(f"{CHART}/README.md", "The tag of all images", "The tag of some images"),
    ),
    Fault(
        "kubernetes-schemas",
        "a key of a Deployment is misspelt",
        TextChange(
            f"{TEMPLATES}/deployments.yaml", "revisionHistoryLimit:", "revisionHistoryLimits:"
        ),
    ),
    Fault(
        "kubernetes-schemas",
        "a text is a number",
        ValueChange(f"extraObjects: [{CONFIG_OBJECT}]"),
    ),
    Fault(
        "custom-schemas",
        "a number of a ScaledObject is a word",
        TextChange(
            f"{TEMPLATES}/autoscaling.yaml",
            "pollingInterval: {{ $keda.pollingInterval }}",
            'pollingInterval: "{{ $keda.pollingInterval }} s"',
        ),
    ),
    Fault(
        "pod-security",
        "seccomp is switched off",
        ValueChange("podSecurityContext: {seccompProfile: {type: Unconfined}}"),
    ),
    Fault(
        "pod-security",
        "capabilities are kept",
        ValueChange("securityContext: {capabilities: {drop: []}}"),
    ),
    Fault(
        "pod-security",
        "containers may run as root",
        ValueChange(
            "{podSecurityContext: {runAsNonRoot: false}, securityContext: {runAsNonRoot: false}}"
        ),
    ),
    Fault(
        "pod-security",
        "a folder of the node is mounted",
        ValueChange(
            "judge: {extraVolumes: [{name: logs, hostPath: {path: /var/log}}],"
            " extraVolumeMounts: [{name: logs, mountPath: /logs}]}"
        ),
    ),
    Fault(
        "pods",
        "pods get a token of Kubernetes",
        TextChange(
            f"{TEMPLATES}/_pod.tpl",
            "automountServiceAccountToken: false",
            "automountServiceAccountToken: true",
        ),
    ),
    Fault(
        "containers",
        "the root file system is writable",
        ValueChange("securityContext: {readOnlyRootFilesystem: false}"),
    ),
    Fault(
        "containers",
        "memory is not limited",
        ValueChange("judge: {resources: {limits: {memory: null}}}"),
    ),
    Fault("containers", "an image has no version", ValueChange("judge: {image: {tag: latest}}")),
    Fault(
        "containers",
        "a probe asks a port that is not there",
        TextChange(
            f"{TEMPLATES}/deployments.yaml", "/readyz, port: operations", "/readyz, port: admin"
        ),
    ),
    Fault(
        "network",
        "every service reaches the internet",
        ValueChange("networkPolicy: {extraEgress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"),
    ),
    Fault(
        "network",
        "edge workers reach the database",
        TextChange(
            f"{TEMPLATES}/networkpolicies.yaml",
            'list "ingest" "judge"',
            'list "worker-edge" "judge"',
        ),
    ),
    Fault(
        "network",
        "the console reaches NATS",
        TextChange(
            f"{TEMPLATES}/networkpolicies.yaml", 'if ne .name "console"', 'if ne .name "nobody"'
        ),
    ),
    Fault("network", "there are no policies", ValueChange("networkPolicy: {enabled: false}")),
    Fault(
        "references",
        "a key of a Secret is misspelt",
        TextChange(f"{TEMPLATES}/_pod.tpl", "key: pepper", "key: peper"),
    ),
    Fault(
        "references",
        "a Service leads to a port that is not there",
        TextChange(f"{TEMPLATES}/http.yaml", "targetPort: http", "targetPort: web"),
    ),
    Fault(
        "settings",
        "a variable is misspelt",
        ValueChange("judge: {extraEnv: [{name: FUSEWIRE_NATZ__URL, value: x}]}"),
    ),
    Fault(
        "settings",
        "the configuration names a model that is not there",
        ValueChange("config: {pools: {default: {judge: nobody}}}"),
    ),
    Fault(
        "scaling",
        "a scaler watches a consumer that is not there",
        TextChange(f"{TEMPLATES}/autoscaling.yaml", '"dispatcher-%s"', '"dispatch-%s"'),
    ),
    Fault(
        "order",
        "the Job's configuration comes after it",
        TextChange(f"{TEMPLATES}/prepare.yaml", '"weight" "-10"', '"weight" "10"'),
    ),
    Fault(
        "order",
        "migrations come last",
        TextChange(
            f"{TEMPLATES}/prepare.yaml", "pre-install,pre-upgrade", "post-install,post-upgrade"
        ),
    ),
    Fault(
        "alert-rules",
        "an expression does not parse",
        TextChange("alerts/rules.yaml", "expr: ", "expr: ("),
    ),
    Fault(
        "alert-rules",
        "the chart's copy of the dashboard differs",
        FileChange(f"{CHART}/files/dashboard.json", "{}\n"),
    ),
    Fault(
        "alert-tests",
        "an alert has no test",
        TextChange(
            "alerts/rules.yaml",
            "      - alert: ",
            "      - alert: Untested\n        expr: vector(1)\n      - alert: ",
        ),
    ),
    Fault(
        "alert-tests",
        "an alert fires too early",
        TextChange("alerts/rules.yaml", "        for: ", "        for: 0m # "),
    ),
    Fault(
        "dockerfile",
        "a folder is entered by hand",
        TextAddition("docker/Dockerfile", "\nRUN cd /tmp && sudo id\n"),
    ),
    Fault(
        "yaml",
        "a key stands twice",
        TextAddition("compose.yaml", "\nname: fusewire\nname: fusewire\n"),
    ),
    Fault(
        "nats-configuration",
        "a word is misspelt",
        TextChange("nats/nats-server.conf", "jetstream {", "jetstreem {"),
    ),
    Fault(
        "compose",
        "a service waits for one that is not there",
        TextChange(
            "compose.yaml",
            "depends_on:",
            "depends_on:\n      nobody:\n        condition: service_started",
        ),
    ),
    Fault(
        "compose",
        "a variable is misspelt",
        TextChange("compose.yaml", "FUSEWIRE_NATS__URL", "FUSEWIRE_NATZ__URL"),
    ),
    Fault(
        "kustomize",
        "an overlay was edited by hand",
        TextChange(
            "kustomize/overlays/production/kustomization.yaml", "DoNotSchedule", "ScheduleAnyway"
        ),
    ),
    Fault(
        "kustomize",
        "a file is not there",
        TextChange("kustomize/base/kustomization.yaml", "- judge.yaml", "- judges.yaml"),
    ),
)
