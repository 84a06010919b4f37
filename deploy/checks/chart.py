"""Checks of the chart itself: both helms take it, and its schema and README fit its values."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jsonschema

from checks.manifests import title
from checks.model import (
    HELM_3,
    HELMS,
    Check,
    Document,
    SourceFolder,
    UnreadableError,
    last_line,
    merge,
    once,
    parse,
)
from checks.tools import run

MISTAKES: tuple[tuple[str, str], ...] = (
    ("a key that nobody reads", "replicaCount: 2"),
    ("a key of a service that nobody reads", "judge: {replica: 2}"),
    ("replicas that are no number", "judge: {replicas: many}"),
    ("fewer replicas than none", "ingest: {replicas: -1}"),
    ("a switch that is no switch", "workerEdge: {enabled: 'yes'}"),
    ("a password for the database", "database: {password: hunter2}"),
    ("the name of a Secret that is no name", "database: {existingSecret: [a]}"),
    ("services that are no table", "dispatcher: null"),
    ("a model of no kind", "config: {models: {m: {kind: cloud}}}"),
)
"""Values that people write by mistake; values.schema.json refuses each."""


def render(source: SourceFolder) -> Iterator[str]:
    """Shapes that one of the helms cannot render."""
    if not source.values_files:
        yield "the chart has no ci/*-values.yaml"
    for helm, name in HELMS.items():
        for shape in source.values_files:
            try:
                source.documents(shape, helm)
            except UnreadableError as exc:
                yield f"{name}: {exc}"


def lint(source: SourceFolder) -> Iterator[str]:
    """What `helm lint --strict` says of each shape."""
    for helm, name in HELMS.items():
        for shape, values in source.values_files.items():
            source.render(shape)  # what does not render is not linted either
            command = ("lint", "--strict", "--quiet", source.chart, "-f", values)
            key = ("lint", helm, source.chart_digest, values.read_text())
            result = once(key, run, source.tools.helm(helm), *command)
            if result.returncode:
                yield f"{name}: {shape}: {_lint_lines(result.stdout + result.stderr)}"


def _lint_lines(output: str) -> str:
    lines = [line for line in output.splitlines() if re.match(r"\[(ERROR|WARNING)\]", line)]
    return "; ".join(lines) or last_line(output)


def agree(source: SourceFolder) -> Iterator[str]:
    """Where the helms make different objects of the same values."""
    for shape in source.values_files:
        if source.render(shape, turn=1) != source.render(shape):
            continue  # one helm does not even agree with itself: no-secrets says so
        for name in _differing(source.documents(shape), source.documents(shape, HELM_3)):
            yield f"{shape}: {name} differs between helm 4 and helm 3"


def _differing(new: list[Document], old: list[Document]) -> list[str]:
    new_objects = {title(document): document for document in new}
    old_objects = {title(document): document for document in old}
    names = new_objects.keys() | old_objects.keys()
    return sorted(name for name in names if new_objects.get(name) != old_objects.get(name))


def values_schema(source: SourceFolder) -> Iterator[str]:
    """Bad values that values.schema.json takes."""
    schema = json.loads((source.chart / "values.schema.json").read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    own = parse((source.chart / "values.yaml").read_text())
    for what, text in MISTAKES:
        if validator.is_valid(merge(own, parse(text))):
            yield f"{what} is taken: {text}"
    for path in _open_tables(schema, "values"):
        yield f"{path} takes keys that it does not name: add additionalProperties"
    # Helm itself reads the schema: one bad value for each helm shows that it does.
    for helm, name in HELMS.items():
        command = (source.tools.helm(helm), "template", "x", source.chart)
        if run(*command, "--set", "replicaCount=2").returncode == 0:
            yield f"{name} does not refuse a key that nobody reads: replicaCount=2"


def _open_tables(schema: Document, path: str) -> Iterator[str]:
    """Tables with named keys that take any other key too."""
    properties = schema.get("properties") or {}
    if properties and not schema.keys() & {"additionalProperties", "$ref"}:
        yield path
    for name, below in properties.items():
        if isinstance(below, dict):
            yield from _open_tables(below, f"{path}.{name}")


def readme(source: SourceFolder) -> Iterator[str]:
    """The chart's README where it is not what the values make of it."""
    file = source.chart / "README.md"
    text, values = file.read_text(), source.chart / "values.yaml"
    key = ("readme", text, values.read_text())
    if once(key, _fill_readme, source, text, values) != text:
        yield f"{source.path(file)} is not what values.yaml makes of it: run deploy/check --write"


def write_readme(source: SourceFolder) -> None:
    """Write the table of values into the chart's README."""
    file = source.chart / "README.md"
    file.write_text(_fill_readme(source, file.read_text(), source.chart / "values.yaml"))


def _fill_readme(source: SourceFolder, text: str, values: Path) -> str:
    generator = source.tools.node_packages / "node_modules/.bin/readme-generator"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "README.md"
        file.write_text(text)
        shutil.copy(values, folder)
        command = (source.tools.node, generator, "-v", Path(folder) / "values.yaml", "-r", file)
        result = run(*command)
        if result.returncode:
            raise UnreadableError(f"readme-generator: {last_line(result.stdout + result.stderr)}")
        return file.read_text()


CHECKS = (
    Check("helm-render", "helm 4 and helm 3 render every shape", render),
    Check("helm-lint", "helm 4 and helm 3 lint every shape, strictly", lint),
    Check("helm-agree", "helm 4 and helm 3 make the same objects", agree),
    Check(
        "values-schema", "values.schema.json refuses what people write by mistake", values_schema
    ),
    Check("chart-readme", "the chart's README is what its values make of it", readme),
)
