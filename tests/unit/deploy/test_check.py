"""The checks on small objects, without the tools that they fetch.

`make check-deploy` runs all, and plants a fault of each kind into the real files.
"""

import copy
from pathlib import Path

import pytest

from checks import compose, configuration, network, references, scaling, secrets, security
from checks.faults import FAULTS, Fault, TextChange, plant
from checks.manifests import PodTemplate, pods, selects
from checks.model import Document, Shape, SourceFolder
from checks.patches import differences
from checks.runner import CHECKS, result_of
from checks.tools import ToolFolder

SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
PROBE = {"httpGet": {"path": "/healthz", "port": "operations"}}


def deployment(component: str = "judge") -> Document:
    container = {
        "name": component,
        "image": f"fusewire-{component}:1",
        "securityContext": copy.deepcopy(SECURITY),
        "resources": {"requests": {"cpu": 1, "memory": 1}, "limits": {"memory": 1}},
        "ports": [{"name": "operations", "containerPort": 8485}],
        "startupProbe": copy.deepcopy(PROBE),
        "readinessProbe": copy.deepcopy(PROBE),
        "livenessProbe": copy.deepcopy(PROBE),
    }
    spec = {
        "serviceAccountName": "fusewire",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    labels = {"app.kubernetes.io/component": component}
    template = {"metadata": {"labels": labels}, "spec": spec}
    return {"kind": "Deployment", "metadata": {"name": component}, "spec": {"template": template}}


def pod_of(document: Document) -> PodTemplate:
    (pod,) = pods([document])
    return pod


def shape_of(*documents: Document) -> Shape:
    return Shape("small", {"networkPolicy": {"database": {"port": 5432}}}, list(documents))


def set_at(document: Document, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for name in parents:
        document = document[int(name)] if name.isdigit() else document[name]  # type: ignore[index]
    document[last] = value


def problems_of_pod(document: Document) -> list[str]:
    pod, shape = pod_of(document), shape_of(document)
    found = [*security.pod_security(pod, shape), *security.pod_promises(pod, shape)]
    for container in pod.containers:
        found += security.container_security(container, pod, shape)
        found += security.promises(container, pod, shape)
    return found


def test_a_hardened_pod_has_no_problem() -> None:
    assert problems_of_pod(deployment()) == []


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("hostNetwork", True, "hostNetwork is set"),
        ("hostPID", True, "hostPID is set"),
        ("volumes", [{"name": "v", "hostPath": {}}], "volume v is of type hostPath"),
        ("securityContext.sysctls", [{"name": "kernel.x"}], "sysctl kernel.x is not safe"),
        ("securityContext.runAsNonRoot", False, "runAsNonRoot is not true"),
        ("securityContext.runAsUser", 0, "runs as user 0"),
        ("securityContext.seccompProfile", {}, "seccompProfile.type is neither"),
        ("securityContext.appArmorProfile", {"type": "Unconfined"}, "appArmorProfile is"),
        ("securityContext.seLinuxOptions", {"user": "u"}, "seLinuxOptions name"),
        ("securityContext.windowsOptions", {"hostProcess": True}, "windowsOptions.hostProcess"),
        ("containers.0.securityContext.privileged", True, "is privileged"),
        ("containers.0.securityContext.allowPrivilegeEscalation", None, "allowPrivilege"),
        ("containers.0.securityContext.procMount", "Unmasked", "procMount is not Default"),
        ("containers.0.securityContext.capabilities", {}, "capabilities.drop lacks ALL"),
        ("containers.0.securityContext.capabilities.add", ["NET_RAW"], "add has NET_RAW"),
        ("containers.0.ports", [{"name": "operations", "hostPort": 1}], "hostPort 1 is taken"),
        ("containers.0.livenessProbe.httpGet.host", "h", "livenessProbe names a host"),
        ("containers.0.securityContext.readOnlyRootFilesystem", False, "readOnlyRoot"),
        ("containers.0.resources.requests", {"cpu": 1}, "resources.requests.memory is missing"),
        ("containers.0.resources.limits", {}, "resources.limits.memory is missing"),
        ("containers.0.image", "registry:5000/fusewire", "names no version"),
        ("containers.0.image", "fusewire:latest", "names no version"),
        ("containers.0.readinessProbe", {}, "readinessProbe is missing"),
        ("containers.0.startupProbe.httpGet.port", "web", "startupProbe asks port web"),
        ("automountServiceAccountToken", None, "automountServiceAccountToken"),
        ("serviceAccountName", "", "has no serviceAccountName"),
        ("terminationGracePeriodSeconds", 19, "19 is less than"),
    ],
)
def test_a_pod_that_is_less_than_hardened(path: str, value: object, problem: str) -> None:
    document = deployment()
    set_at(document["spec"]["template"]["spec"], path, value)
    found = problems_of_pod(document)
    assert len(found) == 1
    assert problem in found[0]


