"""What is checked: the deployment's files, and what the chart makes of each shape of values."""

import hashlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from checks.tools import ROOT, Tools, run

Document = dict[str, Any]
"""One Kubernetes object, or another YAML document."""

RELEASE = "fusewire"
NAMESPACE = "fusewire"
KUBERNETES = "1.34.0"
"""The version that charts are rendered for."""

T = TypeVar("T")
_known: dict[Hashable, Any] = {}


def once(key: Hashable, find: Callable[[], T]) -> T:
    """What was found for the same content before: a planted error changes one file of many."""
    if key not in _known:
        _known[key] = find()
    found: T = _known[key]
    return found


class RenderError(Exception):
    """Helm cannot render a shape."""


@dataclass(frozen=True)
class Check:
    """One check: its name, what holds where it passes, and how to find what does not hold."""

    name: str
    says: str
    find: Callable[["Deploy"], Iterable[str]]


@dataclass(frozen=True)
class Deploy:
    """A folder `deploy/`, the project's own or a copy with an error planted in it."""

    folder: Path
    tools: Tools

    @property
    def chart(self) -> Path:
        """The Helm chart."""
        return self.folder / "helm/fusewire"

    @cached_property
    def shapes(self) -> dict[str, Path]:
        """The values files of the common shapes of an installation, by name."""
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

    def rendered(
        self, shape: str, client: str = "v37", settings: tuple[str, ...] = (), turn: int = 0
    ) -> str:
        """What the helm of a client makes of a shape; another turn renders it again.

        Args:
            shape: its name.
            client: `v37` or `v32`.
            settings: values in place of those of the shape, as `--set` takes them.
            turn: another number renders it again.

        Raises:
            RenderError: with helm's words.
        """
        values = self.shapes[shape]
        key = ("template", self.chart_digest, values.read_text(), client, settings, turn)
        result = once(key, lambda: self._template(values, client, settings))
        if result.returncode:
            raise RenderError(f"{shape} does not render: {error_line(result.stderr)}")
        return str(result.stdout)

    def _template(self, values: Path, client: str, settings: tuple[str, ...]) -> Any:
        helm = self.tools.helm(client)
        where = ("--namespace", NAMESPACE, "--kube-version", KUBERNETES)
        more = [f"--set={setting}" for setting in settings]
        return run(helm, "template", RELEASE, self.chart, "-f", values, *where, *more)

    def documents(
        self, shape: str, client: str = "v37", settings: tuple[str, ...] = ()
    ) -> list[Document]:
        """The same, parsed."""
        text = self.rendered(shape, client, settings)
        return once(("parsed", text), lambda: parse_all(text))

    def values(self, shape: str) -> Document:
        """The values of a shape: the chart's own, and over them those of the shape."""
        own = parse((self.chart / "values.yaml").read_text())
        return merged(own, parse(self.shapes[shape].read_text()))

    def path(self, file: Path) -> str:
        """The name of one of its files, for messages."""
        return f"deploy/{file.relative_to(self.folder)}"


OURS = ROOT / "deploy"


def parse(text: str) -> Document:
    """The one YAML document of a text."""
    return dict(yaml.load(text, yaml.CSafeLoader) or {})  # noqa: S506 - a safe loader, in C


def parse_all(text: str) -> list[Document]:
    """All YAML documents of a text that are not empty."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def merged(below: Document, above: Document) -> Document:
    """Values as helm merges them: tables key by key, anything else whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def error_line(text: str) -> str:
    """The line in which helm says what is wrong."""
    lines = [line for line in text.splitlines() if line.startswith("Error:")]
    return (lines or [last_line(text)])[0].removeprefix("Error: ")[:400]


def last_line(text: str) -> str:
    """The last line of a command's output: most tools say there what is wrong."""
    return (text.strip().splitlines() or ["no message"])[-1][:400]
