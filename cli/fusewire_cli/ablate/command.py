"""The command: read a pool's outcomes, leave each member out, print what each is worth."""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, NoReturn

from sqlalchemy import bindparam, text

from fusewire.analysis.ablation import JudgeInsight, MemberTally, MemberValue, WinRates
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.store.history import History, PoolQuery, pool_histories
from fusewire_cli.ablate.course import StoredCase, stored_case
from fusewire_cli.ablate.drawing import table
from fusewire_cli.ablate.evidence import add_insight, make_ablation
from fusewire_cli.ablate.recomputation import Recomputation, recompute_all
from fusewire_cli.ablate.replay import (
    ReplayPrompt,
    ReplayQueue,
    replay,
    replay_batch,
    rules_text,
)
from fusewire_cli.client import Client
from fusewire_cli.fusing import run
from fusewire_cli.screen import fail, note
from fusewire_cli.session import client, settings
from fusewire_cli.since import since_time

REPLAY_TENANT = "default"
"""Whose prompts are judged again unless --tenant says otherwise: those that no key submitted."""
NOTE_EVERY = 5000
"""Outcomes after which the command says how far it is; they take about 25 s."""
_WIN_MATRIX = text(
    "SELECT model, opponent, SUM(n), SUM(wins), SUM(ties) FROM v_win_matrix"
    " WHERE pool = :pool GROUP BY model, opponent"
)
_POOLS = text("SELECT DISTINCT pool FROM v_pool_day ORDER BY pool")
_REPLAYED = text("SELECT batch_id, custom_id FROM v_outcome WHERE batch_id IN :batches").bindparams(
    bindparam("batches", expanding=True)
)


@dataclass(frozen=True)
class AblationOptions:
    """What is looked at, and how."""

    pool: str
    since: datetime | None = None
    limit: int = 5000
    tenant: str | None = None
    batch: str | None = None
    replays: bool = False
    most_prompts: int = 200
    window: int = 32

    @property
    def query(self) -> PoolQuery:
        """The outcomes to read."""
        tenant = self.tenant
        if self.replays and tenant is None:
            tenant = REPLAY_TENANT
        return PoolQuery(self.pool, self.since, tenant, self.batch)


@dataclass
class PoolAblation:
    """The sums over a pool's outcomes."""

    win_rates: WinRates
    tallies: dict[str, MemberTally] = field(default_factory=dict)
    insight: JudgeInsight = field(default_factory=JudgeInsight)
    queue: ReplayQueue = field(default_factory=lambda: ReplayQueue(0))
    outcomes: int = 0
    """Outcomes with a panel of the pool's members."""
    left_out: int = 0
    """Others: cancelled, never planned, or of models that the prompt itself named."""

    def add(self, fusion: History) -> None:
        """Leave each member out of a fusion."""
        old = stored_case(fusion)
        if old is None or fusion.prompt.members:
            self.left_out += 1
            return
        self.outcomes += 1
        add_insight(old, self.insight)
        names = [member.name for member in old.case.plan.members]
        results = recompute_all(old, names, self.win_rates)
        waiting_names = self.queue.take(fusion, old, results)
        for name, result in results.items():
            if name not in waiting_names:
                self.add_result(old, name, result)

    def add_result(self, old: StoredCase, member: str, result: Recomputation) -> None:
        """Add what came out of a fusion without a member."""
        tally = self.tallies.setdefault(member, MemberTally(member))
        tally.add(make_ablation(old, member, result, self.win_rates))

    def values(self) -> list[MemberValue]:
        """What each member is worth, the most valuable first."""
        values = [tally.value(self.insight) for tally in self.tallies.values()]
        return sorted(values, key=_order)


def _order(value: MemberValue) -> tuple[float, float, str]:
    return -(value.loss.value or 0.0), -(value.changed.value or 0.0), value.member


def run_ablate(pool: str, since: str | None, *, as_json: bool, **options: Any) -> None:
    """Read the options and run."""
    ablate(AblationOptions(pool, since_time(since), **options), as_json=as_json)


def ablate(options: AblationOptions, *, as_json: bool) -> None:
    """Print what each member of a pool is worth, judging again first if that is wanted."""
    config = settings()
    if options.replays and options.pool not in config.pools:
        fail(
            f"pool '{options.pool}' is not configured, so nobody can judge for it",
            f"leave out --replay; the configured pools are {', '.join(sorted(config.pools))}",
        )
    ablation = asyncio.run(measure(config, options))
    if not ablation.outcomes:
        _fail_empty(options, ablation)
    if options.replays:
        replay_all(config, options, ablation)
    values = ablation.values()
    if as_json:
        print(json.dumps(_document(options, ablation, values)))
    else:
        print(table(options.pool, ablation.outcomes, ablation.left_out, values))


