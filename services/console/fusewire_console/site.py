"""What the pages need."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from fusewire.settings import Settings
from fusewire.store.analyst import Analyst
from fusewire_console.access import Access
from fusewire_console.api import Api
from fusewire_console.render import Renderer
from fusewire_console.views import Views


@dataclass(frozen=True)
class Site:
    """Everything that the pages need."""

    settings: Settings
    api: Api
    views: Views
    """The views, for statements of our own."""
    sql_analyst: Analyst
    """The views, for statements that visitors write."""
    access: Access
    renderer: Renderer
    clock: Callable[[], datetime]
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when streams must end."""