def test_containers_that_run_first_are_checked_too() -> None:
    document = deployment()
    document["spec"]["template"]["spec"]["initContainers"] = [{"name": "first", "image": "a:1"}]
    assert len(problems_of_pod(document)) == 6


def test_an_image_with_a_digest_needs_no_tag() -> None:
    document = deployment()
    set_at(document["spec"]["template"]["spec"], "containers.0.image", "a/b@sha256:00")
    assert problems_of_pod(document) == []


NATS_RULE: Document = {"to": [{"podSelector": {}}], "ports": [{"port": 4222}]}


def policy(component: str, *egress: Document, **spec: object) -> Document:
    selector = {"matchLabels": {"app.kubernetes.io/component": component}}
    rules = {"podSelector": selector, "policyTypes": ["Ingress", "Egress"], "egress": list(egress)}
    return {"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {**rules, **spec}}


def network_problems(component: str, *policies: Document) -> list[str]:
    document = deployment(component)
    return list(network.network(pod_of(document), shape_of(document, *policies)))


OUT: Document = {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443}]}
DATABASE: Document = {"ports": [{"port": 5432}]}


@pytest.mark.parametrize(
    ("component", "rules", "problem"),
    [
        ("judge", [NATS_RULE, DATABASE], ""),
        ("worker-remote", [NATS_RULE, OUT], ""),
        ("worker-edge", [NATS_RULE, {"to": [{}], "ports": [{"port": 53}]}], ""),
        ("console", [DATABASE, {"to": [{}], "ports": [{"port": 8484}]}], ""),
        ("console", [NATS_RULE], "reaches NATS"),
        ("judge", [OUT], "reaches beyond the cluster on port 443"),
        ("judge", [{"to": []}], "reaches beyond the cluster on any port"),
        ("dispatcher", [DATABASE], "reaches beyond the cluster on port 5432"),
        ("worker-edge", [{"to": [{}], "ports": [{"port": 8484}]}], "more than NATS and DNS"),
        ("worker-edge", [{"to": [{}]}], "more than NATS and DNS: any port"),
    ],
)
def test_who_reaches_what(component: str, rules: list[Document], problem: str) -> None:
    found = network_problems(component, policy(component, *rules))
    assert bool(found) == bool(problem)
    assert all(problem in line for line in found)


def test_a_pod_without_policies_is_open() -> None:
    assert network_problems("judge") == [
        "no NetworkPolicy limits its egress",
        "no NetworkPolicy limits its ingress",
    ]
    assert network_problems("judge", policy("ingest", NATS_RULE)) != []


def test_a_policy_names_the_ports_that_may_be_reached() -> None:
    open_rule = policy("judge", NATS_RULE, ingress=[{"from": [{"podSelector": {}}]}])
    assert network_problems("judge", open_rule) == [
        "NetworkPolicy/p: any port may be reached",
    ]


def test_a_policy_without_types_limits_egress_only_by_its_rules() -> None:
    assert network_problems("judge", policy("judge", NATS_RULE, policyTypes=None)) == []
    without = policy("judge", policyTypes=None)
    del without["spec"]["egress"]
    assert network_problems("judge", without) == ["no NetworkPolicy limits its egress"]


