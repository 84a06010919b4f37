"""Objects against the schemas of Kubernetes 1.28 to 1.37, and of what is added to it."""

import functools
import json
from collections.abc import Iterator
from types import ModuleType

from checks.manifests import pods, title
from checks.model import Check, Document, SourceFolder, last_line, once
from checks.tools import UnavailableError, run

KUBERNETES = tuple(f"1.{minor}" for minor in range(28, 38))
IMAGE_VOLUMES_FROM = "1.33"
"""The first Kubernetes with image volumes for those who switch them on: beta."""
MODELS = {
    "gateway.networking.k8s.io": "gateway-api",
    "keda.sh": "keda",
    "monitoring.coreos.com": "prometheus-operator",
}
"""API groups that are added to a cluster, and the npm package with their schemas."""


def kubernetes(source: SourceFolder) -> Iterator[str]:
    """Objects that a version of Kubernetes would refuse."""
    library = _library(source)
    for name, document in _documents(source):
        if _group(document) not in MODELS:
            key = ("schema", json.dumps(document, sort_keys=True))
            for problem in once(key, _problems, library, document):
                yield f"{name}: {problem}"


def _documents(source: SourceFolder) -> Iterator[tuple[str, Document]]:
    """All objects of all shapes, and a name for each."""
    for shape in source.shapes():
        for document in shape.documents:
            yield f"{shape.name}: {title(document)}", document


def _group(document: Document) -> str:
    return str(document.get("apiVersion", "")).partition("/")[0]


def _library(source: SourceFolder) -> ModuleType:
    """kubernetes-validate, which reads each schema once."""
    source.tools.add_python_packages()
    from kubernetes_validate import utils  # noqa: PLC0415 - it is fetched first

    for name in ("schema_contents", "all_versions"):
        function = getattr(utils, name)
        if not hasattr(function, "cache_info"):
            setattr(utils, name, functools.cache(function))
    module: ModuleType = utils
    return module


def _problems(library: ModuleType, document: Document) -> list[str]:
    """The problems of one object, each with the first version that has it."""
    first: dict[str, str] = {}
    least = IMAGE_VOLUMES_FROM if _has_image_volume(document) else KUBERNETES[0]
    for version in KUBERNETES[KUBERNETES.index(least) :]:
        if problem := _problem(library, document, version):
            first.setdefault(problem, version)
    return [f"Kubernetes {version}: {problem}" for problem, version in first.items()]


def _problem(library: ModuleType, document: Document, version: str) -> str:
    try:
        library.validate(document, version, strict=True)
    except library.ValidationError as exc:
        path = ".".join(str(part) for part in exc.path)
        return f"{path}: {exc.message[:200]}"
    except library.SchemaNotFoundError as exc:
        return f"no such kind in {exc.api_version}"
    return ""


def _has_image_volume(document: Document) -> bool:
    volumes: list[Document] = []
    for pod in pods([document]):
        volumes += pod.volumes
    return any("image" in volume for volume in volumes)


SCRIPT = """
const documents = JSON.parse(require("fs").readFileSync(0, "utf8"));
const find = (document) => {
  const [group, version] = document.apiVersion.split("/");
  const file = `${process.argv[1]}/${MODELS[group]}/${group}/${version}/${document.kind}`;
  let model;
  try { model = require(file); }
  catch { return `no such kind in ${document.apiVersion}`; }
  try { new model[document.kind](document).validate(); return ""; }
  catch (error) { return error.message; }
};
console.log(JSON.stringify(documents.map(find)));
"""
_verdicts: dict[str, str] = {}
"""What the models say of each object, as JSON; an empty string is no problem."""


def custom(source: SourceFolder) -> Iterator[str]:
    """Objects that KEDA, the Prometheus operator or the Gateway API would refuse."""
    texts = {
        name: json.dumps(document, sort_keys=True)
        for name, document in _documents(source)
        if _group(document) in MODELS
    }
    if new := sorted(set(texts.values()) - _verdicts.keys()):
        _verdicts.update(zip(new, _ask_models(source, new), strict=True))
    for name, text in texts.items():
        if problem := _verdicts[text]:
            yield f"{name}: {problem}"


def _ask_models(source: SourceFolder, texts: list[str]) -> list[str]:
    folder = source.tools.node_packages / "node_modules/@kubernetes-models"
    script = f"const MODELS = {json.dumps(MODELS)};\n{SCRIPT}"
    result = run(source.tools.node, "-e", script, folder, stdin=f"[{','.join(texts)}]")
    if result.returncode:
        raise UnavailableError(f"node: {last_line(result.stderr)}")
    return list(json.loads(result.stdout))


CHECKS = (
    Check(
        "kubernetes-schemas",
        f"every object fits Kubernetes {KUBERNETES[0]} to {KUBERNETES[-1]}",
        kubernetes,
    ),
    Check(
        "custom-schemas",
        "objects of KEDA, the Prometheus operator and the Gateway API fit their CRDs",
        custom,
    ),
)
