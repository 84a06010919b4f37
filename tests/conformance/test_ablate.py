"""Leave-one-out on fusions that the whole pipeline made, and judging them again."""

import gc
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from fusewire.analysis.ablation import MemberValue, Rate, WinRates
from fusewire.settings import Nats, Settings
from fusewire.store import history as history_module
from fusewire.store.engine import Store
from fusewire.store.history import PAGE, History, PoolQuery, pool_histories
from fusewire.testing.model_script import Fault, ModelScript, Rule, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire.testing.planted import JudgeTruth, MemberTruth, PoolTruth, Truth, fill
from fusewire_cli.ablate.command import AblationOptions, PoolAblation, announcement, measure
from fusewire_cli.ablate.course import Course, StoredCase, stored_case
from fusewire_cli.ablate.recomputation import recompute_all, repeats
from fusewire_cli.ablate.replay import replay, replay_batch, rules_text
from fusewire_cli.client import Client
from fusewire_judge.strategies.decide import decide

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
ALL = ("judge", "worker-remote", "dispatcher", "ingest")
WAIT_S = 250
NO_RATES = WinRates(())

VOTES = {
    "alike": {"a": "4", "b": "4.0", "c": "The answer is 4"},
    "two to one": {"a": "4", "b": "5", "c": "5"},
    "all differ": {"a": "4", "b": "5", "c": "6"},
    "a is alone": {"a": "7", "b": "8", "c": "8"},
}
"""By prompt: what the members say."""
OPEN = {
    "open": {
        "a": "Apples grow on trees in the old orchard by the river.",
        "b": "Bread is baked each morning from flour and water.",
        "c": "Coal was dug from deep pits all over the country.",
    },
}


def script(prompts: Mapping[str, Mapping[str, str]], **faults: Fault) -> Script:
    """Members that answer as the table says; the judge names what sorts first."""
    models = {
        name: ModelScript(
            rules=tuple(
                Rule(match=f"^{prompt}$", answer=answers[name])
                for prompt, answers in prompts.items()
            ),
            faults=(faults[name],) if name in faults else (),
            repeat_faults=True,
        )
        for name in "abc"
    }
    return Script(models=models)


async def histories(settings: Settings, **query: Any) -> list[History]:
    store = Store(settings.database)
    try:
        pages = pool_histories(store, PoolQuery("default", **query), 1000)
        return [fusion async for page in pages for fusion in page]
    finally:
        await store.close()


@pytest.fixture
def configure(make_settings: MakeSettings, nats: NatsServer) -> MakeSettings:
    def make(**sections: Any) -> Settings:
        return make_settings(nats=Nats(url=nats.url), **sections)

    return make


async def fuse_all(
    client: Client, prompts: Mapping[str, Mapping[str, str]], **fields: Any
) -> dict[str, dict[str, Any]]:
    """Fuse each prompt; the outcomes by prompt."""
    outcomes = {}
    for prompt in prompts:
        shown = await client.submit(
            {"prompt": prompt, "custom_id": f"{prompt} {fields}", **fields}, wait_s=WAIT_S
        )
        assert shown["status"] != "running", shown
        outcomes[prompt] = dict(shown)
    return outcomes


async def test_with_nobody_left_out_the_judge_decides_again_what_it_decided(
    configure: MakeSettings, running: Running, model_server: ModelServer, database: Any
) -> None:
    settings = configure(database=database)
    every = VOTES | OPEN
    async with running(settings, *ALL) as client:
        model_server.set_script(script(every))
        for mode in ("best-of", "merge", "debate"):
            await fuse_all(client, every, mode=mode)
        model_server.set_script(script(every, b=Fault(kind="bad_request")))
        await fuse_all(client, every, mode="best-of", judge="a")
    fusions = await histories(settings)
    assert len(fusions) == 20
    voted = repeated = 0
    for fusion in fusions:
        old = stored_case(fusion)
        assert old is not None
        again = decide(old.case, old.outcome.finished_at)
        draft = again.draft  # type: ignore[union-attr] # what has an outcome was decided
        assert (draft.status, draft.winner, draft.content) == (
            old.outcome.status,
            old.outcome.winner,
            old.outcome.content,
        )
        repeated += repeats(old)
        # A judge that was late, as on a busy machine, saw more answers than it would have waited
        # for.
        assert repeats(old) or panel(old) < old.panel_members
        voted += old.outcome.status == "voted" and not old.outcome.rounds
    assert voted >= 9
    assert repeated >= 10


def panel(old: StoredCase) -> frozenset[str]:
    end = Course(old, None).follow()
    assert end
    assert end.panel
    return frozenset(answer.member for answer in end.panel.answers)