@pytest.mark.parametrize(
    ("rule", "selected"),
    [
        ({"key": "a", "operator": "In", "values": ["b"]}, True),
        ({"key": "a", "operator": "NotIn", "values": ["b"]}, False),
        ({"key": "a", "operator": "Exists"}, True),
        ({"key": "c", "operator": "Exists"}, False),
        ({"key": "c", "operator": "DoesNotExist"}, True),
    ],
)
def test_selectors(rule: Document, selected: bool) -> None:
    assert selects({"matchExpressions": [rule]}, {"a": "b"}) is selected
    assert selects({"matchLabels": {"a": "x"}}, {"a": "b"}) is False
    assert selects(None, {"a": "b"}) is True


def config_map(text: str) -> Document:
    return {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"fusewire.json": text}}


def settings_problems(variables: dict[str, str], text: str = "{}") -> list[str]:
    document = deployment()
    spec = document["spec"]["template"]["spec"]
    spec["volumes"] = [{"name": "config", "configMap": {"name": "c"}}]
    spec["containers"][0]["env"] = [{"name": k, "value": v} for k, v in variables.items()]
    shape = shape_of(document, config_map(text))
    pod = pod_of(document)
    return list(configuration.settings(pod.containers[0], pod, shape))


def test_fusewire_says_what_is_wrong_with_its_configuration() -> None:
    assert settings_problems({"FUSEWIRE_HTTP__PORT": "1"}) == []
    assert settings_problems({"FUSEWIRE_NATZ__URL": "x"}) == ["FUSEWIRE_NATZ__URL is no setting"]
    assert "port" in settings_problems({"FUSEWIRE_HTTP__PORT": "x"})[0]
    assert (
        "limits.drain"
        in settings_problems({"FUSEWIRE_CONFIG": "/x"}, '{"limits": {"drain": 1}}')[0]
    )


def test_variables_of_this_process_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEWIRE_HTTP__PORT", "nonsense")
    assert settings_problems({"FUSEWIRE_LOG__LEVEL": "info"}) == []


def scaler(*consumers: tuple[str, str], kind: str = "ScaledObject") -> Document:
    triggers = [
        {"type": "nats-jetstream", "metadata": {"stream": s, "consumer": c}} for s, c in consumers
    ]
    spec = {"scaleTargetRef": {"name": "judge"}, "triggers": triggers}
    return {"kind": kind, "metadata": {"name": kind}, "spec": spec}


def test_scalers_watch_the_consumers_of_their_service() -> None:
    right = scaler(("FW_CANDIDATE", "judge"))
    assert list(scaling.scaling(shape_of(deployment(), right))) == []
    wrong = list(scaling.scaling(shape_of(deployment(), scaler(("FW_IN", "ingest")))))
    assert wrong == [
        "ScaledObject/ScaledObject: watches FW_IN/ingest, which judge does not take from",
        "ScaledObject/ScaledObject: does not watch FW_CANDIDATE/judge, which judge takes from",
    ]


def test_two_scalers_of_one_service_fight() -> None:
    both = (scaler(("FW_CANDIDATE", "judge")), scaler(kind="HorizontalPodAutoscaler"))
    found = list(scaling.scaling(shape_of(deployment(), *both)))
    assert found == ["judge has more than one scaler: they would fight"]


def test_a_scaled_service_sets_no_replicas() -> None:
    document = deployment()
    document["spec"]["replicas"] = 1
    found = list(scaling.scaling(shape_of(document, scaler(("FW_CANDIDATE", "judge")))))
    assert len(found) == 1
    assert "sets replicas" in found[0]


def hook(kind: str, weight: int, **spec: object) -> Document:
    notes = {"helm.sh/hook": "pre-install,pre-upgrade", "helm.sh/hook-weight": str(weight)}
    labels = {"app.kubernetes.io/component": "prepare"}
    metadata = {"name": "c", "annotations": notes, "labels": labels}
    return {"kind": kind, "metadata": metadata, "spec": spec}


def job() -> Document:
    spec = {"containers": [], "volumes": [{"name": "config", "configMap": {"name": "c"}}]}
    return hook("Job", 0, template={"spec": spec})


