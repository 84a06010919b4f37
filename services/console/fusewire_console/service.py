"""Builds the console from its parts."""

from datetime import UTC, datetime
from typing import cast
from urllib.parse import urlsplit

from fusewire.errors import StartupError
from fusewire.http_server import App, check_encryption, is_loopback, needs_keys
from fusewire.settings import Settings
from fusewire.store.analyst import Analyst, QueryRefused
from fusewire_console import app
from fusewire_console.access import Access
from fusewire_console.api import Api, own_context
from fusewire_console.render import Renderer
from fusewire_console.site import Site
from fusewire_console.views import Views

TIMEOUT_S = 10.0
"""How long one statement of a page may take."""
SQL_TIMEOUT_S = 30.0
"""How long one statement of a visitor may take."""


class Console:
    """The console service; see `fusewire.service.Service`."""

    name = "console"

    def __init__(self, settings: Settings) -> None:
        self.drain_s = settings.limits.drain_s
        self._settings = settings
        if settings.console.api_url is None:
            raise StartupError(
                "[console] api_url is not set, and the console asks the API for all but views",
                "set it to where ingest's API is, such as FUSEWIRE_CONSOLE__API_URL="
                "http://fusewire-ingest:8484",
            )
        self._api = Api(settings.console.api_url, own_context(settings.http))
        self._analyst = Analyst(settings.database, timeout_s=TIMEOUT_S, trusted=True)
        # An API on another machine asks for keys, so whoever comes here needs one too.
        is_elsewhere = not is_loopback(urlsplit(settings.console.api_url).hostname or "")
        is_required = needs_keys(settings.http) or is_elsewhere
        self._site = Site(
            settings=settings,
            api=self._api,
            views=Views(self._analyst),
            sql_analyst=Analyst(settings.database, timeout_s=SQL_TIMEOUT_S),
            access=Access(self._api, settings.console.operators, is_required=is_required),
            renderer=Renderer(),
            clock=lambda: datetime.now(UTC),
        )
        self._app = app.build(self._site)

    async def start(self) -> None:
        """Check settings and that the database can be read, and make ready to ask the API."""
        check_encryption(self._settings.http)
        try:
            async with self._analyst:
                pass
        except QueryRefused as exc:
            raise StartupError(exc.what, exc.mend) from None
        self._api.start()

    def close(self) -> None:
        """End the streams of visitors."""
        self._site.closing.set()

    async def stop(self) -> None:
        """Close all connections."""
        await self._api.stop()

    def faults(self) -> list[str]:
        """See Service."""
        return []

    def unready(self) -> list[str]:
        """See Service. Without API or database its pages say so."""
        return []

    def app(self) -> App | None:
        """The pages."""
        return cast("App", self._app)


def build(settings: Settings) -> Console:
    """The entry point `fusewire.services`."""
    return Console(settings)
