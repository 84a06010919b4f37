"""Leave-one-out on fusions that the whole pipeline made, and judging them again."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from fusewire.analysis.ablation import MemberValue, WinRates
from fusewire.settings import Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.history import History, PoolQuery, pool_histories
from fusewire.testing.model_script import Fault, ModelScript, Rule, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.ablate.command import (
    AblationOptions,
    PoolAblation,
    announcement,
    measure,
)
from fusewire_cli.ablate.course import stored_case
from fusewire_cli.ablate.recomputation import recompute_all, repeats
from fusewire_cli.ablate.replay import ReplayQueue, replay, replay_batch, rules_text
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
    voted = 0
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
        assert repeats(old)
        voted += old.outcome.status == "voted" and not old.outcome.rounds
    assert voted >= 9


async def test_a_vote_is_counted_again_without_a_member_and_a_tie_needs_a_judge(
    configure: MakeSettings, running: Running, model_server: ModelServer
) -> None:
    settings = configure(pool={"early_stop": 1.0})
    async with running(settings, *ALL) as client:
        model_server.set_script(script(VOTES))
        await fuse_all(client, VOTES)
    results = {}
    for fusion in await histories(settings):
        old = stored_case(fusion)
        assert old is not None
        prompt = fusion.prompt.messages[0].content
        for member, result in recompute_all(old, "abc", NO_RATES).items():
            results[prompt, member] = (result.basis, result.content)
    assert results["alike", "a"] == ("recomputed", "4.0")
    assert results["two to one", "a"] == ("recomputed", "5")
    # 4 to 5: no judge has seen the two, so nothing says who would win but the judge's own rule.
    assert results["two to one", "b"][0] == "estimated"
    # The judge chose between three: the one that comes first in the alphabet.
    assert results["all differ", "b"] == ("kept", "4")
    assert results["all differ", "a"][0] == "estimated"
    assert results["a is alone", "a"] == ("recomputed", "8")


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
