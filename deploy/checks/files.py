"""Files beside the chart: the Dockerfile, YAML, configurations of NATS."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import nkeys

from checks.model import Check, SourceFolder, last_line, once
from checks.tools import run

YAMLLINT = "{extends: relaxed, rules: {line-length: disable, empty-lines: {max: 1}}}"


def dockerfile(source: SourceFolder) -> Iterator[str]:
    """What hadolint says."""
    file = source.folder / "docker/Dockerfile"
    text = file.read_text()
    command = (source.tools.hadolint, "--no-color", "-")
    result = once(("hadolint", text), run, *command, stdin=text)
    if result.returncode:
        for line in result.stdout.splitlines():
            yield f"{source.path(file)}{line.removeprefix('-')}"


def yaml_files(source: SourceFolder) -> Iterator[str]:
    """What yamllint says of every YAML file that is no template."""
    for file in sorted(source.folder.rglob("*.yaml")):
        if source.chart / "templates" not in file.parents:
            text = file.read_text()
            for problem in once(("yamllint", text), _yamllint, source, text):
                yield f"{source.path(file)}:{problem}"


def _yamllint(source: SourceFolder, text: str) -> list[str]:
    source.tools.add_python_packages()
    from yamllint import linter  # noqa: PLC0415 - it is fetched first
    from yamllint.config import YamlLintConfig  # noqa: PLC0415 - as above

    problems = linter.run(text, YamlLintConfig(YAMLLINT))
    return [f"{problem.line}: {problem.message}" for problem in problems]


def nats(source: SourceFolder) -> Iterator[str]:
    """Configurations that nats-server would not start with."""
    files = sorted((source.folder / "nats").glob("*.conf"))
    texts = tuple(file.read_text() for file in files)
    for file in files:
        if problem := once(("nats", file.name, texts), _nats, source, file):
            yield f"{source.path(file)}: {problem}"


def _nats(source: SourceFolder, file: Path) -> str:
    """What nats-server says of one file, with a key for each variable that stands for one."""
    texts = "".join(other.read_text() for other in file.parent.glob("*.conf"))
    keys = {name: _public_key() for name in re.findall(r"\$(\w*NKEY\w*)", texts)}
    result = run(source.tools.nats_server, "-t", "-c", file, variables=keys)
    return last_line(result.stderr or result.stdout) if result.returncode else ""


def _public_key() -> str:
    """A public nkey of nobody."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return str(nkeys.from_seed(seed).public_key.decode())


CHECKS = (
    Check("dockerfile", "hadolint has nothing to say", dockerfile),
    Check("yaml", "yamllint has nothing to say", yaml_files),
    Check("nats-configuration", "nats-server takes every configuration", nats),
)
