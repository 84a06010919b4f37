"""The console's page of one outcome, on both databases."""

import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import escape, unescape
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from fusewire.settings import Database, Http, Nats, Settings
from fusewire.store.engine import Store
from fusewire.testing.model_script import ModelScript, Script, ScriptedCall
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_cli.client import Client
from fusewire_console import formats
from fusewire_console.access import COOKIE
from fusewire_console.figures.differences import MOST_WORDS
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.keys import ApiKeys, Change, Key
from fusewire_ingest.repository.retention import Retention

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ConsoleRunning = Callable[..., AbstractAsyncContextManager[aiohttp.ClientSession]]
Web = aiohttp.ClientSession
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
NAMES = ("alpha", "beta", "gamma")
MEMBERS = tuple(MemberTruth(name, accuracy=0.8, failure_rate=0.1) for name in NAMES)
TRUTH = Truth(
    now=datetime.now(UTC),
    # A judge that likes what is shown first names another winner now and then.
    pools={"p": PoolTruth(MEMBERS, JudgeTruth(position_bias=0.8))},
    open_share=0.6,
    days=20.0,
)
SELECTED = "status = 'selected' AND n_answered = 3"
HOSTILE = "<script>alert(1)</script></div>"
RIGHT_TO_LEFT = "שלום עולם \u202e"
COMBINING = "Z" + "\u0335\u0322" * 2000
PAGE_BYTES = 200_000


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database, nats: NatsServer) -> Settings:
    return make_settings(database=database, nats=Nats(url=nats.url))


@pytest.fixture
async def web(settings: Settings, store: Store, console: ConsoleRunning) -> AsyncIterator[Web]:
    """The console on 120 planted outcomes."""
    await fill(store, TRUTH, 120, 1)
    async with console(settings, "ingest") as web:
        yield web


async def page(web: Web, path: str, status: int = 200, **options: Any) -> str:
    async with web.get(path, allow_redirects=False, **options) as response:
        assert response.status == status, await response.text()
        return await response.text()


async def post_vote(web: Web, outcome_id: str, choice: str, status: int, **options: Any) -> str:
    path = f"/outcomes/{outcome_id}/votes"
    async with web.post(path, data={"choice": choice}, **options) as response:
        assert response.status == status, await response.text()
        return await response.text()


async def outcome_where(store: Store, condition: str) -> dict[str, Any]:
    """The first outcome of which the condition is true."""
    sql = text(f"SELECT * FROM outcomes WHERE {condition} ORDER BY fusion_id LIMIT 1")
    async with store.read() as connection:
        return dict((await connection.execute(sql)).mappings().one())


async def execute(store: Store, sql: str, **values: Any) -> None:
    async with store.write() as connection:
        await connection.execute(text(sql), values)


