"""The built-in configuration, for a folder without a fusewire.toml."""

from pathlib import Path
from typing import Any

from fusewire.configuration import read_file
from fusewire_cli import local_models

SMALL = Path(__file__).parent / "builtin.toml"
EDGE = Path(__file__).parent / "builtin-edge.toml"
POOL = "edge"


def small() -> dict[str, Any]:
    """A configuration with one very small model, asked in three ways; its pool is `default`."""
    return read_file(SMALL)


def edge() -> dict[str, Any]:
    """A configuration with several small models; they are the pools `edge` and `default`."""
    config = read_file(EDGE)
    config["pools"]["default"] = config["pools"][POOL]
    return config


def names() -> list[str]:
    """The models of the pool `edge`, by their names for `fusewire model pull`."""
    return [Path(model["path"]).name for model in read_file(EDGE)["models"].values()]


def missing() -> list[str]:
    """The models of the pool `edge` that have not been pulled."""
    from fusewire_worker_edge.folder import list_models
    from fusewire_worker_edge.pull import DEFAULT_ROOT

    models = list_models(DEFAULT_ROOT.expanduser())
    pulled_names = {model.path.name for model in models if model.manifest}
    return [name for name in names() if name not in pulled_names]


def configuration() -> dict[str, Any]:
    """`edge` if all its models have been pulled, else `small`; nothing where models cannot run."""
    if not local_models.are_supported():
        return {}
    return small() if missing() else edge()


def offer() -> str:
    """Say which built-in pool is used, and which pulls would make it a better one.

    Nothing is downloaded here: only the user decides to pull a model.
    """
    from fusewire_worker_edge.catalogue import CATALOGUE

    missing_names = missing()
    if not missing_names:
        return (
            f"no fusewire.toml: the pool is `{POOL}`, of {', '.join(names())}, all on this machine"
        )
    pulls = ", ".join(
        f"`fusewire model pull {name}` ({CATALOGUE[name].size / 1e6:.0f} MB)"
        for name in missing_names
    )
    return (
        f"no fusewire.toml: the pool is one very small model; {pulls} would make the pool `{POOL}`"
    )
