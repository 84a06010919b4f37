"""No secret is made, made up or written out: operators bring their own."""

import re
from collections.abc import Iterator

from checks.manifests import PodTemplate, for_containers, of_kind, title
from checks.model import Check, Document, Shape, SourceFolder

SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|API_KEY|SEED|PEPPER")
PASSWORD_IN_ADDRESS = re.compile(r"://[^/@:\s$]+:[^/@\s$]+@")


def no_secrets(source: SourceFolder) -> Iterator[str]:
    """Secrets that the chart would make, or would make anew with each rendering."""
    for shape in source.shapes():
        text = source.render(shape.name)
        if source.render(shape.name, turn=1) != text:
            yield f"{shape.name}: two renderings differ: something is made up anew each time"
        for secret in of_kind(shape.documents, "Secret"):
            yield f"{shape.name}: {title(secret)} is rendered: name an existing Secret instead"
        if PASSWORD_IN_ADDRESS.search(text):
            yield f"{shape.name}: an address holds a password"
    yield from for_containers(_in_variables)(source)


def _in_variables(container: Document, _pod: PodTemplate, _shape: Shape) -> Iterator[str]:
    for variable in container.get("env") or []:
        if variable.get("value") and SECRET_NAME.search(variable["name"]):
            yield f"{variable['name']} is written out"


CHECKS = (Check("no-secrets", "no Secret is rendered, none made up, none written out", no_secrets),)
