"""Files beside the chart: the Dockerfile, YAML, configurations of NATS."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import nkeys

from checks.model import Check, SourceFolder, last_line, once
from checks.tools import run

HADOLINT = (
    "--failure-threshold=warning",
    "--ignore=DL3003",  # `cd` for one command is no change of the image's folder
    "--ignore=DL3008",  # archives drop old versions; the base's digest pins what it holds
    "--ignore=DL3042",  # pip's cache is a mount of the build, no part of the image
)
YAMLLINT = "{extends: relaxed, rules: {line-length: disable, empty-lines: {max: 1}}}"


def dockerfile(source: SourceFolder) -> Iterator[str]:
    """What hadolint says."""
    file = source.folder / "docker/Dockerfile"
    text = file.read_text()
    command = (source.tools.hadolint, "--no-color", *HADOLINT, "-")
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
    """What nats-server says of one file, with an example for each variable of the files."""
    texts = "".join(other.read_text() for other in file.parent.glob("*.conf"))
    variables = {name: _example(name) for name in re.findall(r"\$(FW_\w+)", texts)}
    result = run(source.tools.nats_server, "-t", "-c", file, variables=variables)
    return last_line(result.stderr or result.stdout) if result.returncode else ""


def _example(name: str) -> str:
    """What a variable of a configuration may hold."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    if name.endswith("_SEED"):
        return str(seed.decode())
    if name.startswith("FW_NKEY_"):
        return str(nkeys.from_seed(seed).public_key.decode())
    return "nats://example:7422" if name == "FW_HUB" else "example"


CHECKS = (
    Check("dockerfile", "hadolint has nothing to say", dockerfile),
    Check("yaml", "yamllint has nothing to say", yaml_files),
    Check("nats-configuration", "nats-server takes every configuration", nats),
)
