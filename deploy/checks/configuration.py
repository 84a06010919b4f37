"""What Fusewire itself says of the variables and the configuration that it is given."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from checks.manifests import PodTemplate, for_containers, look_up
from checks.model import Check, Document, Shape, once
from fusewire.configuration import ConfigError, load
from fusewire.settings import Settings

OTHER_VARIABLES = {
    *("FUSEWIRE_CONFIG", "FUSEWIRE_KEY_PEPPER", "FUSEWIRE_MIGRATIONS"),
    *("FUSEWIRE_API_KEY", "FUSEWIRE_URL"),
}
"""Variables that are read beside the settings."""
ADDRESS = "postgresql+asyncpg://fusewire@database/fusewire"
EXAMPLES = {"FUSEWIRE_DATABASE__URL": ADDRESS, "FUSEWIRE_DATABASE__ANALYST_URL": ADDRESS}
"""What stands here for the values of Secrets."""
FILE = "fusewire.json"


class RefusedError(Exception):
    """Fusewire refuses a configuration; the message is its own."""


def settings(container: Document, pod: PodTemplate, shape: Shape) -> Iterator[str]:
    """Variables and configuration that Fusewire would not take."""
    variables = {
        variable["name"]: str(variable.get("value") or EXAMPLES.get(variable["name"], "example"))
        for variable in container.get("env") or []
        if variable["name"].startswith("FUSEWIRE_")
    }
    for name in unknown_variables(variables):
        yield f"{name} is no setting"
    if variables:
        try:
            read(config_of(pod, shape.documents), variables)
        except RefusedError as exc:
            yield str(exc)


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Variables whose table the settings do not have, and which they skip therefore."""
    tables = {f"FUSEWIRE_{name.upper()}" for name in Settings.model_fields}
    return [
        name
        for name in names
        if name.partition("__")[0] not in tables and name not in OTHER_VARIABLES
    ]


def config_of(pod: PodTemplate, documents: list[Document]) -> str:
    """The configuration that is mounted into a pod."""
    for volume in pod.volumes:
        name = (volume.get("configMap") or {}).get("name", "")
        config = look_up(documents, "ConfigMap", name) or {}
        if FILE in (config.get("data") or {}):
            return str(config["data"][FILE])
    return "{}"


def read(text: str, variables: Mapping[str, str]) -> Settings:
    """The settings of a process with this file and these variables.

    Raises:
        RefusedError: Fusewire refuses them.
    """
    key = ("settings", text, tuple(sorted(variables.items())))
    return once(key, _read, text, variables)


def _read(text: str, variables: Mapping[str, str]) -> Settings:
    with tempfile.TemporaryDirectory() as folder, _environment(variables):
        file = Path(folder) / FILE
        file.write_text(text)
        try:
            return load(file)
        except ConfigError as exc:
            problems = str(exc).replace(f"{folder}/", "")
            raise RefusedError(" ".join(problems.split())) from None


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these variables and no other ones of Fusewire for a while."""
    outside = dict(os.environ)
    for name in outside:
        if name.startswith("FUSEWIRE_"):
            del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(outside)


CHECKS = (
    Check(
        "settings",
        "Fusewire takes the variables and the configuration of every container",
        for_containers(settings),
    ),
)
