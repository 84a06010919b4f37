"""What is checked: the files of `deploy/`, and what the chart makes of each shape of values."""

import hashlib
import subprocess
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import yaml

from checks.tools import ROOT, ToolFolder, run

Document = dict[str, Any]
"""One Kubernetes object, or another YAML document."""

OURS = ROOT / "deploy"
RELEASE = "fusewire"
NAMESPACE = "fusewire"
KUBERNETES = "1.34.0"
"""The version that the chart is rendered for."""
HELM_4, HELM_3 = "v37", "v32"
HELMS = {HELM_4: "helm 4", HELM_3: "helm 3"}
"""The wheels that hold a helm, and its name."""

P = ParamSpec("P")
T = TypeVar("T")
_results: dict[Hashable, Any] = {}


def once(key: Hashable, find: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `find` returned for the same content before: a fault changes one file of many."""
    if key not in _results:
        _results[key] = find(*args, **kwargs)
    result: T = _results[key]
    return result


class UnreadableError(Exception):
    """What a check reads is broken, which another check says: a shape does not render."""


@dataclass(frozen=True)
class Shape:
    """A common shape of an installation: its values, and what the chart makes of them."""

    name: str
    values: Document
    documents: list[Document]


@dataclass(frozen=True)
class SourceFolder:
    """A folder `deploy/`: the project's own, or a copy with a fault in it."""

    folder: Path
    tools: ToolFolder

    @property
    def chart(self) -> Path:
        """The Helm chart."""
        return self.folder / "helm/fusewire"

    @cached_property
    def values_files(self) -> dict[str, Path]:
        """The values files of the shapes, by name."""
        files = sorted(self.chart.glob("ci/*-values.yaml"))
        return {file.name.removesuffix("-values.yaml"): file for file in files}

    @cached_property
    def chart_digest(self) -> str:
        """A hash of the chart without its shapes."""
        digest = hashlib.sha256()
        for file in sorted(self.chart.rglob("*")):
            if file.is_file() and self.chart / "ci" not in file.parents:
                digest.update(f"{file.relative_to(self.chart)}\0".encode() + file.read_bytes())
        return digest.hexdigest()

    def render(
        self, shape: str, helm: str = HELM_4, settings: tuple[str, ...] = (), turn: int = 0
    ) -> str:
        """What the chart makes of a shape, as text.

        Args:
            shape: its name.
            helm: the wheel with the helm to use.
            settings: values in place of those of the shape, as `--set` takes them.
            turn: another number renders it again.

        Raises:
            UnreadableError: with helm's words.
        """
        values = self.values_files[shape]
        key = ("render", self.chart_digest, values.read_text(), helm, settings, turn)
        result = once(key, self._render, values, helm, settings)
        if result.returncode:
            raise UnreadableError(f"{shape} does not render: {error_line(result.stderr)}")
        return result.stdout

    def _render(
        self, values: Path, helm: str, settings: tuple[str, ...]
    ) -> subprocess.CompletedProcess[str]:
        where = ("--namespace", NAMESPACE, "--kube-version", KUBERNETES)
        more = [f"--set={setting}" for setting in settings]
        command = (self.tools.helm(helm), "template", RELEASE, self.chart, "-f", values)
        return run(*command, *where, *more)

    def documents(
        self, shape: str, helm: str = HELM_4, settings: tuple[str, ...] = ()
    ) -> list[Document]:
        """What the chart makes of a shape."""
        text = self.render(shape, helm, settings)
        return once(("parse", text), parse_all, text)

    def shapes(self) -> Iterator[Shape]:
        """All shapes, rendered."""
        own = parse((self.chart / "values.yaml").read_text())
        for name, file in self.values_files.items():
            yield Shape(name, merge(own, parse(file.read_text())), self.documents(name))

    def path(self, file: Path) -> str:
        """The name of one of its files, for messages."""
        return f"deploy/{file.relative_to(self.folder)}"


Find = Callable[[SourceFolder], Iterable[str]]


@dataclass(frozen=True)
class Check:
    """One check: its name, what holds where it passes, and how to find what does not hold."""

    name: str
    claim: str
    find: Find


def for_shapes(find: Callable[[Shape], Iterable[str]]) -> Find:
    """A check of each shape, from one of a single shape."""

    def find_all(source: SourceFolder) -> Iterator[str]:
        for shape in source.shapes():
            for problem in find(shape):
                yield f"{shape.name}: {problem}"

    return find_all


def parse(text: str) -> Document:
    """The one YAML document of a text."""
    return dict(yaml.load(text, yaml.CSafeLoader) or {})


def parse_all(text: str) -> list[Document]:
    """All YAML documents of a text that are not empty."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def merge(below: Document, above: Document) -> Document:
    """Values as helm merges them: tables key by key, anything else whole.

    >>> merge({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": [4]})
    {'a': {'b': 1, 'c': 3}, 'd': [4]}
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def error_line(text: str) -> str:
    """What helm says is wrong, after what it says before."""
    return one_line(text.partition("Error: ")[2] or last_line(text))


def last_line(text: str) -> str:
    """The last line of a command's output: most tools say there what is wrong."""
    return (text.strip().splitlines() or ["no message"])[-1][:400]


def one_line(text: str) -> str:
    """A command's output on one line."""
    return " ".join(text.split())[:600]
