"""Run the pods that the chart makes of the shape `small`, with podman, and a batch through them.

NATS and PostgreSQL are real; hosted models are a fake server that speaks their protocol. The images
are those of `make image-check`.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from checks.manifests import PodTemplate, name_of, pods
from checks.model import HELM_4, RELEASE, Document, SourceFolder, one_line, parse_all
from checks.play_pods import Cluster, play_pod
from checks.tools import ROOT, UnavailableError, run
from fusewire.testing.command_line import write_lines
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.postgres import PostgresServer
from fusewire.testing.tiny_gguf import write_gguf
from fusewire_worker_edge.importers.convert import import_model

SHAPE = "small"
SERVICES = ("ingest", "dispatcher", "judge", "worker-edge", "worker-remote", "console")
LINES = 20
PATIENCE_S = 180.0
CLAIM, KEYS, DATABASE, PEPPER = "models", "provider-keys", "database", "pepper"
"""The names of what the operator brings."""
PAUSE = "localhost/fusewire-pause"
"""The image of the container that holds a pod together."""
CONFIGURATION = f"""
[containers]
# No more than a container of a container may ask for.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
infra_image = "{PAUSE}"
"""


class PodError(Exception):
    """The pods do not do what they must."""


@dataclass(frozen=True)
class ContainerStore:
    """podman, with the images of `make image-check`."""

    folder: Path
    configuration: Path

    def podman(self, *args: str | Path, stdin: str | None = None, with_errors: bool = False) -> str:
        """Run podman; returns what it prints.

        Raises:
            PodError: its exit code is not 0.
        """
        options = ("--root", self.folder / "store", "--runroot", self.folder / "run")
        command = ("podman", *options, "--cgroup-manager", "cgroupfs", "--runtime", "runc", *args)
        variables = {"CONTAINERS_CONF": str(self.configuration)}
        result = run(*command, stdin=stdin, variables=variables)
        if result.returncode:
            raise PodError(f"podman {args[0]} {args[1]}: {result.stderr.strip()[-2000:]}")
        return result.stdout + result.stderr * with_errors

    def lacks(self, image: str) -> bool:
        """Whether there is no such image."""
        try:
            self.podman("image", "exists", image)
        except PodError:
            return True
        return False


def play(source: SourceFolder) -> None:
    """Run the pods and the batch; prints what happens.

    Raises:
        PodError: the pods do not do what they must.
        UnavailableError: this machine cannot run them.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [name for name in ("podman", "runc") if not shutil.which(name, path=path)]:
        raise UnavailableError(f"there is no {' and no '.join(missing)}: install the packages")
    if os.geteuid() != 0:
        raise UnavailableError("only root may run containers as this does: run it as root")
    with tempfile.TemporaryDirectory(prefix="kube-play-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the user of the containers looks into it
        store = ContainerStore(ROOT / "build/image-check", folder / "containers.conf")
        store.configuration.write_text(CONFIGURATION)
        images = [f"localhost/fusewire-{service}" for service in (*SERVICES, "tools")]
        if missing := [image for image in images if store.lacks(image)]:
            raise UnavailableError(f"there is no image {missing[0]}: run make image-check first")
        asyncio.run(_play(source, store, folder))


async def _play(source: SourceFolder, store: ContainerStore, folder: Path) -> None:
    _make_pause(store)
    async with _neighbours(folder) as (values, cluster):
        (folder / "values.yaml").write_text(yaml.safe_dump(values))
        files = ("-f", source.values_files[SHAPE], "-f", folder / "values.yaml")
        result = run(source.tools.helm(HELM_4), "template", RELEASE, source.chart, *files)
        if result.returncode:
            raise PodError(one_line(result.stderr))
        stack = PodStack(store, parse_all(result.stdout), cluster, _free_ports())
        try:
            for component in ("prepare", *SERVICES, "tools"):
                await asyncio.to_thread(stack.start, component)
            await asyncio.to_thread(stack.run_batch)
        finally:
            await asyncio.to_thread(stack.end)


def _make_pause(store: ContainerStore) -> None:
    """An image that does nothing but wait, of one that is there."""
    if store.lacks(PAUSE):
        name = "fusewire-pause"
        store.podman("create", "--name", name, "localhost/fusewire-tools")
        store.podman("commit", "--change", 'ENTRYPOINT ["sleep", "infinity"]', name, PAUSE)
        store.podman("rm", name)


def _free_ports() -> dict[str, str]:
    """Ports of API and pages, and one for the operations of each service; they share one host."""
    names = ("api", "pages", *SERVICES)
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        ports = [str(probe.getsockname()[1]) for probe in probes]
    return dict(zip(names, ports, strict=True))


@contextlib.asynccontextmanager
async def _neighbours(folder: Path) -> AsyncIterator[tuple[Document, Cluster]]:
    """NATS, PostgreSQL, hosted models and weights, and the values that name them."""
    (folder / "nats").mkdir()
    (folder / "weights").mkdir()
    file = folder / "tiny.gguf"
    types = {"token_embd": "Q8_0", "": "Q4_1"}
    write_gguf(file, types, is_tied=True, metadata={}, drop="", add="")
    import_model(file, folder / "weights/tiny")
    with PostgresServer() as postgres:
        async with NatsServer(folder / "nats") as nats, ModelServer() as models:
            secrets = {
                f"{DATABASE}/url": postgres.url(),
                f"{PEPPER}/pepper": os.urandom(16).hex(),
                f"{KEYS}/MODELS_API_KEY": "example",
                f"{KEYS}/ANTHROPIC_API_KEY": "example",
            }
            cluster = Cluster(folder, secrets, {CLAIM: folder / "weights"})
            yield _values(nats.url, models.base_url), cluster


def _values(nats_url: str, base_url: str) -> Document:
    """What differs from the shape's values, whose examples lead nowhere."""
    remote = {"base_url": base_url, "provider": "openai"}
    models = {
        "tiny": {"path": "/models/tiny", "max_tokens": 8},
        "gpt": remote,
        "claude": remote,
    }
    # All members are waited for, so that a batch that ends well has been through every service.
    members = [{"name": name, "model": name, "required": True} for name in models]
    return {
        "config": {"models": models, "pools": {"default": {"members": members}}},
        "image": {"registry": "localhost", "tag": "latest"},
        "nats": {"url": nats_url},
        "database": {"existingSecret": DATABASE},
        "ingest": {"pepper": {"existingSecret": PEPPER}},
        "workerEdge": {"weights": {"existingClaim": CLAIM}},
        "workerRemote": {"providerKeys": {"existingSecret": KEYS}},
    }


@dataclass(frozen=True)
class PodStack:
    """The pods of the chart, which podman plays."""

    store: ContainerStore
    documents: list[Document]
    cluster: Cluster
    ports: dict[str, str]
    files: list[Path] = field(default_factory=list)

    def start(self, component: str) -> None:
        """Play one pod, and wait until it is ready; until its end, if it is a Job.

        Raises:
            PodError: it is not ready in time, or ends with a failure.
        """
        pod = self._pod(component)
        variables = {
            "FUSEWIRE_HTTP__PORT": self.ports["pages" if component == "console" else "api"],
            "FUSEWIRE_CONSOLE__API_URL": f"http://127.0.0.1:{self.ports['api']}",
            "FUSEWIRE_HTTP__OPERATIONS_PORT": self.ports.get(component, ""),
        }
        cluster = replace(self.cluster, variables=variables)
        file = cluster.folder / f"{component}.yaml"
        file.write_text(yaml.safe_dump(play_pod(pod, self.documents, cluster)))
        self.files.append(file)
        try:
            self.store.podman("kube", "play", "--network", "host", file)
        except PodError as exc:
            logs = self.store.podman("pod", "logs", name_of(pod.owner), with_errors=True)
            raise PodError(f"{exc} {logs[-2000:]}") from None
        if pod.owner["kind"] == "Job":
            code = self.store.podman("wait", _container(pod)).strip()
            if code != "0":
                raise PodError(f"{component} ended with {code}: {self._logs(pod)}")
        elif pod.is_server:
            self._wait_until_ready(component, pod)
        print(f"{pod.title} is {'done' if pod.owner['kind'] == 'Job' else 'ready'}", flush=True)

    def _pod(self, component: str) -> PodTemplate:
        return next(pod for pod in pods(self.documents) if pod.component == component)

    def _wait_until_ready(self, component: str, pod: PodTemplate) -> None:
        until = time.monotonic() + PATIENCE_S
        while not _answers(f"http://127.0.0.1:{self.ports[component]}/readyz"):
            state = self.store.podman("inspect", "--format", "{{.State.Status}}", _container(pod))
            if state.strip() == "exited" or time.monotonic() > until:
                raise PodError(f"{component} is not ready: {self._logs(pod)}")
            time.sleep(0.2)

    def _logs(self, pod: PodTemplate) -> str:
        # It repeats on stdout and stderr what the container wrote there.
        return self.store.podman("logs", "--tail", "20", _container(pod), with_errors=True)

    def run_batch(self) -> None:
        """Have a batch answered, as somebody would with `kubectl exec`.

        Raises:
            PodError: a line is not answered.
        """
        key = self._exec("fusewire", "keys", "create", "--tenant", "default", "--name", "play")
        file = self.cluster.folder / "in.jsonl"
        names = write_lines(file, LINES)
        self._exec("sh", "-c", "cat > /tmp/in.jsonl", stdin=file.read_text())
        url = f"FUSEWIRE_URL=http://127.0.0.1:{self.ports['api']}"
        command = ("batch", "run", "/tmp/in.jsonl", "--out", "/tmp/out.jsonl")
        self._exec("env", url, f"FUSEWIRE_API_KEY={key.strip()}", "fusewire", *command)
        lines = self._exec("cat", "/tmp/out.jsonl").splitlines()
        results = [json.loads(line) for line in lines]
        answers = [r["custom_id"] for r in results if r["response"]["status_code"] == 200]
        if answers != names:
            raise PodError(f"of {len(names)} lines {len(answers)} were answered")
        sql = "select member, count(*) n from v_answer where error_code is null group by 1"
        text = self._exec("fusewire", "query", "--as-owner", "--format", "json", sql)
        counts = {row["member"]: row["n"] for row in json.loads(text)}
        if set(counts.values()) != {len(names)}:
            raise PodError(f"each member has {len(names)} answers, but there are {counts}")
        if not _answers(f"http://127.0.0.1:{self.ports['pages']}/sign-in"):
            raise PodError("the console asks nobody to sign in")
        print(f"a batch of {len(names)} lines was answered by {', '.join(counts)}")

    def _exec(self, *command: str, stdin: str | None = None) -> str:
        container = _container(self._pod("tools"))
        return self.store.podman("exec", "--interactive", container, *command, stdin=stdin)

    def end(self) -> None:
        """Stop and remove the pods."""
        for file in reversed(self.files):
            with contextlib.suppress(PodError):
                self.store.podman("kube", "down", file)


def _container(pod: PodTemplate) -> str:
    """The name that podman gives to the main container of a pod."""
    return f"{name_of(pod.owner)}-{pod.main_containers[0]['name']}"


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False
