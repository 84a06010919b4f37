"""docs/scale.png: what `make bench-scale` measured and what a model says. `make bench-plots`.

The model has three parts, all from the rows with one of each service (`demand`):
- cores: a fusion takes the sum of what its processes take, and all cores together give one second a
  second;
- one process runs Python on one core at a time, so a service that is one process ends at one second
  a second;
- SQLite has one writer at a time, and the judge decides inside its transaction: more judges do not
  help it.
Of these the least counts. Nothing is fitted.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from cost.machine import BUILD, ROOT

Rows = Sequence[Mapping[str, Any]]
PICTURE = ROOT / "docs" / "scale.png"
REPLICATED = ("judge", "dispatcher")
CORES = (1, 2, 4, 8, 16, 32)
COLORS = {"sqlite": "#1f6feb", "postgresql": "#bf5700"}


def demand(row: Mapping[str, Any]) -> dict[str, float]:
    """CPU seconds a fusion takes, by service; those of replicas together."""
    found: dict[str, float] = {}
    for name, ms in row["cpu_ms"].items():
        service = name.rpartition("-")[0] if name.rpartition("-")[2].isdigit() else name
        found[service] = found.get(service, 0.0) + ms / 1000
    return found


def predicted(row: Mapping[str, Any], cores: float, replicas: Mapping[str, int]) -> float:
    """Fusions a second, of the demand that a row showed.

    Args:
        row: measured with one of each service.
        cores: that all processes share.
        replicas: how many there are of a service; 1 where it is not named.
    """
    needs = demand(row)
    python = {name: s for name, s in needs.items() if name not in {"nats", "postgres"}}
    bounds = [cores / sum(needs.values())]
    bounds += [replicas.get(name, 1) / s for name, s in python.items() if s]
    if row["database"] == "sqlite" and needs.get("judge"):
        bounds.append(1 / needs["judge"])
    return min(bounds)


def draw(rows: Rows, cores: int, file: Path) -> None:
    """Four pictures in one file."""
    mpl.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    _in_flight(axes[0][0], [row for row in rows if row["curve"] == "at once"])
    _stored(axes[0][1], [row for row in rows if row["curve"] == "stored"])
    apart = [row for row in rows if row["curve"] == "replicas"]
    _replicas(axes[1][0], apart, cores)
    _cores(axes[1][1], [row for row in apart if row["replicas"] == 1], cores)
    figure.savefig(file, dpi=110)


def _each(rows: Rows) -> list[tuple[str, Rows]]:
    databases = dict.fromkeys(row["database"] for row in rows)
    return [(name, [row for row in rows if row["database"] == name]) for name in databases]


def _cost(row: Mapping[str, Any]) -> float:
    return float(sum(row["cpu_ms"].values()))


def _in_flight(axes: Axes, rows: Rows) -> None:
    for database, some in _each(rows):
        axes.plot(
            [r["at_once"] for r in some],
            [_cost(r) for r in some],
            "o-",
            color=COLORS[database],
            label=database,
        )
    axes.set(
        title="CPU of a fusion by fusions in flight",
        xlabel="in flight",
        ylabel="ms",
        xscale="log",
        ylim=(0, None),
    )
    axes.legend()


def _stored(axes: Axes, rows: Rows) -> None:
    axes.plot(
        [max(r["stored"], 100) for r in rows],
        [_cost(r) for r in rows],
        "o-",
        color=COLORS["sqlite"],
    )
    axes.set(
        title="CPU of a fusion by outcomes stored (SQLite)",
        xlabel="stored (none at the left end)",
        ylabel="ms",
        xscale="log",
        ylim=(0, None),
    )


def _replicas(axes: Axes, rows: Rows, cores: int) -> None:
    for database, some in _each(rows):
        numbers = [r["replicas"] for r in some]
        model = [predicted(some[0], cores, dict.fromkeys(REPLICATED, n)) for n in numbers]
        axes.plot(
            numbers,
            [r["per_s"] for r in some],
            "o-",
            color=COLORS[database],
            label=f"{database}, measured",
        )
        axes.plot(numbers, model, "--", color=COLORS[database], label=f"{database}, predicted")
    axes.set(
        title=f"Fusions/s by replicas, {cores} cores",
        xlabel="of dispatcher and judge",
        ylim=(0, None),
    )
    axes.legend()


def _cores(axes: Axes, rows: Rows, cores: int) -> None:
    for row in rows:
        color, database = COLORS[row["database"]], row["database"]
        services = [name for name in demand(row) if name not in {"nats", "postgres", "up"}]
        one = [predicted(row, n, {}) for n in CORES]
        many = [predicted(row, n, dict.fromkeys(services, n)) for n in CORES]
        axes.plot(CORES, one, ":", color=color, label=f"{database}, one of each service")
        axes.plot(CORES, many, "--", color=color, label=f"{database}, as many as there are cores")
        axes.plot([cores], [row["per_s"]], "o", color=color)
    axes.set(title="Fusions/s predicted for more cores", xlabel="cores", xscale="log", yscale="log")
    axes.set_xticks(CORES, [str(n) for n in CORES])
    axes.legend()


def main() -> None:
    """Read, draw, say where."""
    found = json.loads((BUILD / "bench-scale.json").read_text())
    draw(found["rows"], found["cores"], PICTURE)
    for row in found["rows"]:
        if row["curve"] == "replicas" and row["replicas"] == 1:
            needs = ", ".join(f"{name} {s * 1000:.1f}" for name, s in demand(row).items())
            print(f"{row['database']}: a fusion takes, in ms: {needs}")
    print(f"written to {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
