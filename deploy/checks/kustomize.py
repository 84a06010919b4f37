"""`deploy/kustomize`: the chart for teams without Helm, made from its rendering and compared with it.

The base is the shape `small`. An overlay of it holds what another shape adds, patches and deletes.
A shape that shares nothing with the base stands alone.
"""

import copy
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml

from checks.manifests import COMPONENT, of_kind, pods, title
from checks.model import Check, Deploy, Document, RenderError, last_line, once, parse_all
from checks.tools import run

BASE = "small"
OVERLAYS = ("production", "air-gapped")
ALONE = ("edge-site",)
CONFIG_FILE = "fusewire.json"
HEADER = "# Made by `deploy/check --write` from deploy/helm/fusewire; change the chart, not this file.\n"
HELM_LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by")
CHECKSUM = "checksum/"
ARGO_HOOKS = ("prepare.hooks.helm=false", "prepare.hooks.argocd=true")
"""Argo CD reads these in kustomizations too. `kubectl apply` knows no hooks: README.md has the
order."""


def wanted(deploy: Deploy, shape: str) -> dict[str, Document]:
    """The objects of a shape as they are without Helm, by name."""
    made = {}
    for document in deploy.documents(shape, settings=ARGO_HOOKS):
        if (document["metadata"].get("labels") or {}).get(COMPONENT) == "test":
            continue  # only `helm test` runs these
        made[title(document)] = _plain(document)
    return made


def _plain(document: Document) -> Document:
    """An object without what only Helm reads, and without checksums, which kustomize makes."""
    plain = copy.deepcopy(document)
    for metadata in (plain["metadata"], *(pod_metadata(plain))):
        for label in HELM_LABELS:
            (metadata.get("labels") or {}).pop(label, None)
        annotations = metadata.get("annotations") or {}
        for name in [name for name in annotations if name.startswith(CHECKSUM)]:
            del annotations[name]
        if not annotations:
            metadata.pop("annotations", None)
    return plain


def pod_metadata(document: Document) -> list[Document]:
    """The metadata of an object's pods."""
    spec = document.get("spec") or {}
    template = spec.get("template") if list(pods([document])) else None
    return [template["metadata"]] if template and "metadata" in template else []


def write(deploy: Deploy) -> None:
    """Write all kustomizations anew."""
    folder = deploy.folder / "kustomize"
    base = wanted(deploy, BASE)
    for name in ("base", "overlays"):
        shutil.rmtree(folder / name, ignore_errors=True)
    _write_whole(folder / "base", base)
    for shape in OVERLAYS:
        if shape in deploy.shapes:
            _write_overlay(folder / "overlays" / shape, base, wanted(deploy, shape))
    for shape in ALONE:
        if shape in deploy.shapes:
            _write_whole(folder / "overlays" / shape, wanted(deploy, shape))


def _write_whole(folder: Path, objects: dict[str, Document]) -> None:
    """A kustomization with a file for each service, and one for what they share."""
    folder.mkdir(parents=True)
    kept, generators = _generators(folder, objects)
    files: dict[str, list[Document]] = {}
    for document in kept.values():
        component = (document["metadata"].get("labels") or {}).get(COMPONENT, "shared")
        files.setdefault(f"{component}.yaml", []).append(document)
    for name, documents in files.items():
        _write_yaml(folder / name, documents)
    _write_kustomization(folder, {"resources": sorted(files), "configMapGenerator": generators})


def _write_overlay(folder: Path, base: dict[str, Document], objects: dict[str, Document]) -> None:
    """A kustomization with the differences from the base."""
    folder.mkdir(parents=True)
    kept, generators = _generators(folder, objects, replaced=base)
    added = [document for name, document in kept.items() if name not in base]
    resources = ["../../base"]
    if added:
        _write_yaml(folder / "added.yaml", added)
        resources.append("added.yaml")
    patches = []
    for name, old in base.items():
        if name in objects and name not in kept:
            continue  # its generator replaces it
        target = {"kind": old["kind"], "name": old["metadata"]["name"]}
        if name not in objects:
            deletion = {"apiVersion": old["apiVersion"], "kind": old["kind"]}
            deletion |= {"metadata": {"name": target["name"]}, "$patch": "delete"}
            patches.append({"target": target, "patch": _text(deletion)})
        elif steps := list(differences(old, objects[name])):
            patches.append({"target": target, "patch": _text(steps)})
    _write_kustomization(
        folder, {"resources": resources, "configMapGenerator": generators, "patches": patches}
    )


def _generators(
    folder: Path, objects: dict[str, Document], replaced: dict[str, Document] | None = None
) -> tuple[dict[str, Document], list[Document]]:
    """Take the configuration out of the objects into a generator.

    Its name then ends with a hash of the content, so that a change restarts the pods.
    """
    kept, generators = dict(objects), []
    mounted = _mounted(objects.values())
    for name, document in objects.items():
        if document["kind"] != "ConfigMap" or document["metadata"]["name"] not in mounted:
            continue
        old = (replaced or {}).get(name)
        if old != document:
            (folder / CONFIG_FILE).write_text(document["data"][CONFIG_FILE])
            generator = {"name": document["metadata"]["name"], "files": [CONFIG_FILE]}
            if old:
                generator["behavior"] = "replace"
            kinds = ("labels", "annotations")
            options = {kind: document["metadata"].get(kind) for kind in kinds}
            generator["options"] = {kind: notes for kind, notes in options.items() if notes}
            generators.append(generator)
        del kept[name]
    return kept, generators