def test_what_the_job_needs_comes_before_it() -> None:
    assert list(scaling.order(shape_of(job(), hook("ConfigMap", -1)))) == []
    for late in (hook("ConfigMap", 0), config_map("{}")):
        assert "needs ConfigMap/c before" in next(scaling.order(shape_of(job(), late)))


def test_the_job_comes_before_everything() -> None:
    without_hook = job()
    del without_hook["metadata"]["annotations"]
    assert "neither of helm nor" in next(scaling.order(shape_of(without_hook)))
    late = job()
    late["metadata"]["annotations"]["helm.sh/hook"] = "post-install"
    assert "post-install" in next(scaling.order(shape_of(late)))
    assert "no Job" in next(scaling.order(shape_of(scaler())))


def test_a_json_patch_inserts_and_removes_by_name() -> None:
    old = [{"name": "a", "value": 1}, {"name": "b"}, {"name": "c"}]
    new = [{"name": "a", "value": 2}, {"name": "x"}, {"name": "c"}, {"name": "d"}]
    steps = list(differences(old, new))
    assert steps == [
        {"op": "replace", "path": "/0/value", "value": 2},
        {"op": "replace", "path": "/1/name", "value": "x"},
        {"op": "add", "path": "/3", "value": {"name": "d"}},
    ]
    assert list(differences(new, new)) == []
    assert [step["op"] for step in differences(new, old[:1])] == ["replace", *["remove"] * 3]


def test_secrets_in_variables() -> None:
    pod = pod_of(deployment())
    container = {"name": "c", "env": [{"name": "PGPASSWORD", "value": "x"}, {"name": "PORT"}]}
    found = list(secrets._in_variables(container, pod, shape_of()))
    assert found == ["PGPASSWORD is written out"]
    address = "postgresql://fusewire:hunter2@db/fusewire"
    assert secrets.PASSWORD_IN_ADDRESS.search(address)
    assert not secrets.PASSWORD_IN_ADDRESS.search("postgresql://fusewire@db/fusewire")


def test_references_lead_somewhere() -> None:
    document = deployment()
    spec = document["spec"]["template"]["spec"]
    spec["containers"][0]["env"] = [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
    ]
    spec["containers"][0]["envFrom"] = [{"configMapRef": {"name": "missing"}}]
    spec["volumes"] = [
        {"name": "config", "configMap": {"name": "c", "items": [{"key": "other"}]}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "disk"}},
    ]
    shape = shape_of(document, config_map("{}"))
    found = sorted(references._of_references(pod_of(document), shape, {"s", "fusewire"}))
    assert found == [
        "ConfigMap c has no other",
        "ConfigMap missing: neither rendered nor in the values: missing",
        "PersistentVolumeClaim disk: neither rendered nor in the values: disk",
        "Secret s: neither rendered nor in the values: k",
    ]
    assert list(references._of_references(pod_of(deployment()), shape_of(), set())) == [
        "ServiceAccount fusewire: neither rendered nor in the values: fusewire"
    ]
    assert list(references._of_mounts(pod_of(document))) == [
        "volume claim is mounted nowhere",
        "volume config is mounted nowhere",
    ]


def test_a_mount_is_of_a_volume() -> None:
    document = deployment()
    container = document["spec"]["template"]["spec"]["containers"][0]
    container["volumeMounts"] = [{"name": "gone", "mountPath": "/gone"}]
    problems = list(references._of_mounts(pod_of(document)))
    assert problems == ["gone is mounted and is no volume"]


def test_the_words_of_values_are_their_keys_and_strings() -> None:
    values = {"a": {"b": ["c", {"d": 1}]}, "e": "f", "g": None}
    assert sorted(references._strings(values)) == ["a", "b", "c", "d", "e", "f", "g"]


