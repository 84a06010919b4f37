"""What the chart renders, and what it refuses, with both helms: `deploy/check` runs this.

`make test` does not, as helm has to be fetched.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy/helm/fusewire"
HELMS = sorted((ROOT / "build/deploy-tools").glob("clients-*/v*/helm/helm"))

Document = dict[str, Any]


@pytest.fixture(scope="module", params=["v32", "v37"])
def helm(request: pytest.FixtureRequest) -> Path:
    """Helm 3 and helm 4, by the kubectl that they came with."""
    for path in HELMS:
        if path.parts[-3] == request.param:
            return path
    pytest.fail("helm is not in build/deploy-tools: run deploy/check, which fetches it")


def run_helm(
    helm: Path, tmp_path: Path, shape: str, values: str, version: str = "1.34.0"
) -> subprocess.CompletedProcess[str]:
    """Render a shape of `ci/`, or none, with more values over it."""
    (tmp_path / "values.yaml").write_text(values)
    files = [tmp_path / "values.yaml"]
    if shape:
        files.insert(0, CHART / f"ci/{shape}-values.yaml")
    options = [f"--values={file}" for file in files]
    return subprocess.run(
        [helm, "template", "fw", CHART, *options, "--kube-version", version],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Rendering:
    """The objects that were rendered."""

    def __init__(self, text: str) -> None:
        self.documents: list[Document] = [d for d in yaml.safe_load_all(text) if d]

    def find(self, kind: str, name: str) -> Document:
        (document,) = [
            d for d in self.documents if d["kind"] == kind and d["metadata"]["name"] == name
        ]
        return document

    def has(self, kind: str, name: str) -> bool:
        return any(d["kind"] == kind and d["metadata"]["name"] == name for d in self.documents)

    def pod(self, service: str) -> Document:
        spec: Document = self.find("Deployment", f"fw-fusewire-{service}")["spec"]["template"][
            "spec"
        ]
        return spec

    def env(self, service: str) -> Document:
        return {v["name"]: v.get("value") for v in self.pod(service)["containers"][0]["env"]}


class Renderer:
    """Renders with one helm."""

    def __init__(self, helm: Path, tmp_path: Path) -> None:
        self._helm = helm
        self._tmp_path = tmp_path

    def __call__(
        self, values: str = "", shape: str = "small", version: str = "1.34.0"
    ) -> Rendering:
        result = run_helm(self._helm, self._tmp_path, shape, values, version)
        assert result.returncode == 0, result.stderr
        return Rendering(result.stdout)

    def refusal(self, values: str, shape: str = "small", version: str = "1.34.0") -> str:
        result = run_helm(self._helm, self._tmp_path, shape, values, version)
        assert result.returncode != 0
        return result.stderr


@pytest.fixture
def render(helm: Path, tmp_path: Path) -> Renderer:
    return Renderer(helm, tmp_path)


BOTH_SCALERS = "judge: {autoscaling: {keda: {enabled: true}, hpa: {enabled: true}}}"
NO_HOOK = "judge: {autoscaling: {keda: {enabled: true}}}\nprepare: {hooks: {helm: false}}"
NO_JUDGE = "defaults: {autoscaling: {keda: {enabled: true, minReplicas: 0}}}"
TWO_PLACES = "workerEdge: {weights: {hostPath: /models}}"
NO_PLACE = "workerEdge: {weights: {existingClaim: ''}}"
OTHER_PATH = "config: {models: {tiny: {path: /data/tiny}}}"
NO_IMAGE = "workerEdge: {weights: {existingClaim: '', images: {other: {reference: r/other}}}}"
NO_SUCH_MODEL = f"workerEdge: {{weights: {{manifestSha256: {{tinny: '{'a' * 64}'}}}}}}"
NO_HOST = "ingest: {ingress: {enabled: true}}"
NO_GATEWAY = "ingest: {httpRoute: {enabled: true}}"
CONSOLE_ALONE = "{ingest: {enabled: false}, console: {enabled: true}}"
NO_LAG = "console: {enabled: true, autoscaling: {keda: {enabled: true}}}"
NO_CONSOLE_HOST = "console: {enabled: true, ingress: {enabled: true}}"
BOTH_MONITORS = "monitoring: {podMonitor: {enabled: true}, serviceMonitor: {enabled: true}}"
MISSPELT = "ingest: {replicaz: 2}"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (BOTH_SCALERS, "judge.autoscaling has both keda and hpa enabled"),
        (NO_HOOK, "Enable prepare.hooks.helm or prepare.hooks.argocd"),
        (NO_JUDGE, "ingest.autoscaling.keda.minReplicas is 0"),
        (TWO_PLACES, "needs one of existingClaim, hostPath and images, and only one"),
        (NO_PLACE, "needs one of existingClaim, hostPath and images, and only one"),
        (
            OTHER_PATH,
            "config.models.tiny.path is /data/tiny, and weights are mounted below /models",
        ),
        (NO_IMAGE, "workerEdge.weights.images has no smollm2-135m: add it"),
        (NO_SUCH_MODEL, "manifestSha256 names tinny, which is no edge model"),
        (NO_HOST, "ingest.ingress is enabled and has no hosts"),
        (NO_GATEWAY, "ingest.httpRoute is enabled and belongs to no Gateway"),
        (CONSOLE_ALONE, "console is enabled and ingest is not, whose API it asks"),
        (NO_LAG, "console.autoscaling.keda is enabled, and it takes no messages"),
        (NO_CONSOLE_HOST, "console.ingress is enabled and has no hosts"),
        (BOTH_MONITORS, "monitoring has both podMonitor and serviceMonitor enabled"),
        (MISSPELT, "replicaz"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(
    values: str, words: str, render: Renderer
) -> None:
    assert words in render.refusal(values)


def test_a_worker_without_models_is_refused(render: Renderer) -> None:
    for worker, kind in (("workerEdge", "edge"), ("workerRemote", "hosted")):
        refusal = render.refusal(f"{worker}: {{enabled: true}}", shape="")
        assert f"config.models has no {kind} model" in refusal


# -- secrets ----------------------------------------------------------------------------------


def test_each_pod_gets_its_own_secrets_and_no_other(render: Renderer) -> None:
    rendering = render(shape="production")
    database, pepper, key = "fusewire-database", "fusewire-pepper", "fusewire-provider-keys"
    wanted = {
        "ingest": {database, pepper, "ingest.seed"},
        "dispatcher": {"dispatcher.seed"},
        "judge": {database, "judge.seed"},
        "worker-edge": {"worker-edge.seed"},
        "worker-remote": {key, "worker-remote.seed"},
        "console": {"fusewire-console-database"},
        "tools": {database, pepper, "ops.seed"},
    }
    for service, names in wanted.items():
        assert secrets_of(rendering.pod(service)) - {"ca.crt"} == names, service
    assert secrets_of(rendering.pod("console")) == wanted["console"], "it has no way to NATS"
    job = rendering.find("Job", "fw-fusewire-prepare")["spec"]["template"]["spec"]
    assert secrets_of(job) - {"ca.crt"} == {database, "ops.seed"}


def secrets_of(pod: Document) -> set[str]:
    """Names of Secrets in variables, and keys of those that are mounted."""
    names = set()
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for variable in container.get("env", []):
            if source := variable.get("valueFrom"):
                names.add(source["secretKeyRef"]["name"])
        names |= {source["secretRef"]["name"] for source in container.get("envFrom", [])}
    for volume in pod["volumes"]:
        names |= {item["key"] for item in volume.get("secret", {}).get("items", [])}
    return names


def test_an_edge_site_needs_no_database_and_prepares_its_outbox_alone(render: Renderer) -> None:
    rendering = render(shape="edge-site")
    assert {d["metadata"]["name"] for d in rendering.documents if d["kind"] == "Deployment"} == {
        "fw-fusewire-worker-edge"
    }
    job = rendering.find("Job", "fw-fusewire-prepare")["spec"]["template"]["spec"]
    assert "initContainers" not in job
    assert secrets_of(job) == {"ops.seed"}
    assert not rendering.has("Pod", "fw-fusewire-test")
    rules = rendering.find("NetworkPolicy", "fw-fusewire-prepare")["spec"]["egress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == {53, 4222}
    env = rendering.env("worker-edge")
    assert (env["FUSEWIRE_NATS__SITE"], env["FUSEWIRE_NATS__JS_PREFIX"]) == ("plant-7", "fwjs")


# -- services ---------------------------------------------------------------------------------


def test_a_value_of_a_service_wins_over_the_defaults_even_if_it_is_false(render: Renderer) -> None:
    rendering = render("judge: {podDisruptionBudget: {enabled: false}, replicas: 0}")
    assert not rendering.has("PodDisruptionBudget", "fw-fusewire-judge")
    assert rendering.has("PodDisruptionBudget", "fw-fusewire-ingest")
    assert rendering.find("Deployment", "fw-fusewire-judge")["spec"]["replicas"] == 0


def test_pods_have_the_time_that_draining_takes(render: Renderer) -> None:
    seconds = "terminationGracePeriodSeconds"
    rendering = render()
    assert rendering.pod("judge")[seconds] == 20
    for service in ("ingest", "console"):  # with the wait before the stop
        assert rendering.pod(service)[seconds] == 25
    assert rendering.pod("worker-remote")[seconds] == 130
    rendering = render("config: {limits: {drain_s: 30.5, call_drain_s: 20}}")
    assert rendering.pod("judge")[seconds] == 41
    assert rendering.pod("worker-remote")[seconds] == 41


def test_a_changed_configuration_replaces_pods_and_another_chart_does_not(render: Renderer) -> None:
    def template(rendering: Rendering) -> Document:
        metadata: Document = rendering.find("Deployment", "fw-fusewire-judge")["spec"]["template"][
            "metadata"
        ]
        return metadata

    before = template(render())
    assert template(render("config: {log: {level: debug}}")) != before
    assert "helm.sh/chart" not in before["labels"]


def test_replicas_spread_and_are_replaced_as_values_say(render: Renderer) -> None:
    own = "{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway, labelSelector: {}}"
    rendering = render(
        f"judge: {{topologySpreadConstraints: [{own}], strategy: {{type: Recreate}}}}"
    )
    assert rendering.pod("judge")["topologySpreadConstraints"][0]["labelSelector"] == {}
    (constraint,) = rendering.pod("ingest")["topologySpreadConstraints"]
    labels = constraint["labelSelector"]["matchLabels"]
    assert labels["app.kubernetes.io/component"] == "ingest"
    strategies = {
        name: rendering.find("Deployment", f"fw-fusewire-{name}")["spec"]["strategy"]
        for name in ("judge", "ingest")
    }
    assert strategies == {
        "judge": {"type": "Recreate"},
        "ingest": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
    }


def test_an_image_is_named_by_registry_tag_and_digest(render: Renderer) -> None:
    digest = f"sha256:{'a' * 64}"
    rendering = render(
        f"image: {{registry: registry.example/fw/, tag: v2}}\n"
        f"judge: {{image: {{digest: '{digest}'}}}}\n"
        f"dispatcher: {{image: {{repository: other.example/dispatcher, tag: v3}}}}"
    )
    images = {
        s: rendering.pod(s)["containers"][0]["image"] for s in ("ingest", "judge", "dispatcher")
    }
    assert images == {
        "ingest": "registry.example/fw/fusewire-ingest:v2",
        "judge": f"registry.example/fw/fusewire-judge@{digest}",
        "dispatcher": "other.example/dispatcher:v3",
    }


def test_the_api_has_tls_of_its_own_or_says_that_something_before_it_has(render: Renderer) -> None:
    plain, own = render().env("ingest"), render(shape="air-gapped").env("ingest")
    assert plain["FUSEWIRE_HTTP__ALLOW_INSECURE"] == "true"
    assert "FUSEWIRE_HTTP__ALLOW_INSECURE" not in own
    assert own["FUSEWIRE_HTTP__TLS_KEY"] == "/etc/fusewire/tls/tls.key"


def test_the_console_reads_as_a_role_of_its_own_or_as_the_owner_of_the_tables(
    render: Renderer,
) -> None:
    def database(rendering: Rendering) -> dict[str, str]:
        variables = rendering.pod("console")["containers"][0]["env"]
        references = {
            v["name"]: v["valueFrom"]["secretKeyRef"] for v in variables if "valueFrom" in v
        }
        return {name: reference["name"] for name, reference in references.items()}

    own = "fusewire-console-database"
    variables = ("FUSEWIRE_DATABASE__URL", "FUSEWIRE_DATABASE__ANALYST_URL")
    assert database(render(shape="production")) == dict.fromkeys(variables, own)
    assert database(render()) == {"FUSEWIRE_DATABASE__URL": "fusewire-database"}


def test_the_console_asks_the_api_and_has_its_certificate(render: Renderer) -> None:
    plain, tls = render().env("console"), render(shape="air-gapped").env("console")
    assert plain["FUSEWIRE_CONSOLE__API_URL"] == "http://fw-fusewire-ingest:8484"
    assert plain["FUSEWIRE_HTTP__ALLOW_INSECURE"] == "true"
    assert tls["FUSEWIRE_CONSOLE__API_URL"] == "https://fw-fusewire-ingest:8484"
    assert tls["FUSEWIRE_HTTP__TLS_CERT"] == "/etc/fusewire/tls/tls.crt"
    assert not [name for name in plain if name.startswith("FUSEWIRE_NATS__")]


def test_only_who_shows_pages_reaches_the_console_and_it_reaches_no_bus(render: Renderer) -> None:
    rendering = render(shape="production")
    rules = rendering.find("NetworkPolicy", "fw-fusewire-console")["spec"]
    peers = {rule["ports"][0]["port"]: rule["from"] for rule in rules["ingress"]}
    gateway = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}}
    assert peers["http"] == [gateway]
    assert {port["port"] for rule in rules["egress"] for port in rule["ports"]} == {
        *(53, 5432, "http"),
        4318,  # traces
    }
    route = rendering.find("HTTPRoute", "fw-fusewire-console")["spec"]
    assert route["rules"][0]["backendRefs"] == [{"name": "fw-fusewire-console", "port": 8484}]


def test_devices_and_further_objects_are_rendered(render: Renderer) -> None:
    config_map = "{apiVersion: v1, kind: ConfigMap, metadata: {name: '{{ .Release.Name }}-x'}}"
    rendering = render(f"extraObjects: [{config_map}]", shape="edge-site")
    assert rendering.has("ConfigMap", "fw-x")
    limits = rendering.pod("worker-edge")["containers"][0]["resources"]["limits"]
    assert limits["npu.intel.com/accel"] == 1


def test_everything_that_services_share_reaches_all_of_them(render: Renderer) -> None:
    rendering = render("nameOverride: fuse\ncommonLabels: {team: ml}", shape="production")
    for document in rendering.documents:
        assert document["metadata"]["labels"]["app.kubernetes.io/name"] == "fuse"
        assert document["metadata"]["labels"]["team"] == "ml"


def test_a_service_monitor_finds_the_operations_port_of_every_service(render: Renderer) -> None:
    rendering = render("monitoring: {serviceMonitor: {enabled: true}}")
    service = rendering.find("Service", "fw-fusewire-operations")
    monitor = rendering.find("ServiceMonitor", "fw-fusewire")["spec"]
    labels, wanted = service["metadata"]["labels"], monitor["selector"]["matchLabels"]
    assert wanted.items() <= labels.items()
    assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert monitor["podTargetLabels"] == ["app.kubernetes.io/component"]
    deployment = rendering.find("Deployment", "fw-fusewire-judge")["spec"]["template"]
    assert service["spec"]["selector"].items() <= deployment["metadata"]["labels"].items()


# -- weights ----------------------------------------------------------------------------------

IMAGES = """
workerEdge:
  weights:
    existingClaim: ""
    images: {smollm2-135m: {reference: registry.example/smollm2@sha256:1}}
    manifestSha256: {tiny: "%s"}