def _mounted(documents: Iterable[Document]) -> set[str]:
    """The ConfigMaps that pods mount."""
    volumes = [v for pod in pods(documents) for v in pod.spec.get("volumes") or []]
    return {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}


def differences(old: Any, new: Any, path: str = "") -> Iterator[Document]:
    """The steps of a JSON patch (RFC 6902) that make `new` of `old`.

    >>> list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d/e": 4}))
    [{'op': 'replace', 'path': '/a/b', 'value': 3}, {'op': 'remove', 'path': '/a/c'}, \
{'op': 'add', 'path': '/d~1e', 'value': 4}]
    """
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            below = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key in new:
                yield from differences(old[key], new[key], below)
            else:
                yield {"op": "remove", "path": below}
        for key in [key for key in new if key not in old]:
            below = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            yield {"op": "add", "path": below, "value": new[key]}
    elif isinstance(old, list) and isinstance(new, list):
        yield from _of_lists(old, new, path)
    else:
        yield {"op": "replace", "path": path, "value": new}


def _of_lists(old: list[Any], new: list[Any], path: str) -> Iterator[Document]:
    """The steps for a list, whose entries are known by their names, as in a pod's variables."""
    names = [[_entry_name(entry) for entry in entries] for entries in (old, new)]
    at = 0  # how far the patched list is done
    for _, old_start, old_end, start, end in SequenceMatcher(None, *names, False).get_opcodes():
        pairs = zip(old[old_start:old_end], new[start:end], strict=False)
        for one, other in pairs:
            yield from differences(one, other, f"{path}/{at}")
            at += 1
        for _ in range(old_end - old_start - (end - start)):
            yield {"op": "remove", "path": f"{path}/{at}"}
        for entry in new[start + old_end - old_start : end]:
            yield {"op": "add", "path": f"{path}/{at}", "value": entry}
            at += 1


def _entry_name(entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return str(name) if name else json.dumps(entry, sort_keys=True)


class _Dumper(yaml.SafeDumper):
    """Writes long texts as blocks, and lists as Kubernetes' own examples do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        """Indent the entries of lists."""
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - write everything out
        """No anchors: kubectl reads them, people do not."""
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)


def _text(document: object) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _write_yaml(file: Path, documents: list[Document]) -> None:
    file.write_text(HEADER + "".join(f"---\n{_text(document)}" for document in documents))


def _write_kustomization(folder: Path, content: Document) -> None:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    kept = {key: value for key, value in content.items() if value}
    (folder / "kustomization.yaml").write_text(HEADER + _text({**head, **kept}))


def check(deploy: Deploy) -> Iterator[str]:
    """Kustomizations that do not build, or build something else than the chart does."""
    folder = deploy.folder / "kustomize"
    for shape in (BASE, *OVERLAYS, *ALONE):
        kustomization = folder / ("base" if shape == BASE else f"overlays/{shape}")
        if shape not in deploy.shapes:
            yield f"{deploy.path(kustomization)}: the chart has no values for it"
            continue
        result = once(_key(folder, shape), lambda k=kustomization: _build(deploy, k))
        if result.returncode:
            yield f"{deploy.path(kustomization)} does not build: {last_line(result.stderr)}"
            continue
        made = wanted(deploy, shape)
        built = {title(d): d for d in parse_all(_without_hashes(result.stdout, made))}
        for name, problem in _compared(built, made):
            yield f"{deploy.path(kustomization)}: {name} {problem}: run deploy/check --write"


def _key(folder: Path, shape: str) -> tuple[str, ...]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return ("kustomize", shape, *(f"{file.relative_to(folder)}\0{file.read_text()}" for file in files))


def _build(deploy: Deploy, kustomization: Path) -> Any:
    return run(deploy.tools.kubectl("v37"), "kustomize", kustomization)


def _without_hashes(built: str, made: dict[str, Document]) -> str:
    """What was built, with the plain names of generated objects in place of the hashed ones."""
    maps = {d["metadata"]["name"] for d in of_kind(parse_all(built), "ConfigMap")}
    for name in _mounted(made.values()):
        for hashed in maps:
            if re.fullmatch(rf"{re.escape(name)}-[a-z0-9]{{10}}", hashed):
                built = re.sub(rf"\b{hashed}$", name, built, flags=re.MULTILINE)
    return built


def _compared(built: dict[str, Document], made: dict[str, Document]) -> Iterator[tuple[str, str]]:
    for name in sorted(built.keys() | made.keys()):
        if name not in made:
            yield name, "is not in the chart"
        elif name not in built:
            yield name, "is missing"
        elif steps := list(differences(built[name], made[name])):
            yield name, f"differs at {steps[0]['path']}"


CHECKS = (Check("kustomize", "each kustomization builds what the chart renders", check),)
