"""The Helm chart as far as no helm is needed; `chart_rendering.py` has the rest."""

import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from checks.model import merge
from fusewire.settings import Settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy/helm/fusewire"
SHAPES = sorted((CHART / "ci").glob("*-values.yaml"))
CONFIGURATIONS = [*(ROOT / "examples").glob("*.toml"), *(ROOT / "cli/fusewire_cli").glob("*.toml")]

Values = dict[str, Any]


def read(path: Path) -> Values:
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict)
    return values


def fault(values: Values) -> str | None:
    """What the schema says of values over values.yaml; None if it takes them."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(values))
    return f"{error.json_path}: {error.message}" if error else None


@pytest.fixture
def defaults() -> Values:
    return read(CHART / "values.yaml")


@pytest.fixture(scope="module")
def config_schema() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "config_schema", ROOT / "deploy/helm/config_schema.py"
    )
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the schema -------------------------------------------------------------------------------


def test_the_schema_of_config_is_that_of_the_settings(config_schema: ModuleType) -> None:
    written = (CHART / "values.schema.json").read_text()
    assert written == config_schema.text(), "run make docs"


def test_the_default_values_pass(defaults: Values) -> None:
    assert fault(defaults) is None


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_a_shape_passes_and_its_config_is_usable(path: Path, defaults: Values) -> None:
    shape = merge(defaults, read(path))
    assert fault(shape) is None
    assert Settings(**shape["config"]).models


def test_the_shapes_are_those_that_the_readme_names() -> None:
    names = [path.name.removesuffix("-values.yaml") for path in SHAPES]
    assert names == ["air-gapped", "edge-site", "production", "small"]
    readme = (CHART / "README.md").read_text()
    assert not [name for name in names if f"`{name}`" not in readme]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_a_configuration_file_passes_as_config(path: Path, defaults: Values) -> None:
    defaults["config"] = tomllib.loads(path.read_text())
    for section, keys in (("database", ["url"]), ("nats", ["url"]), ("http", ["port"])):
        for key in keys:
            defaults["config"].get(section, {}).pop(key, None)
    assert Settings(**defaults["config"]).models
    assert fault(defaults) is None


MISTAKES = [
    ("ingest: {replicaz: 2}", "$.ingest: ", "'replicaz' was unexpected"),
    ("judge: {replicas: two}", "$.judge.replicas: ", "'two' is not of type 'integer'"),
    ("database: {password: hunter2}", "$.database: ", "'password' was unexpected"),
    ("database: {existingSecret: ''}", "$.database.existingSecret: ", "does not match"),
    ("ingest: {image: {digest: latest}}", "$.ingest.image.digest: ", "does not match"),
    ("networkPolicy: {nats: {to: []}}", "$.networkPolicy.nats.to: ", "non-empty"),
    ("config: {database: {url: x}}", "$.config.database: ", "'url' was unexpected"),
    ("config: {data_dir: /data}", "$.config: ", "'data_dir' was unexpected"),
    ("config: {limits: {drain_s: 0}}", "$.config.limits.drain_s: ", "minimum of 0"),
    ("config: {models: {m: {kind: local}}}", "$.config.models.m.kind: ", "'local' is not one of"),
    (
        "config: {models: {m: {kind: edge, path: /m, thread: 2}}}",
        "$.config.models.m: ",
        "'thread' was unexpected",
    ),
    (
        "config: {models: {m: {kind: remote, model: x}}}",
        "$.config.models.m: ",
        "'base_url' is a required property",
    ),
    (
        "config: {pools: {p: {members: [{name: a, modle: m}]}}}",
        "$.config.pools.p.members[0]: ",
        "'modle' was unexpected",
    ),
    ("config: {pools: {Default: {members: [m]}}}", "$.config.pools: ", "'Default' does not match"),
]
"""A mistake, the place that the message must name, and what is wrong there."""


@pytest.mark.parametrize(("text", "place", "reason"), MISTAKES, ids=[text for text, *_ in MISTAKES])
def test_a_mistake_is_refused_by_its_place(
    text: str, place: str, reason: str, defaults: Values
) -> None:
    message = fault(merge(defaults, yaml.safe_load(text)))
    assert message
    assert message.startswith(place)
    assert reason in message


def test_what_config_may_not_have_the_chart_sets_itself(config_schema: ModuleType) -> None:
    env = (CHART / "templates/_pod.tpl").read_text()
    secret_or_fixed = {"analyst_url", "pepper_env"}
    for section, keys in config_schema.BY_CHART.items():
        names = [f"{section}__{key}" for key in keys] if keys else [section]
        for name in names:
            if name.rpartition("__")[2] not in secret_or_fixed:
                assert f"FUSEWIRE_{name.upper()}\n" in env, name


# -- the README -------------------------------------------------------------------------------

PARAMETER = re.compile(r"^ *## @param (\S+) (?:\[.*?\] )?(\S.*)$", re.MULTILINE)


def leaves(values: Values, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_value_has_a_row_in_the_readme(defaults: Values) -> None:
    described = dict(PARAMETER.findall((CHART / "values.yaml").read_text()))
    rows = re.findall(
        r"^\| `(\S+)` +\| (.+?) +\| `", (CHART / "README.md").read_text(), re.MULTILINE
    )
    assert dict(rows) == described, "run deploy/check --write"
    for leaf in leaves(defaults):
        parts = leaf.split(".")
        prefixes = {".".join(parts[: length + 1]) for length in range(len(parts))}
        assert prefixes & described.keys(), f"{leaf} has no @param in values.yaml"


# -- the folder -------------------------------------------------------------------------------


def test_the_chart_has_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = read(CHART / "Chart.yaml")
    assert chart["appVersion"] == project["version"]
    assert "dependencies" not in chart  # they would have to be fetched before anything renders


@pytest.mark.parametrize("name", ["rules.yaml", "dashboard.json"])
def test_alerts_and_dashboard_are_those_of_the_deployment(name: str) -> None:
    link = CHART / "files" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / "deploy/alerts" / name
