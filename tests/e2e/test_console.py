"""The console of `fusewire up`: in its process or as a child of it, with TLS, and switched off."""

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from http.client import RemoteDisconnected
from pathlib import Path

import psutil
import pytest

from fusewire.testing.command_line import Cli, Command, address, bare
from fusewire.testing.eventually import PATIENCE_S, until

BOTH = pytest.mark.parametrize("options", [(), ("--processes",)], ids=["one process", "several"])
TITLE = "<title>Outcomes"


def console(process: Command) -> str:
    """The address of the console, as `fusewire up` prints it."""
    until(lambda: "Ctrl-C drains" in process.stdout, "what it says once it runs")
    (url,) = re.findall(r"^Console   (\S+)/$", process.stdout, re.MULTILINE)
    return str(url)


def get(url: str, *, cookie: str = "", context: ssl.SSLContext | None = None) -> str:
    """A page. Whoever has not signed in gets the form to do so."""
    request = urllib.request.Request(url, headers={"cookie": cookie} if cookie else {})
    with urllib.request.urlopen(request, timeout=PATIENCE_S, context=context) as reply:
        return str(reply.read().decode())


def pids(cli: Cli) -> dict[str, int]:
    return dict(json.loads((cli.folder / ".fusewire" / "up.json").read_text())["pids"])


@BOTH
def test_up_prints_where_the_console_is_and_it_answers(cli: Cli, options: tuple[str, ...]) -> None:
    with cli.start("up", *options) as process:
        api = address(cli, process)
        url = console(process)
        assert url != api
        assert TITLE in get(f"{url}/outcomes")
        assert get(f"{url}/readyz").startswith("ok")
        assert ("console" in pids(cli)) == bool(options)
        # What is asked of the API comes back.
        assert cli.run("ask", "Why?").returncode == 0
        assert "/outcomes/f" in get(f"{url}/outcomes")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, process.stderr


def test_a_console_that_was_killed_is_started_again_on_its_port(cli: Cli) -> None:
    with cli.start("up", "--processes") as process:
        address(cli, process)
        url = console(process)
        first = pids(cli)["console"]
        os.kill(first, signal.SIGKILL)
        # Whoever connects meanwhile waits, and is answered by the next.
        assert TITLE in get(f"{url}/outcomes")
        assert not psutil.pid_exists(first) or (
            psutil.Process(first).status() == psutil.STATUS_ZOMBIE
        )
        until(lambda: "up.restarted" in process.stderr, "the notice")
        assert process.returncode is None


@BOTH
def test_a_port_of_the_console_in_use_is_named_with_the_way_out(
    cli: Cli, options: tuple[str, ...]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        env = {**cli.env, "FUSEWIRE_CONSOLE__PORT": str(port)}
        refused = Cli(cli.folder, env).run("up", *options)
        found = json.loads(Cli(cli.folder, env).run("doctor", "--json").stdout)
    assert (refused.returncode, refused.stdout) == (2, "")
    for text in (refused.stderr, json.dumps(found)):
        assert f"port {port} on 127.0.0.1 cannot be used" in text
        assert "set FUSEWIRE_CONSOLE__PORT to another port" in text


def is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


def free_ports(count: int) -> int:
    """The first of some ports that follow each other and are free, below those that systems give.

    Where it begins is of this process, as others may look for some too.
    """
    begin = 20_000 + os.getpid() % 1000 * count
    return next(p for p in range(begin, 32_000) if all(map(is_free, range(p, p + count))))


def test_the_console_is_on_the_port_after_the_api_s_unless_that_has_the_metrics(cli: Cli) -> None:
    port = free_ports(3)
    for operations_port, expected in ((None, port + 1), (port + 1, port + 2)):
        env = {**cli.env, "FUSEWIRE_HTTP__PORT": str(port)}
        if operations_port:
            env["FUSEWIRE_HTTP__OPERATIONS_PORT"] = str(operations_port)
        with Cli(cli.folder, env).start("up") as process:
            address(cli, process)
            assert console(process) == f"http://127.0.0.1:{expected}"


@BOTH
def test_without_a_console_there_is_none(cli: Cli, options: tuple[str, ...]) -> None:
    env = {**cli.env, "FUSEWIRE_CONSOLE__ENABLED": "false"}
    with Cli(cli.folder, env).start("up", *options) as process:
        address(cli, process)
        until(lambda: "Ctrl-C drains" in process.stdout, "what it says once it runs")
        assert not re.search(r"^Console|^Services .*console", process.stdout, re.MULTILINE)
        assert "console" not in pids(cli)


def test_a_command_with_a_stack_of_its_own_has_no_console(cli: Cli) -> None:
    """Nobody would know its address, and it takes time to start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = {**cli.env, "FUSEWIRE_CONSOLE__PORT": str(taken.getsockname()[1])}
        done = Cli(cli.folder, env).run("ask", "Why?")
    assert done.returncode == 0, done.stderr


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself, for `name`, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext"]
    command += [f"subjectAltName=DNS:{name}", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    return cert, key


@BOTH
def test_with_tls_the_console_has_it_too_and_knows_the_api_by_its_certificate(
    cli: Cli, options: tuple[str, ...]
) -> None:
    cert, key = make_certificate(cli.folder, "fusewire.example")
    env = {
        **cli.env,
        "FUSEWIRE_HTTP__TLS_CERT": str(cert),
        "FUSEWIRE_HTTP__TLS_KEY": str(key),
        "FUSEWIRE_HTTP__KEYS": "required",
    }
    served = Cli(cli.folder, env)
    context = ssl.create_default_context(cafile=str(cert))
    context.check_hostname = False
    with served.start("up", *options) as process:
        address(served, process)
        url = console(process)
        assert url.startswith("https://")
        made = served.run("keys", "create", "--tenant", "acme", "--name", "web").stdout.strip()
        # Without a key there is the form; with one the API has said whose it is.
        assert 'name="key"' in get(f"{url}/outcomes", context=context)
        html = get(f"{url}/outcomes", cookie=f"fusewire_key={made}", context=context)
        assert TITLE in html
        assert "Tenant acme" in html
        with pytest.raises(RemoteDisconnected):
            get(url.replace("https://", "http://"))


def test_beyond_this_machine_the_console_alone_needs_tls_too(cli: Cli) -> None:
    env = {
        "FUSEWIRE_HTTP__HOST": "0.0.0.0",
        "FUSEWIRE_CONSOLE__API_URL": "http://127.0.0.1:9",
        "FUSEWIRE_HTTP__PORT": "0",
    }
    command = bare(cli.folder, **env)
    done = subprocess.run(
        [sys.executable, "-m", "fusewire_console"],
        cwd=cli.folder,
        env=dict(command.env),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no TLS" in done.stderr
