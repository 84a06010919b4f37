"""Every object against the schemas of Kubernetes 1.28 to 1.37, of what is added to it."""

import functools
import json
from collections.abc import Iterator
from types import ModuleType

from checks.manifests import pods, title
from checks.model import Check, Deploy, Document, last_line, once
from checks.tools import UnavailableError, run

KUBERNETES = tuple(f"1.{minor}" for minor in range(28, 38))
IMAGE_VOLUMES_FROM = "1.33"
"""The first Kubernetes with image volumes switched on for those who ask: beta."""
MODELS = {
    "gateway.networking.k8s.io": "gateway-api",
    "keda.sh": "keda",
    "monitoring.coreos.com": "prometheus-operator",
}
"""API groups that are added to a cluster, and the npm package with their schemas."""


def kubernetes(deploy: Deploy) -> Iterator[str]:
    """Objects that a version of Kubernetes would refuse."""
    library = _library(deploy)
    for shape in deploy.shapes:
        for document in deploy.documents(shape):
            if _group(document) in MODELS:
                continue
            text = json.dumps(document, sort_keys=True)
            for problem in once(("schema", text), lambda d=document: _refused(library, d)):
                yield f"{shape}: {title(document)}: {problem}"


def _library(deploy: Deploy) -> ModuleType:
    """kubernetes-validate, which reads each schema once."""
    deploy.tools.add_python_packages()
    from kubernetes_validate import utils  # noqa: PLC0415 - it is fetched first

    for name in ("schema_contents", "all_versions"):
        function = getattr(utils, name)
        if not hasattr(function, "cache_info"):
            setattr(utils, name, functools.cache(function))
    module: ModuleType = utils
    return module


def _refused(library: ModuleType, document: Document) -> list[str]:
    """The problems of one object, each with the first version that has it."""
    found: dict[str, str] = {}
    for version in KUBERNETES:
        if _has_image_volume(document) and version < IMAGE_VOLUMES_FROM:
            continue
        try:
            library.validate(document, version, strict=True)
        except library.ValidationError as exc:
            path = ".".join(str(part) for part in exc.path)
            found.setdefault(f"{path}: {exc.message[:200]}", version)
        except library.SchemaNotFoundError as exc:
            found.setdefault(f"no such kind in {exc.api_version}", version)
    return [f"Kubernetes {version}: {problem}" for problem, version in found.items()]


def _has_image_volume(document: Document) -> bool:
    specs = [pod.spec for pod in pods([document])]
    return any("image" in volume for spec in specs for volume in spec.get("volumes") or [])


def _group(document: Document) -> str:
    return str(document.get("apiVersion", "")).partition("/")[0]


SCRIPT = """
const documents = JSON.parse(require("fs").readFileSync(0, "utf8"));
const find = (document) => {
  const [group, version] = document.apiVersion.split("/");
  const package = process.argv[1] + MODELS[group];
  let model;
  try { model = require(`${package}/${group}/${version}/${document.kind}`); }
  catch { return `no such kind in ${document.apiVersion}`; }
  try { new model[document.kind](document).validate(); return ""; }
  catch (error) { return error.message; }
};
console.log(JSON.stringify(documents.map(find)));
"""


def custom(deploy: Deploy) -> Iterator[str]:
    """Objects that KEDA, the Prometheus operator or the Gateway API would refuse."""
    named: list[tuple[str, Document]] = [
        (f"{shape}: {title(document)}", document)
        for shape in deploy.shapes
        for document in deploy.documents(shape)
        if _group(document) in MODELS
    ]
    texts = {name: json.dumps(document, sort_keys=True) for name, document in named}
    new = sorted(set(texts.values()) - _judged.keys())
    _judged.update(zip(new, _models_say(deploy, new) if new else [], strict=True))
    for name, text in texts.items():
        if problem := _judged[text]:
            yield f"{name}: {problem}"


_judged: dict[str, str] = {}
"""What the models say of each object, as JSON; an empty string is no problem."""


def _models_say(deploy: Deploy, texts: list[str]) -> list[str]:
    folder = deploy.tools.node_packages / "node_modules/@kubernetes-models"
    script = f"const MODELS = {json.dumps(MODELS)};\n{SCRIPT}"
    result = run(deploy.tools.node, "-e", script, f"{folder}/", stdin=f"[{','.join(texts)}]")
    if result.returncode:
        raise UnavailableError(f"node: {last_line(result.stderr)}")
    return list(json.loads(result.stdout))


CHECKS = (
    Check("kubernetes-schemas", f"every object fits Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}", kubernetes),
    Check("custom-schemas", "objects of KEDA, the Prometheus operator and the Gateway API fit their CRDs", custom),
)
