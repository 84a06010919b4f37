"""Checks of the chart itself: that both helms take it, and that it holds no secret."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema

from checks.manifests import of_kind, pods, title
from checks.model import Check, Deploy, Document, RenderError, last_line, merged, once, parse
from checks.tools import run

CLIENTS = {"v37": "helm 4", "v32": "helm 3"}

BAD_VALUES: tuple[tuple[str, str], ...] = (
    ("a key that nobody reads", "replicaCount: 2"),
    ("a key of a service that nobody reads", "judge: {replica: 2}"),
    ("replicas that are no number", "judge: {replicas: many}"),
    ("fewer replicas than none", "ingest: {replicas: -1}"),
    ("a switch that is no switch", "workerEdge: {enabled: 'yes'}"),
    ("a password for the database", "database: {password: hunter2}"),
    ("the name of a Secret that is no name", "database: {existingSecret: [a]}"),
    ("services that are no table", "dispatcher: null"),
)
"""What people write by mistake; values.schema.json refuses each."""

LITERAL_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|API_KEY|SEED|PEPPER")
PASSWORD_IN_ADDRESS = re.compile(r"://[^/@:\s$]+:[^/@\s$]+@")


def lint(deploy: Deploy) -> Iterator[str]:
    """What `helm lint --strict` says of each shape."""
    if not deploy.shapes:
        yield "the chart has no ci/*-values.yaml"
    for client, name in CLIENTS.items():
        for shape, values in deploy.shapes.items():
            helm = deploy.tools.helm(client)
            command = (helm, "lint", "--strict", "--quiet", deploy.chart, "-f", values)
            key = ("lint", client, deploy.chart_digest, values.read_text())
            result = once(key, lambda c=command: run(*c))
            if result.returncode:
                yield f"{name}: {shape}: {_lint_words(result.stdout + result.stderr)}"


def _lint_words(output: str) -> str:
    lines = [line for line in output.splitlines() if re.match(r"\[(ERROR|WARNING)\]", line)]
    return "; ".join(lines) or last_line(output)


def render(deploy: Deploy) -> Iterator[str]:
    """Shapes that one of the helms cannot render."""
    for client, name in CLIENTS.items():
        for shape in deploy.shapes:
            try:
                deploy.documents(shape, client)
            except RenderError as exc:
                yield f"{name}: {exc}"


def same(deploy: Deploy) -> Iterator[str]:
    """Where the helms make different objects of the same values."""
    for shape in deploy.shapes:
        made = [
            {title(document): document for document in deploy.documents(shape, client)}
            for client in CLIENTS
        ]
        for name in sorted(made[0].keys() | made[1].keys()):
            if made[0].get(name) != made[1].get(name):
                yield f"{shape}: {name} differs between helm 4 and helm 3"


def no_secrets(deploy: Deploy) -> Iterator[str]:
    """Secrets that the chart would make, or would make anew with each rendering."""
    for shape in deploy.shapes:
        documents = deploy.documents(shape)
        if deploy.rendered(shape, turn=1) != deploy.rendered(shape):
            yield f"{shape}: two renderings differ: something is made up anew each time"
        for secret in of_kind(documents, "Secret"):
            yield f"{shape}: {title(secret)} is rendered: name an existing Secret instead"
        for pod in pods(documents):
            for container in pod.every_container:
                for variable in container.get("env") or []:
                    value = str(variable.get("value", ""))
                    if value and LITERAL_SECRET.search(variable["name"]):
                        yield f"{shape}: {pod.title}: {variable['name']} is written out"
        if found := PASSWORD_IN_ADDRESS.search(deploy.rendered(shape)):
            yield f"{shape}: an address holds a password: {found[0].split(':')[1]}:…"


def values_schema(deploy: Deploy) -> Iterator[str]:
    """Bad values that values.schema.json takes, and good ones that it refuses."""
    file = deploy.chart / "values.schema.json"
    if not file.is_file():
        yield f"{deploy.path(file)} is missing"
        return
    schema = json.loads(file.read_text())
    validator = jsonschema.validators.validator_for(schema)(schema)
    own = parse((deploy.chart / "values.yaml").read_text())
    for what, text in BAD_VALUES:
        if _accepts(validator, merged(own, parse(text))):
            yield f"{what} is taken: {text}"
    for path in _open_tables(schema, "values"):
        yield f"{path} takes keys that it does not name: add additionalProperties"
    # Helm itself reads the schema: one bad value through each shows that it does.
    for client, name in CLIENTS.items():
        what, text = BAD_VALUES[0]
        helm = deploy.tools.helm(client)
        key, value = text.split(": ")
        if run(helm, "template", "x", deploy.chart, "--set", f"{key}={value}").returncode == 0:
            yield f"{name} does not refuse {what}: {text}"


def _accepts(validator: Any, values: Document) -> bool:
    return bool(validator.is_valid(values))


def _open_tables(schema: Document, path: str) -> Iterator[str]:
    """Tables with named keys that take any other key too."""
    properties = schema.get("properties") or {}
    if properties and "additionalProperties" not in schema and "$ref" not in schema:
        yield path
    for name, below in properties.items():
        if isinstance(below, dict):
            yield from _open_tables(below, f"{path}.{name}")


def readme(deploy: Deploy) -> Iterator[str]:
    """The chart's README where it is not what the values make of it."""
    file = deploy.chart / "README.md"
    values = deploy.chart / "values.yaml"
    if not file.is_file():
        yield f"{deploy.path(file)} is missing"
        return
    written = file.read_text()
    made = once(("readme", written, values.read_text()), lambda: _readme(deploy, written, values))
    if made != written:
        yield f"{deploy.path(file)} is not what values.yaml makes of it: run deploy/check --write"


def write_readme(deploy: Deploy) -> None:
    """Write the table of values into the chart's README."""
    file = deploy.chart / "README.md"
    file.write_text(_readme(deploy, file.read_text(), deploy.chart / "values.yaml"))


def _readme(deploy: Deploy, written: str, values: Path) -> str:
    generator = deploy.tools.node_packages / "node_modules/.bin/readme-generator"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "README.md"
        copy.write_text(written)
        shutil.copy(values, folder)
        command = (deploy.tools.node, generator, "-v", Path(folder) / "values.yaml", "-r", copy)
        result = run(*command)
        if result.returncode:
            return f"the generator failed: {last_line(result.stdout + result.stderr)}"
        return copy.read_text()


CHECKS = (
    Check("helm-render", "helm 4 and helm 3 render every shape", render),
    Check("helm-lint", "helm 4 and helm 3 lint every shape, strictly", lint),
    Check("helm-agree", "helm 4 and helm 3 make the same objects", same),
    Check("no-secrets", "no Secret is rendered, none is made up, none is written out", no_secrets),
    Check("values-schema", "values.schema.json refuses what people write by mistake", values_schema),
    Check("chart-readme", "the chart's README is what its values make of it", readme),
)
