"""`deploy/kustomize`: the chart for teams without Helm, made from it and compared with it.

The base is the shape `small`. An overlay of it holds what another shape adds, patches and deletes.
A shape that shares nothing with the base stands alone.
"""

import copy
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from checks.manifests import component_of, name_of, of_kind, pods, title
from checks.model import Check, Document, SourceFolder, last_line, once, parse_all
from checks.patches import differences
from checks.tools import run

BASE = "small"
OVERLAYS = ("production", "air-gapped")
ALONE = ("edge-site",)
CONFIG_FILE = "fusewire.json"
HEADER = (
    "# Made by `deploy/check --write` from deploy/helm/fusewire; change the chart, not this file.\n"
)
HELM_LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by")
CHECKSUM = "checksum/"
ARGO_HOOKS = ("prepare.hooks.helm=false", "prepare.hooks.argocd=true")
"""Argo CD reads these in kustomizations too. `kubectl apply` knows no hooks: README.md has the
order."""

Objects = dict[str, Document]
"""Kubernetes objects by kind and name."""


def objects_of(source: SourceFolder, shape: str) -> Objects:
    """The objects of a shape as they are without Helm."""
    documents = source.documents(shape, settings=ARGO_HOOKS)
    # Only `helm test` runs the tests.
    kept_documents = [document for document in documents if component_of(document) != "test"]
    return {title(document): _without_helm(document) for document in kept_documents}


def _without_helm(document: Document) -> Document:
    """An object without what only Helm reads, and without checksums: kustomize has its own."""
    plain = copy.deepcopy(document)
    template = plain.get("spec", {}).get("template", {})
    for metadata in (plain["metadata"], template.get("metadata", {})):
        for label in HELM_LABELS:
            metadata.get("labels", {}).pop(label, None)
        annotations = metadata.pop("annotations", None) or {}
        notes = {name: v for name, v in annotations.items() if not name.startswith(CHECKSUM)}
        if notes:
            metadata["annotations"] = notes
    return plain


def write(source: SourceFolder) -> None:
    """Write all kustomizations anew."""
    folder = source.folder / "kustomize"
    base = objects_of(source, BASE)
    for name in ("base", "overlays"):
        shutil.rmtree(folder / name, ignore_errors=True)
    _write_whole(folder / "base", base)
    for shape in OVERLAYS:
        _write_overlay(folder / "overlays" / shape, base, objects_of(source, shape))
    for shape in ALONE:
        _write_whole(folder / "overlays" / shape, objects_of(source, shape))


def _write_whole(folder: Path, objects: Objects) -> None:
    """A kustomization with a file for each service, and one for what they share."""
    folder.mkdir(parents=True)
    configs = _configs(objects)
    files: dict[str, list[Document]] = {}
    for name, document in objects.items():
        if name not in configs:
            files.setdefault(f"{component_of(document) or 'shared'}.yaml", []).append(document)
    for file, documents in files.items():
        _write_yaml(folder / file, documents)
    generators = [_generator(folder, config) for config in configs.values()]
    _write_kustomization(folder, {"resources": sorted(files), "configMapGenerator": generators})


def _write_overlay(folder: Path, base: Objects, objects: Objects) -> None:
    """A kustomization with the differences from the base."""
    folder.mkdir(parents=True)
    configs = _configs(objects)
    resources = ["../../base"]
    new = [document for name, document in objects.items() if name not in {*base, *configs}]
    if new:
        _write_yaml(folder / "added.yaml", new)
        resources.append("added.yaml")
    generators: list[Document] = []
    patches: list[Document] = []
    for name, config in configs.items():
        behavior = "replace" if name in base else "create"
        generators.append({**_generator(folder, config), "behavior": behavior})
    for name in base.keys() - configs.keys():
        patches += _patches(base[name], objects.get(name))
    patches.sort(key=lambda patch: (patch["target"]["kind"], patch["target"]["name"]))
    _write_kustomization(
        folder, {"resources": resources, "configMapGenerator": generators, "patches": patches}
    )


