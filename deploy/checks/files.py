"""Files beside the chart: alerts, the Dockerfile, YAML, configurations of NATS, the compose file."""

import os
from collections.abc import Iterator
from pathlib import Path

import nkeys

from checks.model import Check, Deploy, Document, last_line, once, parse
from checks.product import OTHER_VARIABLES, RefusedError, loaded, unknown_variables
from checks.tools import run

YAMLLINT = "{extends: relaxed, rules: {line-length: disable, empty-lines: {max: 1}}}"


def alert_rules(deploy: Deploy) -> Iterator[str]:
    """What promtool says of the rules, and copies of them that differ."""
    folder = deploy.folder / "alerts"
    rules = folder / "rules.yaml"
    if not rules.is_file():
        yield f"{deploy.path(rules)} is missing"
        return
    promtool = deploy.tools.promtool
    command = (promtool, "check", "rules", "--lint=all", "--lint-fatal", rules)
    result = once(("rules", rules.read_text()), lambda: run(*command))
    if result.returncode:
        yield f"{deploy.path(rules)}: {_words(result.stdout + result.stderr)}"
    for copy in sorted((deploy.chart / "files").glob("*")):
        original = folder / copy.name
        if original.is_file() and original.read_bytes() != copy.read_bytes():
            yield f"{deploy.path(copy)} differs from {deploy.path(original)}: copy it"


def alert_tests(deploy: Deploy) -> Iterator[str]:
    """Alerts without a test, and tests that fail."""
    folder = deploy.folder / "alerts"
    rules, tests = folder / "rules.yaml", folder / "rules.test.yaml"
    if not tests.is_file():
        yield f"{deploy.path(tests)} is missing"
        return
    alerts = {
        rule["alert"]
        for group in parse(rules.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    tested = {
        case["alertname"]
        for test in parse(tests.read_text())["tests"]
        for case in test.get("alert_rule_test") or []
        if case.get("exp_alerts")
    }
    for name in sorted(alerts - tested):
        yield f"alert {name} has no test in which it fires"
    key = ("promtool", rules.read_text(), tests.read_text())
    result = once(key, lambda: run(deploy.tools.promtool, "test", "rules", tests, cwd=folder))
    if result.returncode:
        yield f"{deploy.path(tests)}: {_words(result.stdout + result.stderr)}"


def _words(output: str) -> str:
    """A tool's complaint on one line."""
    return " ".join(output.split())[:600]


def dockerfile(deploy: Deploy) -> Iterator[str]:
    """What hadolint says."""
    files = sorted((deploy.folder / "docker").glob("Dockerfile*"))
    if not files:
        yield f"{deploy.path(deploy.folder / 'docker/Dockerfile')} is missing"
    for file in files:
        command = (deploy.tools.hadolint, "--no-color", file)
        result = once(("hadolint", file.read_text()), lambda c=command: run(*c))
        for line in result.stdout.splitlines() if result.returncode else []:
            yield f"{deploy.path(file)}{line.removeprefix(str(file))}"


def yaml_files(deploy: Deploy) -> Iterator[str]:
    """What yamllint says of every YAML file that is no template."""
    files = [
        file
        for file in sorted(deploy.folder.rglob("*.y*ml"))
        if deploy.chart / "templates" not in file.parents
    ]
    deploy.tools.add_python_packages()
    from yamllint import linter  # noqa: PLC0415 - it is fetched first
    from yamllint.config import YamlLintConfig  # noqa: PLC0415 - as above

    rules = YamlLintConfig(YAMLLINT)
    for file in files:
        text = file.read_text()
        for problem in once(("yamllint", text), lambda t=text: list(linter.run(t, rules))):
            yield f"{deploy.path(file)}:{problem.line}: {problem.message}"


def nats(deploy: Deploy) -> Iterator[str]:
    """Configurations that nats-server would not start with."""
    for file in sorted((deploy.folder / "nats").glob("*.conf")):
        key = ("nats", tuple(f.read_text() for f in sorted(file.parent.glob("*.conf"))), file.name)
        if problem := once(key, lambda file=file: _nats(deploy, file)):
            yield f"{deploy.path(file)}: {problem}"


def _nats(deploy: Deploy, file: Path) -> str:
    """What nats-server says of one file, with a key for each variable that stands for one."""
    names = {word.strip("$\"',;}]") for word in file.read_text().split() if word.startswith("$")}
    for other in file.parent.glob("*.conf"):
        names |= {w.strip("$\"',;}]") for w in other.read_text().split() if w.startswith("$")}
    keys = {name: _public_key() for name in names if "NKEY" in name}
    outside = dict(os.environ)
    os.environ.update(keys)
    try:
        result = run(deploy.tools.nats_server, "-t", "-c", file)
    finally:
        os.environ.clear()
        os.environ.update(outside)
    return "" if result.returncode == 0 else last_line(result.stderr or result.stdout)


def _public_key() -> str:
    """A public nkey of nobody."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return nkeys.from_seed(seed).public_key.decode()


def compose(deploy: Deploy) -> Iterator[str]:
    """What is wrong with the compose file."""
    file = deploy.folder / "compose.yaml"
    if not file.is_file():
        yield f"{deploy.path(file)} is missing"
        return
    document = parse(file.read_text())
    services = document.get("services") or {}
    for name, service in services.items():
        for problem in (*_of_service(service, document), *_of_image(service)):
            yield f"{deploy.path(file)}: {name}: {problem}"


def _of_service(service: Document, document: Document) -> Iterator[str]:
    services, volumes = document["services"], document.get("volumes") or {}
    for other in service.get("depends_on") or {}:
        if other not in services:
            yield f"depends on {other}, which is not there"
    for mount in service.get("volumes") or []:
        source = mount.partition(":")[0] if isinstance(mount, str) else mount.get("source", "")
        if source and source[0] not in "./$~" and source not in volumes:
            yield f"mounts volume {source}, which is not declared"
    for kind in ("secrets", "configs"):
        for entry in service.get(kind) or []:
            name = entry if isinstance(entry, str) else entry["source"]
            if name not in (document.get(kind) or {}):
                yield f"uses {name}, which is not among the {kind}"


def _of_image(service: Document) -> Iterator[str]:
    """What each service of ours promises; NATS and PostgreSQL are others' images."""
    if "fusewire" not in str(service.get("image")):
        return
    if not service.get("read_only"):
        yield "read_only is not true"
    if "ALL" not in [str(name).upper() for name in service.get("cap_drop") or []]:
        yield "cap_drop lacks ALL"
    if "no-new-privileges:true" not in (service.get("security_opt") or []):
        yield "security_opt lacks no-new-privileges:true"
    variables = service.get("environment") or {}
    if isinstance(variables, list):
        variables = dict(line.partition("=")[::2] for line in variables)
    ours = {k: str(v) for k, v in variables.items() if k.startswith("FUSEWIRE_")}
    for name in unknown_variables(ours):
        yield f"{name} is no setting"
    plain = {k: v for k, v in ours.items() if "$" not in v and k not in OTHER_VARIABLES}
    try:
        loaded("{}", plain)
    except RefusedError as exc:
        yield str(exc)


CHECKS = (
    Check("alert-rules", "promtool takes the alerts, and the chart's copies are the same", alert_rules),
    Check("alert-tests", "every alert has a test in which it fires, and the tests pass", alert_tests),
    Check("dockerfile", "hadolint has nothing to say", dockerfile),
    Check("yaml", "yamllint has nothing to say", yaml_files),
    Check("nats-configuration", "nats-server takes every configuration", nats),
    Check("compose", "the compose file holds together, and Fusewire takes its variables", compose),
)