def _fail_empty(options: AblationOptions, ablation: PoolAblation) -> NoReturn:
    restrictions = {"--since": options.since, "--tenant": options.tenant, "--batch": options.batch}
    names = [name for name, value in restrictions.items() if value is not None]
    mend = f"widen {', '.join(names)}" if names else "fuse some prompts first"
    count = f"; {ablation.left_out} have no panel of it" if ablation.left_out else ""
    fail(f"pool '{options.pool}' has no outcomes to look at{count}", mend)


def _document(
    options: AblationOptions, ablation: PoolAblation, values: Iterable[MemberValue]
) -> dict[str, Any]:
    return {
        "pool": options.pool,
        "since": options.since.isoformat() if options.since else None,
        "outcomes": ablation.outcomes,
        "left_out": ablation.left_out,
        "members": [asdict(value) | {"is_estimate": value.is_estimate} for value in values],
    }


# -- reading ----------------------------------------------------------------------------------


async def measure(config: Settings, options: AblationOptions) -> PoolAblation:
    """Leave each member out of the pool's newest outcomes.

    Raises:
        SystemExit: nobody knows the pool.
        StartupError: the database does not answer.
        Transient: the same, later.
    """
    store = Store(config.database)
    try:
        await store.ping()
        await migrate.check(store)
        await _check_pool(store, config, options.pool)
        ablation = PoolAblation(await _win_rates(store, options.pool))
        if options.replays:
            ablation.queue = ReplayQueue(options.most_prompts)
        n_notes = 0
        async for page in pool_histories(store, options.query, options.limit):
            for fusion in page:
                ablation.add(fusion)
            if ablation.outcomes // NOTE_EVERY > n_notes:
                n_notes = ablation.outcomes // NOTE_EVERY
                note(f"{ablation.outcomes:,} outcomes so far")
        return ablation
    finally:
        await store.close()


async def _check_pool(store: Store, config: Settings, pool: str) -> None:
    async with store.read() as connection:
        pools = set((await connection.execute(_POOLS)).scalars()) | set(config.pools)
    if pool not in pools:
        fail(f"there is no pool '{pool}'", f"name one of {', '.join(sorted(pools))}")


async def _win_rates(store: Store, pool: str) -> WinRates:
    async with store.read() as connection:
        rows = (await connection.execute(_WIN_MATRIX, {"pool": pool})).all()
    return WinRates(
        (model, opponent, int(n), int(wins), int(ties)) for model, opponent, n, wins, ties in rows
    )


# -- judging again ----------------------------------------------------------------------------


def replay_all(config: Settings, options: AblationOptions, ablation: PoolAblation) -> None:
    """Judge the queue again, and add what came out."""
    rules = rules_text(config.pools[options.pool])
    batches = {
        replay_batch(options.pool, member, rules): prompts
        for member, prompts in ablation.queue.by_member().items()
    }
    if not batches:
        note("replay: every outcome is known without a judge")
        return
    earlier = asyncio.run(_earlier(config, batches))
    note(announcement(batches, earlier, ablation.queue.n_fusions))

    async def main() -> None:
        async with client(config) as api:
            await _replay_batches(api, batches, ablation, options.window)

    run(main())


def announcement(
    batches: Mapping[str, Sequence[ReplayPrompt]], earlier: set[tuple[str, str]], n_fusions: int
) -> str:
    """What a replay will do, in one line.

    Args:
        batches: by id, the prompts.
        earlier: batch and custom_id of those that are judged already.
        n_fusions: how many fusions they are of.
    """
    n_prompts, n_new, calls = 0, 0, 0
    for batch, prompts in batches.items():
        new = [prompt for prompt in prompts if (batch, prompt.custom_id) not in earlier]
        n_prompts += len(prompts)
        n_new += len(new)
        calls += sum(prompt.estimate.judge_calls for prompt in new)
    return (
        f"replay: {n_fusions} prompts, {n_prompts} times a member left out,"
        f" {n_prompts - n_new} of them judged earlier; {calls} judge calls"
        " (more on ties, merges and replies that cannot be read); no member is called"
    )


async def _earlier(config: Settings, batches: Iterable[str]) -> set[tuple[str, str]]:
    """Batch and custom_id of all outcomes of these batches."""
    store = Store(config.database)
    try:
        async with store.read() as connection:
            rows = (await connection.execute(_REPLAYED, {"batches": list(batches)})).all()
        return {(batch, custom_id) for batch, custom_id in rows}
    finally:
        await store.close()


async def _replay_batches(
    api: Client,
    batches: Mapping[str, Sequence[ReplayPrompt]],
    ablation: PoolAblation,
    window: int,
) -> None:
    for batch, prompts in batches.items():
        results = await replay(api, batch, prompts, window)
        for prompt, result in zip(prompts, results, strict=True):
            ablation.add_result(prompt.old, prompt.member, result)