def selecting(kind: str, component: str, **spec: object) -> Document:
    labels = {"app.kubernetes.io/component": component}
    selector = labels if kind == "Service" else {"matchLabels": labels}
    return {"kind": kind, "metadata": {"name": "x"}, "spec": {"selector": selector, **spec}}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (selecting("PodMonitor", "judge"), ""),
        (selecting("PodDisruptionBudget", "jugde"), "PodDisruptionBudget/x selects no pod"),
        (selecting("Service", "jugde"), "Service/x selects no pod"),
        (selecting("Service", "judge", ports=[{"targetPort": "operations"}]), ""),
        (
            selecting("Service", "judge", ports=[{"targetPort": "web"}]),
            "Service/x leads to port web, which its pods lack",
        ),
    ],
)
def test_selectors_and_ports_lead_somewhere(document: Document, problem: str) -> None:
    problems = list(references._of_selectors(shape_of(deployment(), document)))
    assert problems == ([problem] if problem else [])


def test_a_scaler_has_a_target() -> None:
    alone = list(references._of_scalers(shape_of(scaler())))
    assert alone == ["ScaledObject/ScaledObject scales judge, which is not there"]
    assert list(references._of_scalers(shape_of(scaler(), deployment()))) == []


def compose_problems(folder: Path, text: str) -> list[str]:
    (folder / "compose.yaml").write_text(text)
    return list(compose.compose(SourceFolder(folder, ToolFolder())))


HARD = "read_only: true, cap_drop: [ALL], security_opt: ['no-new-privileges:true']"


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        (f"image: fusewire-judge, {HARD}", ""),
        ("image: postgres", ""),
        (
            "image: fusewire-judge, cap_drop: [ALL], security_opt: ['no-new-privileges:true']",
            "read_only",
        ),
        (
            "image: fusewire-judge, read_only: true, security_opt: ['no-new-privileges:true']",
            "cap_drop",
        ),
        ("image: fusewire-judge, read_only: true, cap_drop: [ALL]", "security_opt"),
        ("image: a, depends_on: [nobody]", "depends on nobody"),
        ("image: a, volumes: ['data:/data']", "volume data, which is not declared"),
        ("image: a, volumes: ['./nothing:/data']", "mounts ./nothing, which is not there"),
        ("image: a, volumes: ['./mine.toml:/data']", ""),
        ("image: a, secrets: [password]", "uses password, which is not among the secrets"),
        (f"image: fusewire-judge, {HARD}, environment: {{FUSEWIRE_X__Y: 1}}", "FUSEWIRE_X__Y"),
        (f"image: fusewire-judge, {HARD}, environment: {{FUSEWIRE_HTTP__PORT: x}}", "http.port"),
    ],
)
def test_compose_files(tmp_path: Path, service: str, problem: str) -> None:
    found = compose_problems(
        tmp_path, f"# cp it to mine.toml\nservices: {{judge: {{{service}}}}}\n"
    )
    assert bool(found) == bool(problem)
    assert all(problem in line for line in found)


def test_a_missing_file_fails_the_check_in_one_line(tmp_path: Path) -> None:
    (check,) = [check for check in CHECKS if check.name == "compose"]
    result = result_of(check, SourceFolder(tmp_path, ToolFolder()))
    assert (result.word, result.problems) == ("FAIL", ["deploy/compose.yaml is missing"])


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/a.yaml").write_text("a: 1\n")
    return tmp_path


def test_a_fault_is_planted_into_a_copy(small_folder: Path) -> None:
    fault = Fault("yaml", "another number", TextChange("a.yaml", "1", "2"))
    plant(fault, small_folder / "deploy", small_folder / "copy")
    assert (small_folder / "copy/a.yaml").read_text() == "a: 2\n"
    assert (small_folder / "deploy/a.yaml").read_text() == "a: 1\n"
    gone = Fault("yaml", "a number that is not there", TextChange("a.yaml", "3", "4"))
    with pytest.raises(LookupError, match=r"mend checks/faults\.py"):
        plant(gone, small_folder / "deploy", small_folder / "other")


def test_every_check_has_a_fault_that_it_must_find() -> None:
    names = [check.name for check in CHECKS]
    assert sorted({fault.check for fault in FAULTS}) == sorted(names)
    assert len(set(names)) == len(names)
