"""Pictures of the console for the README. `make screenshots`.

Writes docs/img/overview.png and docs/img/outcome.png: planted outcomes, and one prompt that fake
models have answered.
"""

import re
import tempfile
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from playwright.sync_api import Page
from sqlalchemy import Connection, select, update

from fusewire.store import summaries
from fusewire.store.engine import Store
from fusewire.store.tables import outcomes
from fusewire.testing.browser import browser
from fusewire.testing.console_stack import console_stack, script

IMAGES = Path(__file__).parents[2] / "docs" / "img"
OUTCOMES = 1000
RECENT = 60
PROMPT = "What is a quorum, and why does a vote need one?"
SIZE = {"width": 1440, "height": 900}
MOST_BYTES = 200_000


async def make_recent(store: Store) -> None:
    """Let some planted outcomes have ended within the last quarter of an hour."""
    now = datetime.now(UTC)

    def change(connection: Connection) -> None:
        # In the order of their ids, which are hashes: as many of each day.
        some = select(outcomes.c.fusion_id).order_by(outcomes.c.fusion_id).limit(RECENT)
        for number, fusion_id in enumerate(connection.execute(some).scalars()):
            # Unevenly, as prompts come.
            ago = timedelta(minutes=14 * (number / RECENT) ** 1.3, seconds=45)
            statement = update(outcomes).where(outcomes.c.fusion_id == fusion_id)
            connection.execute(statement.values(finished_at=now - ago))

    await store.run(change, write=True)
    for day in await store.run(summaries.days, write=False):
        await store.run(partial(summaries.rebuild_day, day=day), write=True)


def ask(page: Page, url: str) -> str:
    """Ask, and wait for the outcome; returns the fusion's id."""
    page.goto(f"{url}/ask")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.wait_for_url(re.compile("/ask/[0-9a-z-]+$"))
    page.get_by_role("link", name="Open the outcome").wait_for()
    return page.url.rpartition("/")[2]


def main() -> None:
    """Take the pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="fusewire-shots-") as folder,
        console_stack(Path(folder), OUTCOMES, make_recent) as console,
        browser() as running,
    ):
        console.stack.script(script())
        page = running.new_page(
            viewport={"width": SIZE["width"], "height": SIZE["height"]},
            color_scheme="light",
            reduced_motion="reduce",
        )
        outcome = ask(page, console.url)
        for name, path in (("overview", "/"), ("outcome", f"/outcomes/{outcome}")):
            page.goto(console.url + path, wait_until="networkidle")
            file = IMAGES / f"{name}.png"
            page.screenshot(path=file)
            size = file.stat().st_size
            assert size <= MOST_BYTES, f"{file} has {size} bytes, more than {MOST_BYTES}"
            print(f"{file.relative_to(IMAGES.parents[1])}: {size:,} bytes")


if __name__ == "__main__":
    main()
