"""The compose file, which no tool here reads: that it holds together, and what it promises."""

from collections.abc import Iterator

from checks.configuration import OTHER_VARIABLES, RefusedError, read, unknown_variables
from checks.model import Check, Document, SourceFolder, parse


def compose(source: SourceFolder) -> Iterator[str]:
    """What is wrong with the compose file."""
    file = source.folder / "compose.yaml"
    document = parse(file.read_text())
    for name, service in document["services"].items():
        problems = [*_of_names(service, document), *_of_mounts(service, document, source)]
        if "fusewire" in str(service.get("image")):
            problems += [*_of_security(service), *_of_variables(service)]
        for problem in problems:
            yield f"{source.path(file)}: {name}: {problem}"


def _of_names(service: Document, document: Document) -> Iterator[str]:
    """Names that lead nowhere."""
    for name in service.get("depends_on") or {}:
        if name not in document["services"]:
            yield f"depends on {name}, which is not there"
    for kind in ("secrets", "configs", "networks"):
        for entry in service.get(kind) or []:
            name = entry if isinstance(entry, str) else entry["source"]
            if name not in (document.get(kind) or {}):
                yield f"uses {name}, which is not among the {kind}"


def _of_mounts(service: Document, document: Document, source: SourceFolder) -> Iterator[str]:
    for mount in service.get("volumes") or []:
        place = mount.partition(":")[0] if isinstance(mount, str) else mount.get("source", "")
        if place.startswith("./") and not (source.folder / place).exists():
            yield f"mounts {place}, which is not there"
        elif place and place[0] not in "./$~" and place not in (document.get("volumes") or {}):
            yield f"mounts volume {place}, which is not declared"


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
    if isinstance(variables, list):
        variables = dict(line.partition("=")[::2] for line in variables)
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
