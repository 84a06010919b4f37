"""The compose file, which no tool here reads: that it holds together, and what it promises."""

from collections.abc import Iterator
from pathlib import Path

from checks.configuration import OTHER_VARIABLES, RefusedError, read, unknown_variables
from checks.model import Check, Document, SourceFolder, parse


def compose(source: SourceFolder) -> Iterator[str]:
    """What is wrong with the compose file."""
    file = source.folder / "compose.yaml"
    document = parse(file.read_text())
    for name, service in document["services"].items():
        problems = [*_of_names(service, document), *_of_mounts(service, document, file)]
        if "fusewire" in str(service.get("image")):
            problems += [*_of_security(service), *_of_variables(service)]
        for problem in problems:
            yield f"{source.path(file)}: {name}: {problem}"


def _of_names(service: Document, document: Document) -> Iterator[str]:
    """Names that lead nowhere."""
    for name in set(service.get("depends_on") or {}) - document["services"].keys():
        yield f"depends on {name}, which is not there"
    for kind in ("secrets", "configs", "networks"):
        entries = service.get(kind) or []
        names = {entry if isinstance(entry, str) else entry["source"] for entry in entries}
        for name in names - (document.get(kind) or {}).keys():
            yield f"uses {name}, which is not among the {kind}"


def _of_mounts(service: Document, document: Document, file: Path) -> Iterator[str]:
    for place in map(_place, service.get("volumes") or []):
        if place.startswith("./") and not _is_there(place, file):
            yield f"mounts {place}, which is not there"
        if place[:1] not in {*"./$", ""} and place not in (document.get("volumes") or {}):
            yield f"mounts volume {place}, which is not declared"


def _place(mount: str | Document) -> str:
    """What is mounted: a path, or the name of a volume."""
    return mount.partition(":")[0] if isinstance(mount, str) else str(mount.get("source", ""))


def _is_there(place: str, file: Path) -> bool:
    """Whether a file is beside the compose file, or the head of that says who puts it there."""
    comments = [line for line in file.read_text().splitlines() if line.startswith("#")]
    return (file.parent / place).exists() or any(f" {place[2:]}" in line for line in comments)


def _of_security(service: Document) -> Iterator[str]:
    """What each service of ours promises; NATS and PostgreSQL are others' images."""
    if not service.get("read_only"):
        yield "read_only is not true"
    if "ALL" not in [str(name).upper() for name in service.get("cap_drop") or []]:
        yield "cap_drop lacks ALL"
    if "no-new-privileges:true" not in (service.get("security_opt") or []):
        yield "security_opt lacks no-new-privileges:true"


def _of_variables(service: Document) -> Iterator[str]:
    variables = service.get("environment") or {}
    ours = {name: str(value) for name, value in variables.items() if name.startswith("FUSEWIRE_")}
    for name in unknown_variables(ours):
        yield f"{name} is no setting"
    # Those with a `$` are filled in where it runs.
    plain = {k: v for k, v in ours.items() if "$" not in v and k not in OTHER_VARIABLES}
    try:
        read("{}", plain)
    except RefusedError as exc:
        yield str(exc)


CHECKS = (Check("compose", "the compose file holds together, and Fusewire takes it", compose),)
