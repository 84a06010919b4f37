"""Pages from templates: everything that is stored is escaped, and missing names are errors."""

import functools
import hashlib
from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from fusewire_console import charts, formats
from fusewire_console.access import Visitor
from fusewire_console.navigation import navigation

FILTERS = ("count", "usd", "ms", "duration", "percent", "rate", "size", "moment", "ago")


class Renderer:
    """Renders the templates of this package."""

    def page(
        self,
        template: str,
        *,
        visitor: Visitor | None,
        now: datetime,
        status: int = 200,
        **context: Any,
    ) -> HTMLResponse:
        """A page, or a part of one that htmx asked for.

        Args:
            template: the name of its file.
            visitor: who asks; None for a page that anybody may see.
            now: the time.
            status: the HTTP status.
            context: what the template shows.
        """
        return HTMLResponse(self.text(template, visitor=visitor, now=now, **context), status)

    def text(self, template: str, **context: Any) -> str:
        """The HTML of a template."""
        return _environment().get_template(template).render(**context)


@functools.cache
def _environment() -> Environment:
    """One for all consoles of a process, as templates are compiled at their first use."""
    environment = Environment(
        loader=PackageLoader("fusewire_console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formats, name) for name in FILTERS}
    environment.globals |= {
        "DASH": formats.DASH,
        "asset": _Assets().url,
        "charts": charts,
        "navigation": navigation,
        "query": _query,
    }
    return environment


class _Assets:
    """Addresses of static files that change with their content, so that they may be cached."""

    def __init__(self) -> None:
        self._urls: dict[str, str] = {}

    def url(self, name: str) -> str:
        """The address of a file below `static/`."""
        if name not in self._urls:
            content = (files("fusewire_console") / "static").joinpath(name).read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:12]
            self._urls[name] = f"/static/{name}?v={digest}"
        return self._urls[name]


def _query(parameters: Mapping[str, Any], **changes: Any) -> str:
    """A query with some parameters changed; what is None or empty is left out."""
    values = {**parameters, **changes}
    pairs = [(name, value) for name, value in values.items() if value not in (None, "")]
    return "?" + urlencode(pairs, doseq=True) if pairs else "?"