def plain(html: str) -> str:
    """What a page shows, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


# -- what is stored ---------------------------------------------------------------------------


async def test_an_outcome_is_shown_with_all_that_is_known_of_it(web: Web, store: Store) -> None:
    row = await outcome_where(store, f"{SELECTED} AND swap_consistent")
    other, another = (name for name in NAMES if name != row["winner"])
    await set_answers(store, row["fusion_id"], {other: f"{row['content']} Indeed so."})
    html = await page(web, f"/outcomes/{row['fusion_id']}")
    shown = plain(html)
    assert f"Winner {row['winner']} chosen by the judge" in shown
    assert f"Latency {formats.ms(row['latency_ms'])}" in shown
    assert f"Cost {formats.usd(row['cost_usd'])}" in shown
    assert "Answered 3 of 3" in shown
    assert "Explain how you get the number of row" in shown, "the prompt, which the API has"
    assert row["content"] in shown
    for name in NAMES:
        assert f'aria-label="Answer of {name}"' in html
    assert "The same words as the outcome's answer." in shown, "of the winner"
    assert "<mark>Indeed so.</mark></div>" in html
    assert re.findall(r"(\d+) of its \d+ words are not in", shown)[0] == "2"
    assert "Too much differs to mark it." in shown, f"of {another}"
    assert "The panel closed because every member had answered or failed." in shown
    assert "both orders agree" in shown
    assert html.count('<blockquote class="text">It is right.</blockquote>') >= 2
    assert re.search(r"<th scope=\"row\">verdict-1-1</th>", html), "the timeline"
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", html)
    assert "None" not in shown.replace("None is good", "")


async def test_a_judge_that_follows_the_order_is_shown_to_flip(web: Web, store: Store) -> None:
    row = await outcome_where(store, f"{SELECTED} AND NOT swap_consistent")
    shown = plain(await page(web, f"/outcomes/{row['fusion_id']}"))
    assert "flipped with the order" in shown
    firsts = re.findall(r"Order shown, call verdict-1-[12] (\w+)( named)?", shown)
    assert [name for name, _ in firsts] != [firsts[0][0]] * 2, "the orders are opposite"
    assert all(named for _, named in firsts), "each time the first is named"


async def test_what_went_wrong_is_said_in_sentences(web: Web, store: Store) -> None:
    row = await outcome_where(store, "degraded_reasons LIKE '%failed:gamma:timeout%'")
    shown = plain(await page(web, f"/outcomes/{row['fusion_id']}"))
    assert "gamma failed: it took too long." in shown
    assert "It failed: it took too long." in shown
    assert "degraded" in shown


async def test_a_merge_names_the_closest_members_and_says_that_it_guesses(
    web: Web, store: Store
) -> None:
    row = await outcome_where(store, SELECTED)
    sentences = {
        "alpha": "Water boils at 100 degrees at sea level.",
        "beta": "On high mountains it boils at lower temperatures.",
        "gamma": "Nobody knows.",
    }
    for member, sentence in sentences.items():
        await execute(
            store,
            "UPDATE answers SET content = :text, is_winner = FALSE"
            " WHERE fusion_id = :id AND member = :member",
            text=sentence, id=row["fusion_id"], member=member,
        )  # fmt: skip
    merge = f"{sentences['alpha']} {sentences['beta']} And I add this of my own."
    insight = {"unique_insights": [{"model": "beta", "insight": "Height matters."}]}
    body = json.loads(row["body"]) | {"status": "fused", "winner": None, "analysis": insight}
    await execute(
        store,
        "UPDATE outcomes SET status = 'fused', winner = NULL, winner_model = NULL,"
        " guard = 'passed', content = :text, body = :body WHERE fusion_id = :id",
        text=merge, body=json.dumps(body), id=row["fusion_id"],
    )  # fmt: skip
    shown = plain(await page(web, f"/outcomes/{row['fusion_id']}"))
    assert f"{sentences['alpha']} alpha 100 %" in shown
    assert f"{sentences['beta']} beta 100 %" in shown
    assert "And I add this of my own. no member, so the judge's own" in shown
    assert "Computed here" in shown
    assert "beta: Height matters." in shown
    assert "is no worse" in shown, "what the guard found"


async def test_a_fusion_that_runs_is_shown_and_asked_for_again(web: Web, store: Store) -> None:
    row = await outcome_where(store, SELECTED)
    path = f"/outcomes/{row['fusion_id']}"
    for table in ("answers", "verdicts", "outcomes"):
        await execute(store, f"DELETE FROM {table} WHERE fusion_id = :id", id=row["fusion_id"])
    html = await page(web, path)
    assert "It is running" in html
    assert f'hx-get="{path}" hx-trigger="every 2s"' in html
    assert 'action="' not in html.partition("<main")[2], "nothing to vote for"
    part = await page(web, path, headers={"hx-request": "true"})
    assert part.startswith('<div id="outcome"')
    assert "It is running" in part


async def test_a_finished_outcome_is_not_asked_for_again(web: Web, store: Store) -> None:
    row = await outcome_where(store, SELECTED)
    assert "hx-get" not in await page(web, f"/outcomes/{row['fusion_id']}")


async def test_deleted_texts_are_said_and_figures_stay(web: Web, store: Store) -> None:
    row = await outcome_where(store, SELECTED)
    later = datetime.now(UTC) + timedelta(days=1)
    assert await Retention(store).delete_texts("default", later, later) > 0
    shown = plain(await page(web, f"/outcomes/{row['fusion_id']}"))
    assert "The texts of this outcome are deleted" in shown
    assert "There is none any more." in shown
    assert f"Cost {formats.usd(row['cost_usd'])}" in shown
    await page(web, f"/outcomes/{row['fusion_id']}/answers/alpha.txt", 404)


async def test_what_is_unknown_is_no_error_of_ours(web: Web) -> None:
    for name in (
        "absent",
        "..%2f..",
        "%252e",
        "f" * 5000,
        "Ä",
        "a b",
    ):
        assert "There is nothing at this address" in await page(web, f"/outcomes/{name}", 404)


@pytest.mark.parametrize("mode", ["best-of", "merge", "debate", "tools"])
async def test_what_a_real_fusion_stores_is_shown(
    mode: str,
    settings: Settings,
    running: Running,
    console: ConsoleRunning,
    model_server: ModelServer,
) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    fields: dict[str, Any] = {"mode": mode}
    if mode == "tools":
        call = ScriptedCall(name="look_up", arguments={"word": "quorum"})
        script = Script(models={name: ModelScript(calls=(call,)) for name in "abc"})
        model_server.set_script(script)
        fields = {"tools": [tool]}
    async with running(settings, *ALL) as client:
        fusion = await client.submit({"prompt": "Why <b>so</b>?", **fields}, wait_s=250)
    async with console(settings, "ingest") as web:
        html = await page(web, f"/outcomes/{fusion['id']}")

    shown = plain(html)
    assert "Why &lt;b&gt;so&lt;/b&gt;?" in html
    assert f"Mode {fusion['mode']}" in shown
    texts = [fusion["content"], *(answer["content"] for answer in fusion["answers"])]
    for text_ in texts:
        assert " ".join((text_ or "").split()) in shown
    for verdict in fusion["verdicts"]:
        assert f"call {verdict['call']}" in shown
    if mode == "tools":
        assert shown.count('look_up({"word": "quorum"})') == 3, "of each member"
    assert "None" not in shown.replace("None is good", "")


# -- long and hostile texts -------------------------------------------------------------------


async def plant_eight(store: Store) -> tuple[str, list[str]]:
    """An outcome of eight members: its id, and their names."""
    names = [f"member{number}" for number in range(8)]
    pool = PoolTruth(tuple(MemberTruth(name) for name in names), JudgeTruth())
    await fill(store, replace(TRUTH, pools={"p": pool}, open_share=1.0), 1, 1)
    return (await outcome_where(store, "status = 'selected'"))["fusion_id"], names


async def set_answers(store: Store, outcome_id: str, answers: Mapping[str, str]) -> None:
    for name, answer in answers.items():
        await execute(
            store,
            "UPDATE answers SET content = :text WHERE fusion_id = :id AND member = :member",
            text=answer, id=outcome_id, member=name,
        )  # fmt: skip


def marked_texts() -> tuple[str, list[str]]:
    """An answer, and eight others with as many marks as texts may have that are compared."""
    words = [f"w{number}" for number in range(MOST_WORDS)]
    other = ['"' if number % 4 == 0 else word for number, word in enumerate(words)]
    return " ".join(words), [" ".join(other)] * 8


async def test_as_many_marks_as_can_be_fit_on_a_page(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    outcome_id, names = await plant_eight(store)
    content, others = marked_texts()
    await set_answers(store, outcome_id, dict(zip(names, others, strict=True)))
    await execute(store, "UPDATE outcomes SET content = :it", it=content)
    async with console(settings, "ingest") as web:
        html = await page(web, f"/outcomes/{outcome_id}")
    assert html.count("<mark>") > 8 * MOST_WORDS // 5
    assert len(html.encode()) <= PAGE_BYTES


async def test_hostile_texts_of_a_megabyte_are_cut_and_shown_as_text(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    outcome_id, names = await plant_eight(store)
    parts = (HOSTILE, RIGHT_TO_LEFT, COMBINING, "語", '"', "& ", "x", "a\n\n")
    longs = {name: part * (1_000_000 // len(part)) for name, part in zip(names, parts, strict=True)}
    await set_answers(store, outcome_id, longs)
    for column in ("content", "reason", "custom_id", "error", "judge_model"):
        value = HOSTILE * (30_000 if column == "content" else 2)
        await execute(store, f"UPDATE outcomes SET {column} = :it", it=value)
    path = f"/outcomes/{outcome_id}"
    async with console(settings, "ingest") as web:
        html = await page(web, path)
        assert len(html.encode()) <= PAGE_BYTES
        assert HOSTILE not in html
        assert escape(HOSTILE) in html
        assert COMBINING[:500] in html
        assert RIGHT_TO_LEFT in html
        for name, long_text in longs.items():
            link = f"{path}/answers/{name}.txt"
            assert f'href="{link}"' in html
            async with web.get(link) as response:
                assert await response.text() == long_text
                assert response.headers["content-disposition"].startswith("attachment;")
                assert response.headers["content-type"] == "text/plain; charset=utf-8"
        async with web.get(f"{path}/fusion.json") as response:
            assert (await response.json())["id"] == outcome_id
            assert response.headers["content-disposition"].startswith("attachment;")
        await page(web, f"{path}/answers/absent.txt", 404)


# -- votes ------------------------------------------------------------------------------------


async def test_a_vote_is_stored_counted_and_changed(web: Web, store: Store) -> None:
    outcome_id = (await outcome_where(store, SELECTED))["fusion_id"]
    shown = plain(await page(web, f"/outcomes/{outcome_id}"))
    assert "No votes yet." in shown

    shown = plain(await post_vote(web, outcome_id, "beta", 200))
    assert "Your vote is stored: beta." in shown
    assert "1 vote so far." in shown
    assert "beta 1" in shown

    shown = plain(await post_vote(web, outcome_id, "tie", 200))
    assert "Your vote is stored: Several are equally good. It replaces your earlier one." in shown
    assert "1 vote so far." in plain(await page(web, f"/outcomes/{outcome_id}"))
    async with web.get(f"/outcomes/{outcome_id}/votes", allow_redirects=False) as response:
        assert response.headers["location"] == f"/outcomes/{outcome_id}#votes"


async def test_what_the_api_refuses_is_said_where_one_votes(web: Web, store: Store) -> None:
    row = await outcome_where(store, SELECTED)
    for choice in ("", "nobody", HOSTILE):
        html = await post_vote(web, row["fusion_id"], choice, 400)
        assert "The vote was not stored: " in html
        assert 'name="choice"' in html
        assert HOSTILE not in html
    await post_vote(web, row["fusion_id"], "tie", 403, headers={"origin": "https://evil.example"})
    await post_vote(web, "absent", "tie", 404)
    assert "No votes yet." in await page(web, f"/outcomes/{row['fusion_id']}")


async def test_an_outcome_without_an_answer_has_no_votes(web: Web, store: Store) -> None:
    row = await outcome_where(store, SELECTED)
    await execute(
        store,
        "UPDATE outcomes SET status = 'failed', content = NULL, winner = NULL, error = :error"
        " WHERE fusion_id = :id",
        id=row["fusion_id"], error="every member failed (timeout)",
    )  # fmt: skip
    html = await page(web, f"/outcomes/{row['fusion_id']}")
    assert "every member failed (timeout)" in html
    assert 'name="choice"' not in html


# -- tenants ----------------------------------------------------------------------------------


async def make_key(settings: Settings, store: Store, tenant: str, scopes: str) -> dict[str, Any]:
    """A key, as the cookies of a visitor."""
    key = keys.make(secrets.token_bytes(keys.RANDOM_BYTES))
    now, digest = datetime.now(UTC), keys.digest(key, pepper(settings))
    made = Key(keys.key_id(key) or "", tenant, "test", digest, now, scopes=scopes)
    await ApiKeys(store).add(made, Change("operator:test", now))
    return {"headers": {"cookie": f"{COOKIE}={key}"}}


async def test_another_tenant_s_outcome_is_as_unknown_as_none(
    settings: Settings, store: Store, console: ConsoleRunning
) -> None:
    secured = settings.model_copy(update={"http": Http(port=0, keys="required")})
    await fill(store, replace(TRUTH, tenants=("acme", "bolt")), 40, 1)
    acme = await outcome_where(store, f"{SELECTED} AND tenant = 'acme'")
    own = f"/outcomes/{acme['fusion_id']}"
    stranger = await make_key(secured, store, "bolt", "admin read submit")
    reader = await make_key(secured, store, "acme", "read")
    member = await make_key(secured, store, "acme", "read submit")
    operator = await make_key(secured, store, "default", "admin read submit")

    async with console(secured, "ingest") as web:
        unknown = await page(web, "/outcomes/f" + "0" * 26, 404, **stranger)
        for path in (own, f"{own}/answers/alpha.txt", f"{own}/answers/fused.txt"):
            assert await page(web, path, 404, **stranger) == unknown
        await page(web, f"{own}/fusion.json", 404, **stranger)
        await page(web, own, 303)

        html = await page(web, own, **member)
        assert 'name="choice"' in html
        assert "Your key has one vote" in html
        assert 'name="choice"' not in await page(web, own, **reader)
        headers = reader["headers"] | {"origin": str(web._base_url).rstrip("/")}
        refused = await post_vote(web, acme["fusion_id"], "tie", 403, headers=headers)
        assert "The vote was not stored: " in refused
        headers = stranger["headers"] | {"origin": str(web._base_url).rstrip("/")}
        await post_vote(web, acme["fusion_id"], "tie", 404, headers=headers)

        shown = plain(await page(web, own, **operator))
        assert "tenant acme" in shown
        assert acme["content"] in shown
        assert "Votes" not in shown, "an operator votes for nobody else"
        assert "Raw" not in shown, "the API shows it to its tenant alone"
