"""What the console is for, as somebody does it: ask, read, vote, and find the vote in SQL."""

import json
import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from fusewire.testing.console_stack import ANSWERS, REASON, RunningConsole, script
from fusewire.testing.model_script import Fault, ModelScript

PROMPT = "What is a quorum, and why does a vote need one?"


def sql(console: RunningConsole, statement: str) -> list[dict[str, Any]]:
    run = console.cli.run("query", statement, "--format", "json")
    assert run.returncode == 0, run.stderr
    rows: list[dict[str, Any]] = json.loads(run.stdout)
    return rows


def ask(page: Page, url: str, prompt: str = PROMPT) -> str:
    """Ask by keyboard alone; returns the fusion's id."""
    page.goto(f"{url}/ask")
    expect(page.get_by_label("Prompt")).to_be_focused()
    page.keyboard.type(prompt)
    for _ in ("pool", "mode", "residency", "button"):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/ask/[0-9a-z-]+$"))
    return page.url.rpartition("/")[2]


def _late(route: Route) -> None:
    """The extension comes after htmx has started."""
    time.sleep(0.5)
    route.continue_()


@pytest.fixture(autouse=True)
def _script(planted: RunningConsole) -> None:
    planted.stack.script(script())


def test_ask_read_vote_and_find_the_vote(planted: RunningConsole, visit: Any) -> None:
    with visit(planted) as watched:
        page = watched.page
        fusion_id = ask(page, planted.url)
        for name, answer in ANSWERS.items():
            expect(page.get_by_label(f"Answer of {name}")).to_contain_text(answer)
        expect(page.get_by_role("group", name="Answer", exact=True)).to_contain_text(
            ANSWERS["alpha"]
        )
        page.get_by_role("link", name="Open the outcome").click()
        page.wait_for_url(f"**/outcomes/{fusion_id}")
        expect(page.get_by_text(REASON).first).to_be_visible()
        assert sql(planted, f"SELECT * FROM v_vote WHERE outcome_id = '{fusion_id}'") == []
        page.get_by_role("radio", name=re.compile("beta")).check()
        page.get_by_role("button", name="Vote", exact=True).click()
        page.wait_for_load_state()
        votes = sql(planted, f"SELECT choice FROM v_vote WHERE outcome_id = '{fusion_id}'")
        assert [vote["choice"] for vote in votes] == ["beta"]


def test_members_answer_one_after_the_other_and_nothing_moves(
    planted: RunningConsole, visit: Any
) -> None:
    slow = ModelScript(answer=ANSWERS["beta"], latency_ms=1500)
    hanging = ModelScript(faults=(Fault(kind="hang"),), repeat_faults=True)
    planted.stack.script(script(beta=slow, gamma=hanging))
    with visit(planted, width=360) as watched:
        page = watched.page
        page.route("**/hx-sse*", _late)
        ask(page, planted.url)
        places = page.locator("#ask-cards > article, #ask-answer, #ask-status")
        expect(places).to_have_count(5)
        before = [place.bounding_box() for place in places.all()]
        expect(page.get_by_label("Answer of alpha")).to_contain_text(ANSWERS["alpha"])
        expect(page.get_by_role("status")).to_contain_text("2 of 3 members have answered.")
        assert [place.bounding_box() for place in places.all()] == before
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("status")).to_contain_text("It was cancelled.")
        assert [place.bounding_box() for place in places.all()] == before
        assert watched.check("a cancelled fusion") == []


def test_it_works_without_javascript(planted: RunningConsole, visit: Any) -> None:
    with visit(planted, java_script_enabled=False) as watched:
        page = watched.page
        page.goto(f"{planted.url}/ask")
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_role("button", name="Ask", exact=True).click()
        # The page loads itself again until there is an outcome.
        page.get_by_role("link", name="Open the outcome").click()
        expect(page.get_by_text(REASON).first).to_be_visible()


def test_a_refused_prompt_stays_in_its_form(planted: RunningConsole, visit: Any) -> None:
    with visit(planted) as watched:
        page = watched.page
        page.goto(f"{planted.url}/ask")
        page.get_by_label("Prompt").fill(" \n ")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_role("alert")).to_have_text("Write a prompt.")
        watched.faults = [fault for fault in watched.faults if "status of 400" not in fault]
        assert watched.check("a refused prompt") == []