async def test_a_vote_is_counted_again_without_a_member_and_a_tie_needs_a_judge(
    configure: MakeSettings, running: Running, model_server: ModelServer
) -> None:
    settings = configure(pool={"early_stop": 1.0})
    async with running(settings, *ALL) as client:
        model_server.set_script(script(VOTES))
        await fuse_all(client, VOTES)
    results = {}
    exact = {}
    for fusion in await histories(settings):
        old = stored_case(fusion)
        assert old is not None
        prompt = fusion.prompt.messages[0].content
        # On a busy machine the judge may have been late, and nothing is exact then.
        exact[prompt] = "recomputed" if repeats(old) else "estimated"
        for member, result in recompute_all(old, "abc", NO_RATES).items():
            results[prompt, member] = (result.basis, result.content)
    assert results["alike", "a"] == (exact["alike"], "4.0")
    assert results["two to one", "a"] == (exact["two to one"], "5")
    # 4 to 5: no judge has seen the two, so nothing says who would win but the judge's own rule.
    assert results["two to one", "b"][0] == "estimated"
    # The judge chose between three: the one that comes first in the alphabet.
    assert results["all differ", "b"] == ("kept", "4")
    assert results["all differ", "a"][0] == "estimated"
    assert results["a is alone", "a"] == (exact["a is alone"], "8")


async def test_a_replay_calls_judges_alone_and_is_paid_once(
    configure: MakeSettings, running: Running, model_server: ModelServer
) -> None:
    settings = configure()
    prompts = VOTES | OPEN
    options = AblationOptions("default", replays=True, most_prompts=10)
    rules = rules_text(settings.pools["default"])
    async with running(settings, *ALL) as client:
        model_server.set_script(script(prompts))
        await fuse_all(client, prompts, residency="any")
        model_server.set_script(script(prompts))
        ablation = await measure(settings, options)
        by_member = ablation.queue.by_member()
        batches = {replay_batch("default", name, rules): by_member[name] for name in by_member}
        assert ", 0 of them judged earlier" in announcement(batches, set(), 1)
        calls = sum(prompt.estimate.judge_calls for prompt in ablation.queue.prompts)
        for batch, waiting in batches.items():
            results = await replay(client, batch, waiting, 8)
            assert {result.basis for result in results} == {"rejudged"}
            for prompt, result in zip(waiting, results, strict=True):
                assert result.winner != prompt.member
        stats = model_server.stats
        assert set(stats.by_model) == {"j"}
        assert stats.requests >= calls > 0
        before = stats.requests
        for batch, waiting in batches.items():
            await replay(client, batch, waiting, 8)
        assert model_server.stats.requests == before
    for batch in batches:
        for fusion in await histories(settings, batch_id=batch):
            assert fusion.outcome is not None
            assert fusion.outcome.is_replay
            assert json.loads(fusion.prompt.encode())["residency"] == "any"
    # Outcomes of recorded answers are no evidence of their own.
    assert (await measure(settings, options)).outcomes == len(prompts)


# -- planted outcomes -------------------------------------------------------------------------

NOW = datetime(2026, 11, 29, tzinfo=UTC)
GOOD = MemberTruth("good", strength=0.6, accuracy=0.9, cost_usd=0.004)
FAIR = MemberTruth("fair", accuracy=0.7, failure_rate=0.02)
WEAK = MemberTruth("weak", strength=-0.4, accuracy=0.6, cost_usd=None)
IDLE = MemberTruth("idle", strength=-3, accuracy=0.0, is_useless=True, latency_ms=5000)


def truth(*members: MemberTruth, judge: JudgeTruth | None, open_share: float) -> Truth:
    pools = {"default": PoolTruth(members, judge), "second": PoolTruth(members[:1], judge)}
    return Truth(now=NOW, pools=pools, open_share=open_share, gold_share=0.8)


async def values_of(store: Store, settings: Settings, **options: Any) -> dict[str, MemberValue]:
    ablation = await measure(settings, AblationOptions("default", **options))
    return {value.member: value for value in ablation.values()}


def holds(rate: Rate, share: float, spare: float = 0.0) -> bool:
    return rate.low - spare <= share <= rate.high + spare


async def accuracy(settings: Settings) -> float:
    store = Store(settings.database)
    async with store.read() as connection:
        row = (
            await connection.execute(
                text(
                    "SELECT SUM(CASE WHEN accepted THEN 1 ELSE 0 END), COUNT(accepted)"
                    " FROM outcomes WHERE pool = 'default'"
                )
            )
        ).one()
    await store.close()
    return float(row[0] / row[1])


