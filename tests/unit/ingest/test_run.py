"""A run that is waited for: what its client is told where nobody can tell how it stands."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fusewire.errors import Transient
from fusewire.testing.factories import T0, make_prompt
from fusewire_ingest.api.dependencies import Dependencies
from fusewire_ingest.api.errors import HttpError
from fusewire_ingest.api.run import Run, _wait_for_outcome


class NoDatabase:
    """Outcomes that cannot be looked up."""

    def __init__(self, *, is_closing: bool) -> None:
        self.is_closing = is_closing

    async def get(self, *_: Any, **__: Any) -> None:
        raise Transient("the database is not available")


@pytest.mark.parametrize(
    ("is_closing", "status"), [(False, 504), (True, 503)], ids=["in time", "as it stops"]
)
async def test_what_was_accepted_is_named_though_the_database_is_away(
    *, is_closing: bool, status: int
) -> None:
    """Told only to try again, a client would not know that it has been accepted."""
    prompt = make_prompt()
    dependencies = cast(
        "Dependencies",
        SimpleNamespace(outcomes=NoDatabase(is_closing=is_closing), clock=lambda: T0),
    )
    run = Run(
        model="fusion",
        is_streamed=False,
        with_usage=False,
        warnings=(),
        prompt=prompt,
        fusion_id=prompt.fusion_id,
        limits={},
        request_hash="h",
        cancel_on_disconnect=False,
    )

    with pytest.raises(HttpError) as exc_info:
        await _wait_for_outcome(dependencies, run, just_begun=True)

    assert exc_info.value.status == status
    assert prompt.fusion_id in exc_info.value.message
    assert exc_info.value.headers == run.headers