def _patches(old: Document, new: Document | None) -> Iterator[Document]:
    """What makes an overlay's object of that of the base."""
    target = {"kind": old["kind"], "name": name_of(old)}
    if new is None:
        metadata = {"name": name_of(old)}
        deletion = {"apiVersion": old["apiVersion"], "kind": old["kind"], "metadata": metadata}
        yield {"target": target, "patch": _text({**deletion, "$patch": "delete"})}
    elif steps := list(differences(old, new)):
        yield {"target": target, "patch": _text(steps)}


def _configs(objects: Objects) -> Objects:
    """The ConfigMaps that pods mount."""
    volumes: list[Document] = []
    for pod in pods(objects.values()):
        volumes += pod.volumes
    names = {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
    return {
        title(config): config
        for config in of_kind(objects.values(), "ConfigMap")
        if name_of(config) in names
    }


def _generator(folder: Path, config: Document) -> Document:
    """What makes a ConfigMap of a file.

    Its name then ends with a hash of the content, so that a change restarts the pods.
    """
    (folder / CONFIG_FILE).write_text(config["data"][CONFIG_FILE])
    kinds = [kind for kind in ("labels", "annotations") if config["metadata"].get(kind)]
    options = {kind: config["metadata"][kind] for kind in kinds}
    return {"name": name_of(config), "files": [CONFIG_FILE], "options": options}


class _Writer(yaml.SafeDumper):  # type: ignore[misc]
    """Writes long texts as blocks, and lists as Kubernetes' own examples do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - as above
        """Indent the entries of lists too."""
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - write everything out
        """No anchors: kubectl reads them, people do not."""
        return True


def _block(writer: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _block)


def _text(document: object) -> str:
    options = {"sort_keys": False, "width": 120, "allow_unicode": True}
    text: str = yaml.dump(document, Dumper=_Writer, **options)
    return text


def _write_yaml(file: Path, documents: Iterable[Document]) -> None:
    file.write_text(HEADER + "".join(f"---\n{_text(document)}" for document in documents))


def _write_kustomization(folder: Path, content: Document) -> None:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    parts = {key: value for key, value in content.items() if value}
    (folder / "kustomization.yaml").write_text(HEADER + _text({**head, **parts}))


def compare(source: SourceFolder) -> Iterator[str]:
    """Kustomizations that do not build, or build something else than the chart does."""
    folder = source.folder / "kustomize"
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    texts = tuple(f"{file.relative_to(folder)}\0{file.read_text()}" for file in files)
    for shape in (BASE, *OVERLAYS, *ALONE):
        place = folder / ("base" if shape == BASE else f"overlays/{shape}")
        kubectl = source.tools.kubectl("v37")
        result = once(("kustomize", shape, texts), run, kubectl, "kustomize", place)
        if result.returncode:
            yield f"{source.path(place)} does not build: {last_line(result.stderr)}"
            continue
        for problem in _compare(result.stdout, objects_of(source, shape)):
            yield f"{source.path(place)}: {problem}: run deploy/check --write"


def _compare(text: str, objects: Objects) -> Iterator[str]:
    build = {title(document): document for document in parse_all(_without_hashes(text, objects))}
    for name in sorted(build.keys() | objects.keys()):
        if name not in objects:
            yield f"{name} is not in the chart"
        elif name not in build:
            yield f"{name} is missing"
        elif steps := list(differences(build[name], objects[name])):
            yield f"{name} differs at {steps[0]['path']}"


def _without_hashes(text: str, objects: Objects) -> str:
    """What was built, with the plain names of ConfigMaps in place of those with a hash."""
    names = [name_of(config) for config in of_kind(parse_all(text), "ConfigMap")]
    for config in _configs(objects).values():
        pattern = re.compile(rf"{re.escape(name_of(config))}-[a-z0-9]{{10}}")
        for name in filter(pattern.fullmatch, names):
            text = re.sub(rf"\b{name}$", name_of(config), text, flags=re.MULTILINE)
    return text


CHECKS = (Check("kustomize", "each kustomization builds what the chart renders", compare),)