""" % ("b" * 64)


def test_weights_from_images_are_mounted_and_verified_first(render: Renderer) -> None:
    pod = render(IMAGES).pod("worker-edge")
    image = {"reference": "registry.example/smollm2@sha256:1", "pullPolicy": "IfNotPresent"}
    assert {"name": "model-smollm2-135m", "image": image} in pod["volumes"]
    (check,) = pod["initContainers"]
    mount = {"name": "model-smollm2-135m", "mountPath": "/models/smollm2-135m", "readOnly": True}
    assert check["volumeMounts"] == [mount]
    assert mount in pod["containers"][0]["volumeMounts"]
    assert check["command"] == ["python", "-m", "fusewire_worker_edge.folder"]
    assert check["args"] == [f"/models/smollm2-135m={'b' * 64}"]
    assert "env" not in check


def test_image_volumes_need_a_kubernetes_that_has_them(render: Renderer) -> None:
    assert "needs image volumes" in render.refusal(IMAGES, version="1.30.0")


# -- the Job ----------------------------------------------------------------------------------


def notes(rendering: Rendering, kind: str) -> dict[str, str]:
    annotations: dict[str, str] = rendering.find(kind, "fw-fusewire-prepare")["metadata"].get(
        "annotations", {}
    )
    return annotations


def test_the_job_is_a_hook_of_helm_or_of_argo_cd_with_what_it_needs_before_it(
    render: Renderer,
) -> None:
    by_helm, by_argo = render(), render("prepare: {hooks: {argocd: true}}")
    for kind in ("ServiceAccount", "ConfigMap", "NetworkPolicy"):
        assert int(notes(by_helm, kind)["helm.sh/hook-weight"]) < 0
        assert int(notes(by_argo, kind)["argocd.argoproj.io/sync-wave"]) < 0
    assert notes(by_helm, "Job")["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert notes(by_argo, "Job")["argocd.argoproj.io/hook"] == "PreSync"
    assert "helm.sh/hook" not in notes(by_argo, "Job")


def test_an_ordinary_job_has_another_name_for_each_version(render: Renderer) -> None:
    def name(values: str) -> str:
        jobs = [d for d in render(values).documents if d["kind"] == "Job"]
        assert "annotations" not in jobs[0]["metadata"]
        return str(jobs[0]["metadata"]["name"])

    off = "prepare: {hooks: {helm: false}}\n"
    names = [
        name(off),
        name(off),
        name(off + "image: {tag: v2}"),
        name(off + "nats: {url: nats://n:1}"),
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3