@pytest.mark.parametrize(
    ("judge", "open_share"),
    [(None, 0.0), (JudgeTruth(position_bias=0.3, insight=1.2), 0.3)],
    ids=["voted", "judged"],
)
async def test_what_is_planted_comes_back(
    store: Store,
    database: Any,
    make_settings: MakeSettings,
    sqlite_database: Any,
    judge: JudgeTruth | None,
    open_share: float,
) -> None:
    settings = make_settings(database=database)
    members = (GOOD, FAIR, WEAK, IDLE)
    await fill(store, truth(*members, judge=judge, open_share=open_share), 500, 3)
    values = await values_of(store, settings)
    idle = values["idle"]
    assert (idle.verdict, idle.n) == ("nothing_seen", 500)
    assert holds(idle.loss, 0.0)
    assert (idle.changed.value, idle.sole_right.value) == (0.0, 0.0)
    assert idle.saved_ms is not None
    assert idle.saved_ms > 3000
    assert values["good"].verdict == "worth_it"
    assert values["good"].cost_per_1000_usd == pytest.approx(4.0)
    assert values["weak"].cost_per_1000_usd is None
    if judge is None:
        assert all(value.n_recomputed == 500 for value in values.values())
    else:
        assert values["good"].n_estimated > 50
    # What a pool that never had the best member would have reached, on other prompts.
    async with store.write() as connection:
        for table in ("candidates", "rounds", "answers", "verdicts", "outcomes", "fusions"):
            await connection.execute(text(f"DELETE FROM {table}"))
        await connection.execute(text("DELETE FROM prompts"))
    await fill(store, truth(FAIR, WEAK, IDLE, judge=judge, open_share=open_share), 500, 4)
    # The other sample has an interval of its own, as wide as this one.
    assert holds(values["good"].accuracy_without, await accuracy(settings), spare=0.02)


async def test_only_the_newest_outcomes_of_the_pool_since_are_read_page_by_page(
    store: Store, database: Any, make_settings: MakeSettings
) -> None:
    settings = make_settings(database=database)
    await fill(store, truth(GOOD, FAIR, judge=None, open_share=0.0), 700, 5)
    newest = [
        fusion.outcome
        async for page in pool_histories(store, PoolQuery("default"), 450)
        for fusion in page
    ]
    async with store.read() as connection:
        rows = await connection.execute(
            text(
                "SELECT fusion_id FROM outcomes WHERE pool = 'default'"
                " ORDER BY finished_at DESC, fusion_id DESC LIMIT 450"
            )
        )
        expected = list(rows.scalars())
    assert [outcome.fusion_id for outcome in newest if outcome] == expected
    since = NOW - timedelta(days=3)
    recent = await values_of(store, settings, since=since)
    assert 50 < recent["good"].n < 100
    assert (await values_of(store, settings, limit=30))["good"].n == 30
    assert (await values_of(store, settings, tenant="nobody")) == {}
    batch = next(outcome.batch_id for outcome in newest if outcome and outcome.batch_id)
    assert 0 < (await values_of(store, settings, batch=batch))["good"].n < 700


async def test_of_outcomes_of_the_same_moment_none_is_missed_or_read_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "PAGE", 7)
    # 600 prompts within 200 milliseconds.
    planted = replace(truth(GOOD, FAIR, judge=None, open_share=0.0), days=600.2 / 86_400)
    await fill(store, planted, 600, 8)
    pages = [page async for page in pool_histories(store, PoolQuery("default"), 10_000)]
    firsts = [page[0].outcome.finished_at for page in pages if page[0].outcome]
    lasts = [page[-1].outcome.finished_at for page in pages if page[-1].outcome]
    assert any(last == first for last, first in zip(lasts, firsts[1:], strict=False))
    fusion_ids = [fusion.prompt.fusion_id for page in pages for fusion in page]
    assert len(fusion_ids) == len({*fusion_ids}) == 600


async def test_memory_does_not_grow_with_the_outcomes(store: Store) -> None:
    await fill(store, truth(GOOD, FAIR, judge=None, open_share=0.0), 3 * PAGE + 50, 6)
    ablation = PoolAblation(NO_RATES)
    live_counts = []
    async for page in pool_histories(store, PoolQuery("default"), 10_000):
        for fusion in page:
            ablation.add(fusion)
        gc.collect()
        live_counts.append(sum(isinstance(entry, History) for entry in gc.get_objects()))
    assert ablation.outcomes == 3 * PAGE + 50
    # A page, and the one before it until the loop lets it go.
    assert max(live_counts) <= 2 * PAGE


async def test_an_unknown_pool_is_answered_with_the_known_ones(
    store: Store, database: Any, make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(database=database)
    await fill(store, truth(GOOD, FAIR, judge=None, open_share=0.0), 10, 5)
    with pytest.raises(SystemExit) as end:
        await measure(settings, AblationOptions("defualt"))
    assert end.value.code == 2
    assert "there is no pool 'defualt'" in (message := capsys.readouterr().err)
    assert "name one of default, second" in message
