"""The configuration of a folder that has none: a pool of the models that have been pulled."""

from pathlib import Path
from typing import Any

from fusewire.settings import read_file

SMALL = Path(__file__).parent / "builtin.toml"
EDGE = Path(__file__).parent / "builtin-edge.toml"
POOL = "edge"


def small() -> dict[str, Any]:
    """One very small model, asked in three ways; its pool is `default`."""
    return read_file(SMALL)


def edge() -> dict[str, Any]:
    """Several small models; their pool is `edge`, and `default` too."""
    data = read_file(EDGE)
    data["pools"]["default"] = data["pools"][POOL]
    return data


def names() -> list[str]:
    """The models of the pool `edge`, as `fusewire model pull` calls them."""
    return [Path(model["path"]).name for model in read_file(EDGE)["models"].values()]


def missing() -> list[str]:
    """Which of them have not been pulled."""
    from fusewire_worker_edge.folder import list_models
    from fusewire_worker_edge.pull import DEFAULT_ROOT

    here = {found.path.name for found in list_models(DEFAULT_ROOT.expanduser()) if found.manifest}
    return [name for name in names() if name not in here]


def chosen() -> dict[str, Any]:
    """`edge` where all its models are here, else `small`."""
    return small() if missing() else edge()


def offer() -> str:
    """What a folder without a configuration runs with, and what it could; nothing is downloaded unasked."""
    from fusewire_worker_edge.catalogue import CATALOGUE

    lacking = missing()
    if not lacking:
        return (
            f"no fusewire.toml: the pool is `{POOL}`, of {', '.join(names())}, all on this machine"
        )
    pulls = ", ".join(
        f"`fusewire model pull {name}` ({CATALOGUE[name].size / 1e6:.0f} MB)" for name in lacking
    )
    return (
        f"no fusewire.toml: the pool is one very small model; {pulls} would make the pool `{POOL}`"
    )
